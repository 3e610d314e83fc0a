"""Attention of latents over tokens, one equation a line. See README.md beside this file.

The equations are for one cell, so that no tensor holds the scores of a whole batch. Everything is
computed in float32 or better.
"""

import torch
from torch import Tensor

from ..._core.arguments import require_indices
from ..._core.call import Choice, Draw, Weighting
from ..selection.reference import select


def _accumulated(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def _row(flags: Tensor | None, b: int) -> Tensor | None:
    return None if flags is None else flags[b]


def _kept(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """The tokens of one cell (L, H, d), padding as zeros: what it holds must not matter, and 0 *
    NaN is NaN.
    """
    return tokens if valid is None else tokens.masked_fill(~valid[:, None, None], 0.0)


def cell_scores(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """``S = scale Q K^T``, -inf at padding; (N, H, L)."""
    scores = scale * torch.einsum("nhd,lhd->nhl", query, _kept(key, valid))
    return scores if valid is None else scores.masked_fill(~valid, -torch.inf)


def cell_logsumexp(scores: Tensor) -> Tensor:
    """``log sum_l exp S``; -inf for a cell without tokens; (N, H)."""
    return torch.logsumexp(scores, dim=-1)


def cell_attention(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """``A = exp(S - logsumexp)``; 0 at padding and for a cell without tokens; (N, H, L)."""
    empty = torch.isneginf(logsumexp)
    attention = torch.exp(scores - torch.where(empty, 0.0, logsumexp)[..., None])
    return torch.where(empty[..., None] | torch.isneginf(scores), 0.0, attention)


def forward(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``O = A V`` and the log-sum-exp of the scores; (B, N, H, d) and (B, N, H)."""
    dtype = query.dtype
    query, key, value = _accumulated(query, key, value)
    outputs, sums = [], []
    for b in range(key.shape[0]):
        scores = cell_scores(query, key[b], _row(valid, b), scale)
        sums.append(cell_logsumexp(scores))
        attention = cell_attention(scores, sums[-1])
        outputs.append(torch.einsum("nhl,lhd->nhd", attention, _kept(value[b], _row(valid, b))))
    return torch.stack(outputs).to(dtype), torch.stack(sums)


def logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """The log-sum-exp of the scores alone; (B, N, H)."""
    query, key = _accumulated(query, key)
    return torch.stack(
        [
            cell_logsumexp(cell_scores(query, key[b], _row(valid, b), scale))
            for b in range(key.shape[0])
        ]
    )


def backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``forward``: with ``A`` and ``delta = sum_d dO O - dlse``,

    ``dV = A^T dO``, ``dS = A * (dO V^T - delta)``, ``dQ = scale dS K``, ``dK = scale dS^T Q``.
    """
    dtype = query.dtype
    grad_output, query, key, value, output = _accumulated(grad_output, query, key, value, output)
    delta = (grad_output * output).sum(dim=-1)  # (B, N, H)
    if grad_logsumexp is not None:
        delta = delta - grad_logsumexp
    grad_query, grad_keys, grad_values = torch.zeros_like(query), [], []
    for b in range(key.shape[0]):
        kept_key, kept_value = _kept(key[b], _row(valid, b)), _kept(value[b], _row(valid, b))
        attention = cell_attention(cell_scores(query, key[b], _row(valid, b), scale), logsumexp[b])
        grad_values.append(torch.einsum("nhl,nhd->lhd", attention, grad_output[b]))
        grad_attention = torch.einsum("nhd,lhd->nhl", grad_output[b], kept_value)
        grad_scores = attention * (grad_attention - delta[b][..., None])
        grad_query += scale * torch.einsum("nhl,lhd->nhd", grad_scores, kept_key)
        grad_keys.append(scale * torch.einsum("nhl,nhd->lhd", grad_scores, query))
    return (
        grad_query.to(dtype),
        torch.stack(grad_keys).to(dtype),
        torch.stack(grad_values).to(dtype),
    )


def importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
) -> Tensor:
    """``s_l = sum_{n in R} sum_h A[n, h, l]``; (B, L)."""
    require_indices("latents", latents, len(query))
    query, key = _accumulated(query, key)
    rows = []
    for b in range(key.shape[0]):
        scores = cell_scores(query[latents], key[b], _row(valid, b), scale)
        rows.append(cell_attention(scores, logsumexp[b, latents]).sum(dim=(0, 1)))
    return torch.stack(rows)


def mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    valid: Tensor | None,
    scale: float,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
) -> tuple[Tensor, Tensor]:
    """The draw, and the importance of the chosen latents; (B, L) bool and (B, L)."""
    num_masked, latents = choice.given()
    weights = importance(query, key, logsumexp, latents, valid, scale)
    maskable = valid if choice.maskable is None else choice.maskable
    return select(weights, num_masked, maskable, draw, weighting), weights
