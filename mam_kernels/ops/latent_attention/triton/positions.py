"""Which positions a step attends to, as its kernels read them."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch

LARGEST_TILE = 128  # positions of a tile, on a GPU or in the interpreter


@triton.jit
def attended_kernel(
    valid_ptr,
    hidden_ptr,
    visible_ptr,
    bias_ptr,
    range_ptr,
    num_positions,
    padded,
    valid_stride_batch,
    HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Which positions of a row are attended to: valid and not hidden.

    As a bias of the scores, 0 or -inf, (batch, padded), which needs no mask and no comparison where
    it is read; as the smallest range that holds them all, (batch, 2); and, where some are hidden,
    as flags.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = num_positions
    end = 0
    for start in range(0, padded, BLOCK_L):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK_L)
        inside = position < num_positions
        attended = inside
        if HAS_VALID:
            valid_row = valid_ptr + row * valid_stride_batch
            attended &= tl.load(valid_row + position, mask=inside, other=0) != 0
        if HAS_HIDDEN:
            place = row * num_positions + position
            attended &= tl.load(hidden_ptr + place, mask=inside, other=0) == 0
            tl.store(visible_ptr + place, attended, mask=inside)
        bias = tl.where(attended, 0.0, float("-inf"))
        tl.store(bias_ptr + row * padded + position, bias, mask=position < padded)
        begin = tl.minimum(begin, tl.min(tl.where(attended, position, num_positions), 0))
        end = tl.maximum(end, tl.max(tl.where(attended, position + 1, 0), 0))
    tl.store(range_ptr + 2 * row, begin)
    tl.store(range_ptr + 2 * row + 1, end)


class Positions(NamedTuple):
    """Which positions are attended to."""

    flags: Tensor | None  # (B, L) bool; None: all
    bias: Tensor | None  # (B, padded) float32: 0, or -inf where not; None: all
    range: Tensor | None  # (B, 2) int32: the smallest that holds them

    @staticmethod
    def of(valid: Tensor | None, hidden: Tensor | None) -> "Positions":
        """The valid positions that are not hidden."""
        given = valid if hidden is None else hidden
        if given is None:
            return Positions(None, None, None)
        rows, num_positions = given.shape
        padded = triton.cdiv(num_positions, LARGEST_TILE) * LARGEST_TILE
        flags = valid if hidden is None else torch.empty_like(hidden)
        bias = given.new_empty((rows, padded), dtype=torch.float32)
        limits = given.new_empty((rows, 2), dtype=torch.int32)
        attended_kernel[(rows,)](
            valid, hidden, flags, bias, limits, num_positions, padded,
            launch.strides(valid, 2)[0], HAS_VALID=valid is not None,
            HAS_HIDDEN=hidden is not None, BLOCK_L=1024, num_warps=4,
        )  # fmt: skip
        return Positions(flags, bias, limits)
