"""Gradients of the token path by torch's matrix products on blocks: what the CPU runs.

They hold the scores of one block at a time, at most ``BLOCK_ELEMENTS`` of them, whatever B and L
are; sums are float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**19  # scores held at once, 2 MiB: what a core's second-level cache keeps


class Block(NamedTuple):
    """Some rows and some of their positions."""

    rows: slice
    positions: slice


def _row_blocks(rows: int, positions: int, scores_per_position: int) -> Iterator[list[Block]]:
    """All blocks of the same rows, in turn: several short rows together, or one long row in
    parts.
    """
    width = max(1, min(positions, BLOCK_ELEMENTS // scores_per_position))
    height = max(1, min(rows, BLOCK_ELEMENTS // (scores_per_position * positions)))
    for row in range(0, rows, height):
        span = slice(row, min(row + height, rows))
        yield [
            Block(span, slice(start, min(start + width, positions)))
            for start in range(0, positions, width)
        ]


def _taken(x: Tensor, block: Block, valid: Tensor | None) -> Tensor:
    """A block of keys or values as (b, H, l, d) float32; zero where not valid, since padding may
    hold NaN.
    """
    part = x[block.rows, block.positions].to(torch.float32)
    if valid is not None:
        part = torch.where(valid[block.rows, block.positions, None, None], part, 0.0)
    return part.transpose(1, 2)


def _scores(query: Tensor, key: Tensor, block: Block, valid: Tensor | None) -> Tensor:
    """(b, H, N, l): -inf where not valid.

    The query (H, N, d) is scaled already, the key block is (b, H, l, d).
    """
    scores = torch.matmul(query, key.transpose(-1, -2))
    if valid is not None:
        scores.masked_fill_(~valid[block.rows, None, None, block.positions], -torch.inf)
    return scores


def _attention(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """exp(scores - logsumexp), in place; 0 in rows without valid positions.

    logsumexp: (b, H, N).
    """
    return scores.sub_(logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)[..., None]).exp_()


def _heads_first(x: Tensor) -> Tensor:
    """(..., N, H, d) -> (..., H, N, d) in float32."""
    return x.to(torch.float32).transpose(-3, -2).contiguous()


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
    """Gradients of query (N, H, d), key and value (B, L, H, d), in their types."""
    rows, positions = key.shape[:2]
    scaled = _heads_first(query) * scale
    grad_query = torch.zeros_like(scaled)  # (H, N, d)
    grad_key = torch.empty_like(key, memory_format=torch.contiguous_format)
    grad_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    for blocks in _row_blocks(rows, positions, 2 * query.shape[0] * query.shape[1]):
        span = blocks[0].rows
        grad_rows = _heads_first(grad_output[span])
        delta = (grad_rows * _heads_first(output[span])).sum(dim=-1)  # (b, H, N)
        if grad_logsumexp is not None:
            delta -= grad_logsumexp[span].transpose(1, 2)
        for block in blocks:
            kept_key, kept_value = _taken(key, block, valid), _taken(value, block, valid)
            attention = _attention(
                _scores(scaled, kept_key, block, valid), logsumexp[span].transpose(1, 2)
            )
            grad_value[block.rows, block.positions] = _transposed_product(
                attention, grad_rows, value.dtype
            )
            grad_scores = (
                torch.matmul(grad_rows, kept_value.transpose(-1, -2))
                .sub_(delta[..., None])
                .mul_(attention)
            )
            grad_query += scale * torch.matmul(grad_scores, kept_key).sum(dim=0)
            grad_key[block.rows, block.positions] = _transposed_product(
                grad_scores, scaled, key.dtype
            )
    return grad_query.transpose(0, 1).to(query.dtype).contiguous(), grad_key, grad_value


def _transposed_product(scores: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, H, N, l) and (b, H, N, d) -> (b, l, H, d)."""
    return torch.matmul(scores.transpose(-1, -2), x).transpose(1, 2).to(dtype)
