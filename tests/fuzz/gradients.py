"""Gradients: of the masking step by its parameters and tokens, and of the attention over tokens."""

import numpy as np
import torch
from torch import Tensor

import mam_kernels as mam

from . import cells, layouts, steps
from .source import Source, Wrong

SHARE = 3e-4  # of the largest gradient of a tensor, or a tenth of that of all: for float32 sums


def published(p: dict[str, Tensor], x: Tensor, exists: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Context and penalty in plain torch, from tokens (B, L, D): what autograd differentiates."""
    width = p["latents"].shape[1]
    x = torch.where(exists[..., None], x, 0.0)
    tokens = x @ p["input_proj.weight"].T + p["input_proj.bias"]
    weights = p["cross_attention.in_proj_weight"].split(width)
    biases = p["cross_attention.in_proj_bias"].split(width)
    query, key, value = (
        (source @ weight.T + bias).unflatten(-1, (heads, width // heads))
        for source, weight, bias in zip(
            (p["latents"], tokens, tokens), weights, biases, strict=True
        )
    )
    score = torch.einsum("nhd,blhd->bnhl", query, key) * (width // heads) ** -0.5
    score = score.masked_fill(~exists[:, None, None, :], -torch.inf)
    there = exists.any(dim=1)[:, None, None, None]
    attention = torch.softmax(torch.where(there, score, 0.0), dim=-1) * there
    output = torch.einsum("bnhl,blhd->bnhd", attention, value).flatten(2)
    output = output @ p["cross_attention.out_proj.weight"].T + p["cross_attention.out_proj.bias"]
    return output.mean(dim=1), output.square().sum() / max(len(x), 1)


def step(source: Source) -> str:
    """The gradients of a masking step are those of the published computation."""
    embedded = source.chance(40)
    rows, positions = source.between(1, 3), source.one_of([1, 2, 3, 7, 16, 33, 65])
    dtype = layouts.DTYPES[source.one_of(["float32", "float32", "float64"])]
    made = steps.config(source, 3 if embedded else None, dtype)._replace(size=0.3)
    module = steps.module_of(made)
    array = source.numbers.exponential(1.0, (rows, positions, 3 if embedded else 1))
    array = np.where(source.numbers.random(array.shape) < source.one_of([1.0, 0.3]), array, 0.0)
    if embedded:
        x, truth = layouts.laid(source, array, dtype)
        x = x.detach().requires_grad_()
    else:
        x, truth = cells.matrix(source, array[..., 0], dtype)
        truth = truth[..., None]
    valid, exists = layouts.flags(source, (rows, positions))
    use = source.one_of(["both", "context", "penalty"])
    source.calling("module", config=made, tokens=x, valid=valid, use=use)
    out = module(x, valid=valid, seed=3)
    direction = torch.from_numpy(source.numbers.standard_normal(out.context.shape))
    loss = torch.zeros((), dtype=torch.float64)
    if use != "penalty":
        loss = loss + (out.context.double() * direction).sum()
    if use != "context":
        loss = loss + 0.1 * out.penalty.double()
    wanted = [*module.parameters(), *([x] if embedded else [])]
    got = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    names = [name for name, _ in module.named_parameters()]
    exact = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    tokens = torch.from_numpy(truth).clone().requires_grad_(embedded)
    seen = torch.from_numpy(exists)
    if made.context_from == "visible":
        seen = seen & ~out.mask
    context, penalty = published(exact, tokens, seen, made.num_heads)
    right_loss = torch.zeros((), dtype=torch.float64)
    if use != "penalty":
        right_loss = right_loss + (context * direction).sum()
    if use != "context":
        right_loss = right_loss + 0.1 * penalty
    leaves = [*exact.values(), *([tokens] if embedded else [])]
    right = torch.autograd.grad(right_loss, leaves, allow_unused=True, materialize_grads=True)
    _compare([*names, "tokens"], got, right)
    return "right"


def attention(source: Source) -> str:
    """The gradients of the attention over tokens are those of a softmax."""
    rows, positions = source.between(1, 3), source.one_of([1, 2, 3, 7, 16, 33])
    latents, heads, width = source.between(1, 4), source.between(1, 3), source.one_of([4, 1, 3, 8])
    dtype = layouts.DTYPES[source.one_of(["float32", "float32", "float64", "bfloat16"])]
    shapes = [(latents, heads, width), *2 * [(rows, positions, heads, width)]]
    made = [layouts.laid(source, source.numbers.standard_normal(shape), dtype) for shape in shapes]
    inputs = [x.detach().requires_grad_() for x, _ in made]
    exact = [torch.from_numpy(x).clone().requires_grad_() for _, x in made]
    valid, exists = layouts.flags(source, (rows, positions))
    use = source.one_of(["both", "output", "logsumexp"])
    backend = source.one_of([None, "reference"])
    source.calling("latent_attention", inputs=inputs, valid=valid, use=use, backend=backend)
    output, logsumexp = mam.latent_attention(*inputs, valid=valid, backend=backend)

    query, key, value = exact
    there = torch.from_numpy(exists)
    score = torch.einsum("nhd,blhd->bnhl", query, key) * width**-0.5
    score = score.masked_fill(~there[:, None, None, :], -torch.inf)
    occupied = there.any(dim=1)
    safe = torch.where(occupied[:, None, None, None], score, 0.0)
    attended = torch.softmax(safe, dim=-1) * occupied[:, None, None, None]
    right_output = torch.einsum("bnhl,blhd->bnhd", attended, value)
    sums = torch.logsumexp(safe, dim=-1) * occupied[:, None, None]

    losses = []
    for results in ((output, logsumexp), (right_output, sums)):
        loss = torch.zeros((), dtype=torch.float64)
        numbers = np.random.default_rng(1)
        for name, result in zip(("output", "logsumexp"), results, strict=True):
            direction = torch.from_numpy(numbers.standard_normal(tuple(result.shape)))
            if use in (name, "both"):
                kept = torch.where(torch.isfinite(result), result, 0.0).double()
                loss = loss + (kept * direction).sum()
        losses.append(loss)
    got, right = (
        torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)
        for loss, of in zip(losses, (inputs, exact), strict=True)
    )
    _compare(("query", "key", "value"), got, right, layouts.UNITS[dtype])
    return "right"


def _compare(names, got, right, narrow: float = 0.0) -> None:
    """Each gradient to a share of its largest element, or of the largest of all."""
    largest = max((float(x.abs().max()) for x in right if x.numel()), default=0.0)
    for name, ours, theirs in zip(names, got, right, strict=False):
        if ours.shape != theirs.shape:
            raise Wrong(f"gradient of {name}: shape {tuple(ours.shape)}")
        if not theirs.numel():
            continue
        error = float((ours.double() - theirs).abs().max())
        allowed = (SHARE + 40 * narrow) * (float(theirs.abs().max()) + 0.1 * largest) + 1e-30
        if not error <= allowed:
            raise Wrong(f"gradient of {name}: off by {error:.1e}, allowed {allowed:.1e}")
