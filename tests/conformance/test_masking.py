"""The masking step as a module, from tokens to mask, on every backend, against the same module on
the float64 reference.
"""

import copy

import pytest
import torch

import mam_kernels as mam
from mam_kernels.testing import inputs


def twin(module: mam.MultinomialAttentionMasking) -> mam.MultinomialAttentionMasking:
    """The same module in float64 on the reference."""
    exact = copy.deepcopy(module).double()
    exact.backend = "reference"
    return exact


def values_and_padding(layout: str, device: torch.device):
    generator = torch.Generator().manual_seed(7)
    values = inputs.expression(4, 120, 0.2, generator)
    valid = inputs.ragged(4, 120, generator)
    if layout == "csr":
        return values.to_sparse_csr().to(device), None
    return (
        (values.to(device), None)
        if layout == "dense"
        else (values.masked_fill(~valid, torch.nan).to(device), valid.to(device))
    )


@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("layout", ["dense", "padded", "csr"])
def test_values_to_mask_and_context(layout, context_from, backend, device):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        latent_dim=24, num_latents=12, num_heads=4, context_from=context_from, backend=backend
    ).to(device)
    values, valid = values_and_padding(layout, device)
    _same(module, values, valid)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("layout", ["dense", "padded", "csr"])
def test_zeros_drawn_apart(layout, context_from, counted, backend, device):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        latent_dim=24, num_latents=12, num_heads=4, context_from=context_from, backend=backend
    ).to(device)
    values, valid = values_and_padding(layout, device)
    dense = values.to_dense() if layout == "csr" else values
    there = torch.ones_like(dense, dtype=torch.bool) if valid is None else valid
    zero, others = there & (dense == 0), there & (dense != 0)
    counts = [torch.floor(x.sum(dim=1) * ratio).long() for x, ratio in ((others, 0.5), (zero, 0.1))]
    shares = {"mask_ratio": 0.5, "zero_ratio": 0.1}
    if counted:
        shares = dict(zip(("num_masked", "num_zeros"), counts, strict=True))
    out = module(values, valid, seed=11, step=2, **shares)
    together = module(values, valid, others, seed=11, step=2, num_masked=counts[0])
    zeros = mam.reference.sample_without_replacement(zero.float(), counts[1], seed=11, step=2)
    assert torch.equal(out.mask, together.mask | zeros)
    assert zeros.any()
    assert torch.equal(out.importance, torch.where(others, together.importance, 0.0))
    if context_from == "all":
        assert torch.equal(out.context, together.context)
    _same(module, values, valid, **shares)


@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("padded", [False, True])
def test_embeddings_to_mask_and_context(padded, context_from, backend, device):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        input_dim=10,
        latent_dim=24,
        num_latents=12,
        num_heads=4,
        context_from=context_from,
        backend=backend,
    ).to(device)
    generator = torch.Generator().manual_seed(7)
    tokens, valid = torch.randn(4, 60, 10, generator=generator), None
    if padded:
        valid = inputs.ragged(4, 60, generator)
        tokens = tokens.masked_fill(~valid[..., None], torch.nan)
        valid = valid.to(device)
    _same(module, tokens.to(device), valid)


def _same(
    module: mam.MultinomialAttentionMasking,
    tokens: torch.Tensor,
    valid: torch.Tensor | None,
    **asked: object,
) -> None:
    exact = twin(module)
    embedded = module.input_dim is not None
    ours, theirs = (x.detach().clone().requires_grad_(embedded) for x in (tokens, tokens.double()))
    out = module(ours, valid, seed=11, step=2, **asked)
    truth = exact(theirs, valid, seed=11, step=2, **asked)
    assert torch.equal(out.mask, truth.mask)
    torch.testing.assert_close(out.importance.double(), truth.importance, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(out.context.double(), truth.context, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.penalty.double(), truth.penalty, rtol=1e-5, atol=1e-6)
    if valid is not None:
        assert not out.mask[~valid].any()
        assert not out.importance[~valid].any()
    scale = torch.linspace(-1, 1, out.context.shape[1], device=out.context.device)
    ((out.context * scale).sum() + 1e-2 * out.penalty).backward()
    ((truth.context * scale).sum() + 1e-2 * truth.penalty).backward()
    pairs = list(zip(module.parameters(), exact.parameters(), strict=True))
    if embedded:
        pairs.append((ours, theirs))
    for x, right in pairs:
        assert torch.isfinite(x.grad).all()
        assert ((x.grad - right.grad).abs().max() / right.grad.abs().max()) < 2e-5


@pytest.mark.parametrize("input_dim", [None, 6])
def test_a_visible_context_does_not_see_hidden_values(input_dim, backend, device):
    torch.manual_seed(0)
    visible = mam.MultinomialAttentionMasking(
        input_dim,
        latent_dim=16,
        num_latents=8,
        num_heads=2,
        context_from="visible",
        backend=backend,
    ).to(device)
    everything = copy.deepcopy(visible)
    everything.context_from = "all"
    values, _ = values_and_padding("dense", device)
    tokens = (
        values
        if input_dim is None
        else torch.randn(4, 60, input_dim, generator=torch.Generator().manual_seed(7)).to(device)
    )
    out = visible(tokens, seed=1)
    # Where the hidden tokens hold NaN and count as padding, a context of everything is one of the
    # visible; the leaking one differs.
    hidden = out.mask if input_dim is None else out.mask[..., None]
    expected = everything(tokens.masked_fill(hidden, torch.nan), ~out.mask, num_masked=0)
    leaking = everything(tokens, seed=1)
    assert out.mask.any()
    assert torch.equal(out.mask, leaking.mask)
    torch.testing.assert_close(out.context, expected.context)
    torch.testing.assert_close(out.penalty, expected.penalty)
    assert (leaking.context - expected.context).abs().max() > 1e-4


def test_a_cell_without_tokens(backend, device):
    torch.manual_seed(0)
    valid = torch.tensor([[True, True, False], [False, False, False]], device=device)
    for input_dim, shape in ((None, (2, 3)), (5, (2, 3, 5))):
        module = mam.MultinomialAttentionMasking(
            input_dim, latent_dim=8, num_latents=4, num_heads=2, backend=backend
        ).to(device)
        tokens = torch.full(shape, torch.nan, device=device)
        tokens[0, :2] = 1.0
        out = module(tokens, valid, num_masked=torch.tensor([1, 3], device=device), seed=0)
        assert out.mask.sum(dim=1).tolist() == [1, 0]
        assert torch.equal(out.importance[1], torch.zeros(3, device=device))
        torch.testing.assert_close(out.context[1], module.cross_attention.out_proj.bias)
        assert torch.isfinite(out.penalty)


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_half_precision_tokens(compute, backend, device):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        input_dim=12, latent_dim=32, num_latents=8, num_heads=2, backend=backend
    ).to(device)
    tokens = torch.randn(3, 50, 12, generator=torch.Generator().manual_seed(1)).to(device, compute)
    out, truth = module(tokens, seed=0), twin(module)(tokens.double(), seed=0)
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 6e-2}[compute]
    torch.testing.assert_close(out.context.double(), truth.context, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out.importance.double(), truth.importance, rtol=tolerance, atol=0.0)
    assert out.mask.sum(dim=1).tolist() == [15, 15, 15]


@pytest.mark.parametrize("input_dim", [None, 10])
def test_replays_in_a_cuda_graph(input_dim, backend, device):
    if device.type != "cuda" or backend == "reference":
        pytest.skip("a CUDA graph needs a GPU, and the reference waits for it")
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        input_dim, latent_dim=32, num_latents=8, num_heads=2, backend=backend
    ).to(device)
    values, _ = values_and_padding("dense", device)
    tokens = values if input_dim is None else torch.randn(*values.shape, input_dim, device=device)
    seed, step = torch.tensor(3, device=device), torch.zeros((), dtype=torch.int64, device=device)

    def run():
        with torch.no_grad():
            return module(tokens, seed=seed, step=step)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # what is compiled or loaded at the first call
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for number in (0, 5):
        step.fill_(number)
        graph.replay()
        with torch.no_grad():
            expected = module(tokens, seed=3, step=number)
        assert torch.equal(out.mask, expected.mask)
        assert torch.equal(out.context, expected.context)
