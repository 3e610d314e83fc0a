"""Probabilities of being drawn: against the enumeration of all draws, against the draws themselves,
and their gradient.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels.ops.inclusion import ops

LIMITS = {1: 0.02, 2: 0.02, 3: 0.02, 4: 0.02, 5: 0.02, 6: 0.03, 7: 0.05}
"""k -> the largest difference allowed between the two races at L = 8, weights within a factor of
10; see the README beside the operation.
"""


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def enumerated(weights: list[float], k: int) -> list[float]:
    """The probability that each position is among ``k`` drawn one after the other."""
    included = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), k):
        probability, left = 1.0, sum(weights)
        for position in order:
            probability *= weights[position] / left
            left -= weights[position]
        for position in order:
            included[position] += probability
    return included


def worst_difference(length: int, k: int, seed: int = 0) -> float:
    weights = 0.1 + 0.9 * rand(1, length, seed=seed)
    found = mam.inclusion_probabilities(weights, k)
    right = torch.tensor([enumerated(weights[0].tolist(), k)], dtype=torch.float64)
    return float((found - right).abs().max())


@pytest.mark.parametrize("k", LIMITS)
def test_differs_from_the_enumeration_of_all_draws_by_little(k):
    assert max(worst_difference(8, k, seed) for seed in range(3)) < LIMITS[k]


def test_equal_weights_are_drawn_alike_exactly():
    found = mam.inclusion_probabilities(torch.full((1, 8), 0.3, dtype=torch.float64), 3)
    torch.testing.assert_close(found, torch.full((1, 8), 3 / 8, dtype=torch.float64))


def test_is_what_the_draws_come_to_in_a_long_row():
    weights = (4 * rand(1, 400, seed=1, dtype=torch.float32)).exp()
    expected = mam.inclusion_probabilities(weights, 120)
    draws = 4000
    drawn = mam.sample_without_replacement(weights.expand(draws, -1), 120, seed=1).double().mean(0)
    # Four standard deviations over 400 positions would be exceeded once in 40 runs; six never.
    deviation = (expected * (1 - expected) / draws).sqrt().clamp(min=1 / draws)
    assert ((drawn - expected).abs() < 6 * deviation + 1 / 120).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_sums_to_k_and_is_never_positive_where_nothing_is_drawn(dtype):
    weights = rand(6, 50, seed=2).to(dtype)
    weights[0, :10], weights[1, 3], weights[1, 4], weights[1, 5] = 0, torch.nan, torch.inf, -1
    valid = torch.ones(6, 50, dtype=torch.bool)
    valid[2, 20:] = False
    valid[3] = False
    k = torch.tensor([5, 20, 30, 4, 0, 50])
    found = mam.inclusion_probabilities(weights, k, valid=valid)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        found.sum(dim=1).double(), torch.tensor([5, 20, 20, 0, 0, 50]).double(), rtol=1e-6, atol=0
    )
    drawable = valid & (weights > 0) & weights.isfinite()
    assert not found[~drawable].any()
    assert bool((found[2, :20] == 1).all())
    assert not found[4].any()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_only_ratios_of_weights_matter_and_extreme_ones_do_no_harm(scale):
    weights = torch.logspace(-34, 0, 40, dtype=torch.float64)[None]
    found = mam.inclusion_probabilities(weights * scale, 17)
    torch.testing.assert_close(found, mam.inclusion_probabilities(weights, 17))
    torch.testing.assert_close(found.sum(), torch.tensor(17.0, dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 1, 3, 6, 7])
def test_the_gradient_is_that_of_differences_and_of_the_equations(k):
    weights = (0.1 + rand(2, 7, seed=3)).requires_grad_()
    counts = torch.tensor([k, 2])
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 5:] = False

    def run(w: Tensor) -> Tensor:
        return mam.inclusion_probabilities(w, counts, valid=valid)

    assert torch.autograd.gradcheck(run, (weights,))
    incoming = rand(2, 7, seed=4)
    (ours,) = torch.autograd.grad(run(weights), weights, incoming)
    reference = mam.reference.inclusion_probabilities(weights, counts, valid=valid)
    (theirs,) = torch.autograd.grad(reference, weights, incoming)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    if 0 < k < 7:
        assert ours[0].abs().max() > 1e-3
    assert not ours[1, 5:].any()


def test_the_gradient_is_the_one_of_the_derivation():
    weights = (0.1 + rand(1, 9, seed=5)).requires_grad_()
    (found,) = torch.autograd.grad(
        mam.inclusion_probabilities(weights, 4), weights, (incoming := rand(1, 9, seed=6))
    )
    time = -torch.log1p(-mam.inclusion_probabilities(weights, 4)) / weights  # the same everywhere
    u = (weights * time).detach()
    g = u * torch.exp(-u)
    expected = g * (incoming - (incoming * g).sum() / g.sum()) / weights.detach()
    torch.testing.assert_close(found, expected)


def test_the_gradient_is_also_there_in_float32_and_in_torch_func():
    weights = (0.1 + rand(3, 60, seed=7)).float()

    def loss(w: Tensor) -> Tensor:
        return (mam.inclusion_probabilities(w, 20) * rand(3, 60).float()).sum()

    exact = torch.autograd.grad(loss(double := weights.double().requires_grad_()), double)[0]
    for found in (
        torch.autograd.grad(loss(single := weights.clone().requires_grad_()), single)[0],
        torch.func.grad(loss)(weights),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


def test_a_second_derivative_and_forward_mode_are_refused():
    weights = rand(1, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(
        mam.inclusion_probabilities(weights, 3).square().sum(), weights, create_graph=True
    )
    with pytest.raises(RuntimeError, match="there is no second derivative"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(
            lambda w: mam.inclusion_probabilities(w, 3), (weights.detach(),), (weights.detach(),)
        )


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_batches_give_empty_results(shape):
    weights = torch.ones(shape, requires_grad=True)
    found = mam.inclusion_probabilities(weights, 0)
    assert found.shape == shape
    found.sum().backward()
    assert weights.grad.shape == shape


def test_is_registered_as_torch_asks_and_compiles():
    weights = rand(3, 20).requires_grad_()
    counts, valid = torch.tensor([1, 5, 9], dtype=torch.int32), rand(3, 20, seed=1) < 0.8
    torch.library.opcheck(
        ops.probabilities.overload, ops.probabilities.flat(weights, counts, valid, "")
    )
    compiled = torch.compile(
        lambda w: mam.inclusion_probabilities(w, counts, valid=valid),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(
        compiled(weights), mam.inclusion_probabilities(weights, counts, valid=valid)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((torch.ones(2, 5), 6), ValueError, "num_samples: expected .* in \\[0, 5\\]; got 6"),
        ((torch.ones(5), 2), ValueError, "weights: expected shape \\(B, L\\)"),
        ((torch.ones(2, 5, dtype=torch.int64), 2), TypeError, "weights: expected float32"),
    ],
)
def test_bad_input_is_an_error_that_says_what_is_wrong(arguments, error, said):
    with pytest.raises(error, match=said):
        mam.inclusion_probabilities(*arguments)


def test_the_time_solves_its_equation_to_rounding():
    weights = (6 * rand(4, 3000, seed=8)).exp()
    _, time = ops.probabilities(
        weights, torch.tensor([1, 10, 900, 2999], dtype=torch.int32), None, ""
    )
    expected = -torch.expm1(-weights * time[:, None]).sum(dim=1)
    torch.testing.assert_close(expected, torch.tensor([1.0, 10, 900, 2999], dtype=torch.float64))
    assert math.isfinite(float(time.max()))
