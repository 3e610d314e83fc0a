"""The token path as one step of Triton kernels, projection included, against the float64
reference.

The step is called by itself, without the module, so that every launch shape is reached: widths of
heads, lengths that fill no tile, splits of a small batch, padding that holds NaN, both contexts.
"""

import copy
import os

import pytest
import torch

import mam_kernels as mam
from mam_kernels._core.call import Choice, Draw, Parameters, Weighting
from mam_kernels.testing import cases

pytestmark = pytest.mark.skipif(
    "triton" not in os.environ.get("MAM_TEST_BACKENDS", ""), reason="tests Triton kernels"
)


def masking(width: int, heads: int, inputs: int, latents: int, context_from: str):
    torch.manual_seed(0)
    return mam.MultinomialAttentionMasking(
        input_dim=inputs,
        latent_dim=width,
        num_latents=latents,
        num_heads=heads,
        context_from=context_from,
    )


def parameters_of(module) -> Parameters:
    attention = module.cross_attention
    return Parameters(
        module.latents, attention.in_proj_weight, attention.in_proj_bias, module.input_proj.weight,
        module.input_proj.bias, attention.out_proj.weight, attention.out_proj.bias,
    )  # fmt: skip


def tokens_and_padding(rows: int, positions: int, inputs: int, padded: bool):
    generator = torch.Generator().manual_seed(positions)
    tokens = torch.randn(rows, positions, inputs, generator=generator)
    if not padded:
        return tokens, None
    valid = cases.ragged(rows, positions, generator)
    return tokens.masked_fill(~valid[..., None], torch.nan), valid


def compare_step(module, tokens, valid, device, tolerance=1e-5, dtype=torch.float32, maskable=None):
    from mam_kernels.ops.latent_attention import triton

    parameters = Parameters(*(x.detach().to(device) for x in parameters_of(module)))
    tokens = tokens.to(device, dtype)
    choice = Choice(maskable, None, module.mask_ratio, None, module.num_drawn_latents)
    visible = module.context_from == "visible"
    arguments = (
        module.num_heads,
        choice,
        Weighting(module.eps, 1.0),
        Draw(torch.tensor(11), torch.tensor(2), None),
        visible,
    )
    step = triton.step
    mask, importance, context, penalty, state = step(tokens, valid, parameters, *arguments, True)
    without = step(tokens, valid, parameters, *arguments, False)
    assert without[-1].keys_values.numel() == 0
    for one, other in zip((mask, importance, context, penalty), without, strict=False):
        assert torch.equal(one, other)

    exact = copy.deepcopy(module).double()
    exact.backend = "reference"
    leaf = tokens.double().requires_grad_()
    right = exact(leaf, valid, maskable=maskable, seed=11, step=2)
    if dtype == torch.float32:
        assert torch.equal(mask, right.mask)
    if valid is not None:
        assert not mask[~valid].any()
        assert not importance[~valid].any()
    torch.testing.assert_close(importance.double(), right.importance, rtol=tolerance, atol=0.0)
    if visible and dtype != torch.float32:
        return
    torch.testing.assert_close(context.double(), right.context, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(penalty.double(), right.penalty, rtol=tolerance, atol=tolerance)

    scale = torch.linspace(-1, 1, context.shape[1], device=context.device)
    ((right.context * scale).sum() + 1e-2 * right.penalty).backward()
    grad_context, grad_penalty = scale.expand(context.shape), torch.tensor(1e-2)
    grad_tokens, gradients = triton.step_backward(
        grad_context, grad_penalty, tokens, valid, parameters, module.num_heads, state, True
    )
    truths = [leaf.grad, *(x.grad for x in parameters_of(exact))]
    for x, truth in zip((grad_tokens, *gradients), truths, strict=True):
        assert torch.isfinite(x).all()
        assert x.shape == truth.shape
        assert (x.double() - truth).abs().max() <= 4 * tolerance * truth.abs().max()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize(
    ("width", "heads"), [(64, 4), (64, 2), (128, 2), (128, 1), (48, 4), (24, 3)]
)
def test_every_width_of_heads(width, heads, context_from, padded, backend, device):
    module = masking(width, heads, 40, 20, context_from)
    compare_step(module, *tokens_and_padding(3, 150, 40, padded), device)
