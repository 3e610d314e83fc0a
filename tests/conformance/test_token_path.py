"""The token path of every backend: attention, its gradients, importance and mask against the
reference.
"""

import pytest
import torch

import mam_kernels as mam
from mam_kernels._core import checks, dispatch
from mam_kernels._core.call import Choice, Weighting
from mam_kernels.testing import cases, inputs
from mam_kernels.testing.check import EPS, check_token_path
from tests.conformance.comparing import misses

CASES = {case.name: case for case in cases.token_cases()}


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name, backend, device, dtype):
    assert misses(check_token_path(CASES[name].to(device, dtype), backend)) == []


@pytest.mark.parametrize("temperature", [0.05, 3.0])
def test_draws_in_proportion_to_the_power_of_the_importance(temperature, backend, device):
    assert (
        misses(check_token_path(CASES["tokens"].to(device, torch.float32), backend, temperature))
        == []
    )


@pytest.mark.parametrize(
    "name", ["tokens", "padded, NaN in the padding", "one buffer for keys and values"]
)
def test_gradients_are_those_of_the_equations(name, backend, device):
    case = CASES[name].to(device, torch.float32)
    exact = case.to(device, torch.float64)
    inputs = [x.clone().requires_grad_() for x in (case.query, case.key, case.value)]
    truths = [x.clone().requires_grad_() for x in (exact.query, exact.key, exact.value)]
    output, logsumexp = mam.latent_attention(*inputs, valid=case.valid, backend=backend)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator).to(device) for x in (output, logsumexp)]

    def loss(output, logsumexp, weights):
        return (output * weights[0]).sum() + (
            torch.where(torch.isfinite(logsumexp), logsumexp, 0.0) * weights[1]
        ).sum()

    loss(output, logsumexp, weights).backward()
    right = mam.reference.latent_attention(*truths, valid=case.valid)
    loss(*right, [w.double() for w in weights]).backward()
    for x, truth in zip(inputs, truths, strict=True):
        assert torch.isfinite(x.grad).all()
        error = (x.grad - truth.grad.nan_to_num()).abs().max() / truth.grad.nan_to_num().abs().max()
        assert error < 1e-5


@pytest.mark.parametrize("width", [16, 32, 128])
def test_a_logsumexp_of_minus_infinity_means_no_attention(width, backend, device, dtype):
    """Even where the scores are finite: importance and gradients of such a latent are 0."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((20, 2, width), (2, 70, 2, width), (2, 70, 2, width))
    )
    scale = width**-0.5
    output, logsumexp = dispatch.implementation("latent_attention", "reference", key)(
        query, key, value, None, scale
    )
    without = torch.zeros_like(logsumexp, dtype=torch.bool)
    without[0, 3], without[1, :, 1] = True, True
    logsumexp = logsumexp.masked_fill(without, -torch.inf)
    output = output.masked_fill(without[..., None], 0.0)
    latents = torch.tensor([1, 3, 17], device=device)
    got = dispatch.implementation("attention_importance", backend, key)(
        query, key, logsumexp, latents, None, scale
    )
    right = mam.reference.attention_importance(query, key, logsumexp, latents, scale=scale)
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(got, right.to(got.dtype), rtol=tolerance, atol=tolerance)
    grad_output = torch.randn(output.shape, generator=generator).to(device, dtype)
    arguments = (grad_output, None, query, key, value, None, output, logsumexp, scale)
    gradients, truths = (
        dispatch.implementation("latent_attention_backward", name, key)(*arguments)
        for name in (backend, "reference")
    )
    for x, truth in zip(gradients, truths, strict=True):
        assert torch.isfinite(x).all()
        largest = float(truth.abs().max())
        torch.testing.assert_close(x, truth, rtol=tolerance, atol=tolerance * largest)
    everywhere = torch.full_like(logsumexp, -torch.inf)
    arguments = (*arguments[:7], everywhere, scale)
    for x in dispatch.implementation("latent_attention_backward", backend, key)(*arguments):
        assert torch.equal(x, torch.zeros_like(x))


def test_gradients_pass_gradcheck_in_float64(backend, device):
    if backend != "reference":
        pytest.skip("float64 is computed by the reference alone")
    case = CASES["narrow heads"].to(device, torch.float64)
    inputs = [x.clone().requires_grad_() for x in (case.query, case.key[:, :7], case.value[:, :7])]
    valid = torch.ones(2, 7, dtype=torch.bool, device=device)
    valid[1, 4:] = False
    assert torch.autograd.gradcheck(
        lambda q, k, v: mam.latent_attention(q, k, v, valid=valid, backend=backend), inputs
    )


def test_second_derivative_is_refused(backend, device):
    case = CASES["narrow heads"].to(device, torch.float32)
    query = case.query.clone().requires_grad_()
    output, _ = mam.latent_attention(query, case.key, case.value, backend=backend)
    (gradient,) = torch.autograd.grad(output.sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_two_runs_give_the_same_bits(backend, device, dtype):
    case = CASES["padded, NaN in the padding"].to(device, dtype)

    def run():
        query = case.query.clone().requires_grad_()
        key, value = case.key.clone().requires_grad_(), case.value.clone().requires_grad_()
        output, logsumexp = mam.latent_attention(
            query, key, value, valid=case.valid, backend=backend
        )
        importance = mam.attention_importance(
            query, key, logsumexp, case.latents, valid=case.valid, backend=backend
        )
        gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
        return output, logsumexp, importance, *gradients

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


def test_the_mask_is_a_function_of_seed_step_and_sample_id(backend, device):
    case = CASES["tokens"].to(device, torch.float32)
    scale = case.key.shape[-1] ** -0.5
    _, logsumexp = mam.latent_attention(case.query, case.key, case.value, backend="reference")

    def run(backend, seed, step):
        ids = torch.tensor([5, 2**31 + 3], device=device)
        draw = checks.draw_source(seed, step, ids, 2, device)
        choice = Choice(None, case.num_masked, 0.0, case.latents, len(case.latents))
        mask = dispatch.implementation("token_mask", backend, case.key)
        arguments = (case.query, case.key, logsumexp, None, scale)
        return mask(*arguments, choice, Weighting(EPS, 1.0), draw)[0]

    assert torch.equal(run(backend, 9, 3), run("reference", 9, 3))
    assert torch.equal(
        run(backend, 9, 3),
        run(backend, torch.tensor(9, device=device), torch.tensor(3, device=device)),
    )
    assert not torch.equal(run(backend, 9, 3), run(backend, 9, 4))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_batches_give_empty_results(shape, backend, device):
    query = torch.randn(4, 2, 8, device=device, requires_grad=True)
    key = torch.zeros(*shape, 2, 8, device=device, requires_grad=True)
    output, logsumexp = mam.latent_attention(query, key, key, backend=backend)
    assert output.shape == (shape[0], 4, 2, 8)
    assert torch.isneginf(logsumexp).all()
    importance = mam.attention_importance(
        query, key, logsumexp, torch.tensor([1], device=device), backend=backend
    )
    assert importance.shape == shape
    output.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))
    assert key.grad.shape == key.shape


@pytest.mark.parametrize("name", ["tokens", "padded, NaN in the padding"])
def test_operations_are_registered_right(name, backend, device):
    case = CASES[name].to(device, torch.float32)
    if (
        case.valid is not None
    ):  # opcheck compares results and their gradients; NaN is not equal to itself
        case = cases.replace(case, key=case.key.nan_to_num(), value=case.value.nan_to_num())
    scale = case.key.shape[-1] ** -0.5
    query, key, value = (x.clone().requires_grad_() for x in (case.query, case.key, case.value))
    ops = torch.ops.mam_kernels
    torch.library.opcheck(
        ops.latent_attention.default, (query, key, value, case.valid, scale, backend)
    )
    plain = [x.detach() for x in (query, key, value)]
    output, logsumexp = ops.latent_attention(*plain, case.valid, scale, backend)
    arguments = (
        torch.ones_like(output),
        torch.ones_like(logsumexp),
        *plain,
        case.valid,
        output,
        logsumexp,
        scale,
        backend,
    )
    torch.library.opcheck(ops.latent_attention_backward.default, arguments)
    arguments = (*plain[:2], logsumexp, case.latents, case.valid, scale, backend)
    torch.library.opcheck(ops.attention_importance.default, arguments)


def test_compiles_whole(backend, device):
    module = mam.MultinomialAttentionMasking(
        input_dim=6, latent_dim=16, num_latents=8, num_heads=2, backend=backend
    ).to(device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 40, 6, generator=generator).to(device)
    valid = inputs.ragged(3, 40, generator).to(device)

    def loss(tokens, seed):
        out = module(tokens, valid=valid, seed=seed)
        return out.mask, out.context.square().sum() + out.penalty

    seed = torch.tensor(4)
    mask, expected = loss(tokens, seed)
    expected_gradient = torch.autograd.grad(expected, module.latents)[0]
    compiled_mask, got = torch.compile(loss, fullgraph=True, backend="aot_eager")(tokens, seed)
    assert torch.equal(mask, compiled_mask)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, module.latents)[0], expected_gradient, rtol=1e-4, atol=1e-6
    )
