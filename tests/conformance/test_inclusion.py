"""Inclusion probabilities on every backend, against the reference in float64."""

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels.ops.inclusion import ops
from mam_kernels.testing import cases
from mam_kernels.testing.tolerances import FLOORS, row_error
from tests.fuzz.inclusion import arrival_time

PROBABILITY = 1e-6
"""Relative error of a probability: 16 roundings of float32, in the weight relative to the largest,
the time, their product, the exponential, and the sum that decides the time."""

CASES = {case.name: case for case in cases.selection_cases()}


def spread(deviation: float, positions: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return (deviation * torch.randn(3, positions, generator=generator)).exp()


WIDE = {
    "log-normal, 1": (spread(1, 2000), [1, 600, 1999]),
    "log-normal, 3": (spread(3, 2000), [1, 600, 1999]),
    "log-normal, 8, a sample of which misses the heaviest": (spread(8, 3000), [2, 900, 2990]),
    "over 34 decades": (torch.logspace(-34, 0, 40).expand(3, -1), [1, 17, 39]),
    "two groups": (torch.cat([torch.full((3, 700), 1e3), torch.full((3, 900), 1e-6)], 1),
                   [700, 701, 1000]),
    "small": (torch.rand(3, 300, generator=torch.Generator().manual_seed(1)) * 1e-33, [1, 9, 299]),
    "large": (torch.rand(3, 300, generator=torch.Generator().manual_seed(1)) * 1e37, [1, 9, 299]),
}  # fmt: skip


def require_right(weights: Tensor, counts: Tensor, valid: Tensor | None, backend: str) -> None:
    """Probabilities and their gradient."""
    found, time = ops.probabilities(weights, counts, valid, backend)
    right, right_time = ops.probabilities(weights.double(), counts, valid, "reference")
    assert found.dtype == torch.float32
    error = (found.double() - right).abs()
    assert bool((error <= PROBABILITY * right).all()), float((error / right).nan_to_num().max())
    assert torch.equal(time.isinf(), right_time.isinf())
    grad = torch.randn(weights.shape, generator=torch.Generator().manual_seed(3)).to(weights.device)
    ours = ops.probabilities_backward(grad, weights, found, time, backend)
    theirs = ops.probabilities_backward(
        grad.double(), weights.double(), right, right_time, "reference"
    )
    assert ours.dtype == weights.dtype
    assert row_error(ours, theirs) <= FLOORS[weights.dtype]


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name, backend, device, dtype):
    case = CASES[name].to(device, dtype)
    require_right(case.weights, case.num_samples, case.valid, backend)


@pytest.mark.parametrize("name", WIDE)
def test_any_spread_of_weights_is_solved(name, backend, device):
    weights, counts = WIDE[name]
    counts = torch.tensor(counts, dtype=torch.int32, device=device)
    require_right(weights.to(device), counts, None, backend)


@pytest.mark.parametrize("positions", [1, 2, 7, 8, 63, 511, 512, 513, 1031, 5000])
def test_any_length_against_an_oracle(positions, backend, device):
    weights = 1 + torch.rand(3, positions, generator=torch.Generator().manual_seed(positions))
    counts = torch.tensor([positions // 3, positions - 1, positions], dtype=torch.int32)
    found, _ = ops.probabilities(weights.to(device), counts.to(device), None, backend)
    plain = weights.double().numpy()
    time = torch.from_numpy(arrival_time(plain, counts.numpy()))
    right = -torch.expm1(-weights.double() * time[:, None])
    torch.testing.assert_close(found.cpu().double(), right, rtol=PROBABILITY, atol=1e-30)


def test_two_runs_give_the_same_bits(backend, device, dtype):
    case = CASES["skewed"].to(device, dtype)
    first, second = (
        ops.probabilities(case.weights, case.num_samples, None, backend) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_gradient_of_zeros_and_one_of_ones_are_zero(backend, device):
    weights = spread(1, 500).to(device).requires_grad_()
    (found,) = torch.autograd.grad(
        mam.inclusion_probabilities(weights, 100, backend=backend).sum(), weights
    )
    scale = mam.inclusion_probabilities(weights, 100, backend=backend) / weights
    assert float((found / scale).detach().abs().max()) < 1e-6  # they always sum to k


def test_a_weight_that_is_never_drawn_has_no_gradient_whatever_its_probability(
    backend, device, dtype
):
    """The operation may be called with what no forward pass gives."""
    never = torch.tensor([-1.0, -6e4, 0.0, -0.0, float("nan"), float("inf")]).to(device, dtype)
    weights, counts = spread(1, 90).to(device, dtype), torch.tensor([5, 30, 60], dtype=torch.int32)
    allowed = torch.arange(90, device=device).remainder(7).ne(3).expand(3, -1)
    chances, time = ops.probabilities(weights, counts.to(device), allowed, backend)
    grad = torch.randn(3, 90, generator=torch.Generator().manual_seed(4)).to(device)
    right = ops.probabilities_backward(grad, weights, chances, time, backend)
    spoiled = torch.where(allowed, weights, never.repeat(15).expand(3, -1))
    said = chances.masked_fill(~allowed, 0.5)
    found = ops.probabilities_backward(grad, spoiled, said, time, backend)
    assert torch.equal(found, right)
    assert not bool(found[~allowed].any())
    assert bool(found[allowed].any())


def test_operation_is_registered_right(backend, device):
    weights = spread(1, 40).to(device).requires_grad_()
    counts = torch.tensor([1, 5, 9], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.mam_kernels.inclusion_probabilities.default, (weights, counts, None, backend)
    )
