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
from mam_kernels.testing import inputs
from tests.conformance.comparing import all_pairs

CONTEXTS = ["all", "visible"]
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


def tokens_and_padding(rows: int, positions: int, input_dim: int, padded: bool):
    generator = torch.Generator().manual_seed(positions)
    tokens = torch.randn(rows, positions, input_dim, generator=generator)
    if not padded:
        return tokens, None
    valid = inputs.ragged(rows, positions, generator)
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
    largest = max(float(x.abs().max()) for x in truths)
    for x, truth in zip((grad_tokens, *gradients), truths, strict=True):
        assert torch.isfinite(x).all()
        assert x.shape == truth.shape
        # With one token the scores do not matter: the gradient of the latents is 0.
        scale = max(float(truth.abs().max()), 1e-2 * largest)
        assert (x.double() - truth).abs().max() <= 4 * tolerance * scale


# The kernels branch on the padding and on what is hidden, whatever the width of their tiles.
@pytest.mark.parametrize(
    ("width_and_heads", "context_from", "padded"),
    all_pairs([(64, 4), (64, 2), (128, 2), (128, 1), (48, 4), (24, 3)], CONTEXTS, [False, True]),
)
def test_every_width_of_heads(width_and_heads, context_from, padded, backend, device):
    module = masking(*width_and_heads, 40, 20, context_from)
    compare_step(module, *tokens_and_padding(3, 150, 40, padded), device)


# Cells that are split take both contexts below.
@pytest.mark.parametrize(
    ("rows", "positions", "inputs", "latents", "context_from"),
    [
        (1, 1100, 16, 5, "all"),  # a small batch, whose cells are split among programs
        (2, 1, 16, 1, "all"),
        (2, 1, 16, 1, "visible"),
        (2, 129, 16, 3, "visible"),  # one token more than a tile
        (2, 60, 160, 40, "all"),  # features in three parts
        (2, 60, 300, 8, "all"),  # tokens too wide to be projected in the same kernel
        (2, 60, 300, 8, "visible"),
        (2, 60, 16, 150, "visible"),  # more latents than a program takes
    ],
)
def test_every_shape(rows, positions, inputs, latents, context_from, backend, device):
    module = masking(32, 2, inputs, latents, context_from)
    compare_step(module, *tokens_and_padding(rows, positions, inputs, False), device)


@pytest.mark.parametrize("context_from", CONTEXTS)
def test_cells_that_are_split_and_padded(context_from, backend, device):
    module = masking(32, 2, 16, 5, context_from)
    compare_step(module, *tokens_and_padding(2, 1100, 16, True), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_byte_tokens(dtype, backend, device):
    module = masking(64, 2, 40, 20, "all")
    tokens, valid = tokens_and_padding(3, 150, 40, True)
    compare_step(module, tokens.to(dtype).float(), valid, device, tolerance=3e-2, dtype=dtype)


def test_some_tokens_may_not_be_hidden(backend, device):
    module = masking(64, 2, 40, 20, "all")
    tokens, valid = tokens_and_padding(3, 150, 40, True)
    maskable = valid & (torch.rand(valid.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    compare_step(module, tokens, valid, device, maskable=maskable)


def test_two_runs_give_the_same_bits(backend, device):
    module = masking(64, 2, 40, 20, "all")
    tokens, valid = tokens_and_padding(3, 150, 40, True)
    seed = {"seed": 3, "step": 1}
    module.backend = backend
    runs = []
    for _ in range(2):
        leaf = tokens.clone().requires_grad_()
        out = module(leaf, valid, **seed)
        gradients = torch.autograd.grad(
            out.context.sum() + out.penalty, [leaf, *module.parameters()]
        )
        runs.append([*out, *gradients])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_latents_block_by_block(padded, backend, device, monkeypatch):
    """The kernels that float32 and wide heads take on a GPU."""
    from mam_kernels.ops.latent_attention.triton import gradient

    monkeypatch.setattr(gradient, "one_pass", lambda query: None)
    module = masking(64, 2, 40, 20, "all")
    compare_step(module, *tokens_and_padding(3, 150, 40, padded), device)
