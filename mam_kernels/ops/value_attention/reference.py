"""Attention over scalar values by its exact collapse, one equation a line. See README.md beside
this file.

The equations are for one cell; its zeros enter through their number alone.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..._core.call import Cells, Choice, Draw, Weighting
from ..._core.csr import require_sound
from ..selection.reference import select


class Cell(NamedTuple):
    """One row: the values that are not zero, where they stand, and where the zeros stand."""

    values: Tensor  # (S,)
    columns: Tensor  # (S,) int64
    zeros: Tensor  # (L,) bool

    @property
    def num_zeros(self) -> Tensor:
        return self.zeros.sum()


def dense_cell(values: Tensor, valid: Tensor | None) -> Cell:
    """A row (L,) of values, of which only the valid ones exist."""
    exists = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    columns = (exists & (values != 0)).nonzero()[:, 0]
    return Cell(values[columns], columns, exists & (values == 0))


def sparse_cell(values: Tensor, columns: Tensor, valid: Tensor | None, num_positions: int) -> Cell:
    """A row of stored values; every valid position that is not stored is a zero."""
    exists = values.new_ones(num_positions, dtype=torch.bool) if valid is None else valid
    columns = columns.to(torch.int64)
    values, columns = values[exists[columns]], columns[exists[columns]]
    zeros = exists.clone()
    zeros[columns] = False
    return Cell(values, columns, zeros)


def separate(cells: Cells) -> list[Cell]:
    """The rows of a dense (B, L) or CSR (B, L) matrix, in float32 or better."""
    require_sound(cells)
    values, crow, col, valid, num_positions = cells
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if crow is None or col is None:
        return [
            dense_cell(row, None if valid is None else valid[b]) for b, row in enumerate(values)
        ]
    bounds = crow.tolist()
    spans = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    return [
        sparse_cell(values[span], col[span], None if valid is None else valid[b], num_positions)
        for b, span in enumerate(spans)
    ]


def cell_moments(cell: Cell, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, M'/M and M''/M - (M'/M)**2 with ``M(a) = n0 + sum_l exp(a x_l)``; each (N, H)."""
    if cell.num_zeros + cell.values.numel() == 0:
        return torch.full_like(slope, -torch.inf), torch.zeros_like(slope), torch.zeros_like(slope)
    score = slope[..., None] * cell.values  # (N, H, S)
    # that of a zero, too: an infinite slope has no softmax
    lowest = (slope * 0.0 if cell.num_zeros else torch.full_like(slope, -torch.inf))[..., None]
    # Any constant is exact; the maximum is also safe.
    shift = torch.cat([lowest, score], dim=-1).amax(dim=-1).detach()
    weight = torch.exp(score - shift[..., None])
    weight_of_zeros = (
        cell.num_zeros * torch.exp(-shift) if cell.num_zeros else torch.zeros_like(shift)
    )
    partition = weight_of_zeros + weight.sum(dim=-1)
    mean = (weight * cell.values).sum(dim=-1) / partition
    variance = (
        weight_of_zeros * mean**2 + (weight * (cell.values - mean[..., None]) ** 2).sum(dim=-1)
    ) / partition
    return shift + torch.log(partition), mean, variance


def cell_importance(cell: Cell, slope: Tensor, log_partition: Tensor) -> Tensor:
    """``s_l = sum exp(a x_l - log M)`` over the given latents and all heads; zeros share one
    number; (L,).
    """
    importance = slope.new_zeros(cell.zeros.shape)
    if cell.num_zeros + cell.values.numel() == 0:
        return importance
    importance[cell.zeros] = torch.exp(-log_partition).sum()
    importance[cell.columns] = torch.exp(
        slope[..., None] * cell.values - log_partition[..., None]
    ).sum(dim=(0, 1))
    return importance


def moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell; each (B, N, H)."""
    slope = slope.to(torch.promote_types(cells.values.dtype, torch.float32))
    rows = [cell_moments(cell, slope) for cell in separate(cells)]
    log_partition, mean, variance = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return log_partition, mean, variance


def mask(
    cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The masking step: moments, importance of the chosen latents, and the draw."""
    log_partition, mean, variance = moments(cells, slope)
    num_masked, latents = choice.given()
    chosen = slope[latents].to(log_partition.dtype)
    importance = torch.stack(
        [
            cell_importance(cell, chosen, partition[latents])
            for cell, partition in zip(separate(cells), log_partition, strict=True)
        ]
    )
    maskable = cells.valid if choice.maskable is None else choice.maskable
    hidden = select(importance, num_masked, maskable, draw, weighting)
    return hidden, importance, log_partition, mean, variance
