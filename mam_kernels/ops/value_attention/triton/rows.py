"""Attention over scalar values by Triton kernels: a program a row, from values to moments,
importance and mask. See README.md one folder up.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import AS_GIVEN, Cells, Choice, Draw, Weighting
from ...._core.triton_language import read_word
from ...selection.triton import select
from ...selection.triton.all_keys import draw_row
from ...selection.triton.candidates import BLOCK_K
from ...selection.triton.words import CHUNK, LANES
from .direct import importance_of_nonzeros, importance_of_zeros, write_moments
from .draw import count_flags, draw_cell
from .row import look_at_row
from .series import (
    MAX_PANELS,
    ROOM,
    SERIES_SCRATCH,
    importance_by_series,
    plan_series,
    write_importance_series,
    write_moments_by_series,
    write_power_sums,
)


@triton.jit
def masked_of(maskable, ratio0, ratio1, ratio2):
    """``floor(ratio n)`` in float64; the ratio comes as the sum of three float32, since kernels
    take no float64.
    """
    ratio = tl.zeros([], dtype=tl.float64) + ratio0 + ratio1 + ratio2
    return tl.floor(ratio * maskable.to(tl.float64)).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "num_stored", "num_slopes", "num_chosen", "num_heads", "seed", "step", "everywhere",
    ]
)  # fmt: skip
def value_kernel(
    values_ptr,
    crow_ptr,
    col_ptr,
    valid_ptr,
    hidden_ptr,
    maskable_ptr,
    slope_ptr,
    latents_ptr,
    num_masked_ptr,
    sample_ids_ptr,
    seed_ptr,
    step_ptr,
    scratch_ptr,
    series_ptr,
    log_partition_ptr,
    mean_ptr,
    variance_ptr,
    occupied_ptr,
    importance_ptr,
    mask_ptr,
    counts_ptr,
    seed: tl.int64,
    step: tl.int64,
    ratio0,
    ratio1,
    ratio2,
    everywhere,
    eps,
    inverse_temperature,
    num_positions,
    num_stored,
    num_slopes,
    num_chosen,
    num_heads,
    scratch_stride,
    list_stride,
    values_stride_row,
    values_stride_position,
    valid_stride_row,
    valid_stride_position,
    maskable_stride_row,
    maskable_stride_position,
    IS_CSR: tl.constexpr,
    ALL_SLOPES: tl.constexpr,
    LOG: tl.constexpr,
    MASKING: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    HAS_MASKABLE: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    HAS_SAMPLE_IDS: tl.constexpr,
    HAS_OCCUPIED: tl.constexpr,
    SEED_ON_DEVICE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    SHARPEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One row: log M(a), M'/M and M''/M - (M'/M)^2 with M(a) = sum_l e^{a x_l} for every slope a.

    MASKING: then s_l = sum over the chosen slopes of e^{a x_l} / M(a), and which positions it
    hides; SHARPEN: how many it would hide. ALL_SLOPES: the moments are wanted; else those of rows
    beyond the series alone are written. Scratch: flags, then positions and values of the nonzeros.
    """
    row = tl.program_id(0).to(tl.int64)
    if HAS_VALID:
        valid_ptr += row * valid_stride_row
    if HAS_HIDDEN:
        hidden_ptr += row * num_positions
    words = tl.cdiv(num_positions, CHUNK) * LANES
    flags_ptr = tl.multiple_of(scratch_ptr + row * scratch_stride, 16)
    attended_ptr = flags_ptr + words
    list_ptr = tl.multiple_of(attended_ptr + words, 16)
    weights_ptr = tl.multiple_of(list_ptr + list_stride, 16)
    weights_ptr = weights_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
    first = num_positions * 0
    last = first
    if IS_CSR:
        # a matrix whose offsets are wrong is not read beyond what it stores
        first = tl.load(crow_ptr + row).to(tl.int64)
        last = tl.load(crow_ptr + row + 1).to(tl.int64)
        first = tl.minimum(tl.maximum(first, 0), num_stored)
        last = tl.minimum(tl.minimum(tl.maximum(last, first), num_stored), first + num_positions)
    else:
        values_ptr += row * values_stride_row
    count, num_zeros, low, high, finite = look_at_row(
        values_ptr, values_stride_position, col_ptr, first, last, valid_ptr, valid_stride_position,
        hidden_ptr, flags_ptr, attended_ptr, list_ptr, weights_ptr, num_positions, IS_CSR,
        HAS_VALID, HAS_HIDDEN, WHOLE,
    )  # fmt: skip
    if HAS_OCCUPIED:
        tl.store(occupied_ptr + row, tl.where(count + num_zeros > 0, 1.0, 0.0))

    log_partition_ptr += row * num_slopes
    mean_ptr += row * num_slopes
    variance_ptr += row * num_slopes
    series_ptr += row * (2 * MAX_PANELS * ROOM)
    shares_ptr = series_ptr + MAX_PANELS * ROOM
    panels, giants, half = plan_series(
        low, high, finite & (count + num_zeros > 0), slope_ptr, num_slopes
    )
    origin = low.to(tl.float64)
    of_zero = low * 0.0
    if panels > 0:
        write_power_sums(weights_ptr, count, num_zeros, origin, half, panels, series_ptr)
        tl.debug_barrier()
        if ALL_SLOPES:
            write_moments_by_series(
                series_ptr, origin, half, panels, giants, slope_ptr, log_partition_ptr, mean_ptr,
                variance_ptr, num_slopes, LOG,
            )  # fmt: skip
        if MASKING:
            write_importance_series(
                series_ptr, shares_ptr, half, panels, giants, slope_ptr, latents_ptr, num_chosen,
                num_heads,
            )  # fmt: skip
            tl.debug_barrier()
            of_zero = importance_by_series(
                weights_ptr, count, shares_ptr, origin, half, panels, giants
            )
    else:
        write_moments(
            weights_ptr, count, num_zeros, low, high, slope_ptr, log_partition_ptr, mean_ptr,
            variance_ptr, num_slopes,
        )  # fmt: skip
        if MASKING:
            tl.debug_barrier()
            of_zero = importance_of_zeros(
                slope_ptr, log_partition_ptr, latents_ptr, num_chosen, num_heads
            )
            importance_of_nonzeros(
                weights_ptr, count, slope_ptr, log_partition_ptr, latents_ptr, num_chosen, num_heads
            )

    if MASKING:
        tl.debug_barrier()
        sample_id = row
        if HAS_SAMPLE_IDS:
            sample_id = tl.load(sample_ids_ptr + row)
        seed = read_word(seed, seed_ptr, SEED_ON_DEVICE)
        step = read_word(step, step_ptr, STEP_ON_DEVICE)
        importance_ptr += row * num_positions
        mask_ptr += row * num_positions
        num_maskable = num_positions + everywhere * 0
        if HAS_MASKABLE:
            maskable_ptr += row * maskable_stride_row
            num_maskable = count_flags(maskable_ptr, maskable_stride_position, num_positions)
        if HAS_COUNTS:
            to_hide = tl.minimum(tl.load(num_masked_ptr + row), num_positions)
        elif HAS_MASKABLE:
            to_hide = masked_of(num_maskable, ratio0, ratio1, ratio2)
        else:
            to_hide = everywhere
        of_zero = tl.where(num_zeros > 0, of_zero, 0.0)
        drawn = draw_cell(
            list_ptr, weights_ptr, count, num_zeros, of_zero, flags_ptr, attended_ptr,
            list_stride - BLOCK_K, maskable_ptr, maskable_stride_position, importance_ptr, mask_ptr,
            num_positions, to_hide, num_maskable, seed, step, sample_id, eps,
            not (HAS_VALID or HAS_HIDDEN), HAS_MASKABLE, SHARPEN, WHOLE,
        )  # fmt: skip
        if SHARPEN:
            tl.store(counts_ptr + row, to_hide)
        elif drawn == 0:  # share: 0
            draw_row(
                importance_ptr, 1, maskable_ptr, maskable_stride_position,
                flags_ptr.to(tl.pointer_type(tl.float32), bitcast=True), mask_ptr, num_positions,
                to_hide, seed, step, sample_id, eps, inverse_temperature, HAS_MASKABLE, SHARPEN,
                BLOCK_L,
            )  # fmt: skip


class RowOutput(NamedTuple):
    """What the rows are written to; None: not wanted."""

    mean: Tensor  # (B, N, H) float32
    variance: Tensor  # (B, N, H) float32
    log_partition: Tensor | None = None  # (B, N, H) float32
    occupied: Tensor | None = None  # (B,) float32: 1 where a cell has tokens
    mask: Tensor | None = None  # (B, L) bool
    importance: Tensor | None = None  # (B, L) float32


class RowDraw(NamedTuple):
    """What a draw needs beside the values."""

    maskable: Tensor | None  # (B, L) bool; None: everywhere
    latents: Tensor  # R, (|R|,) int64
    num_masked: Tensor | None  # k, (B,) int32; None: by the ratio
    mask_ratio: float
    draw: Draw
    weighting: Weighting


def run_rows(
    cells: Cells,
    slope: Tensor,
    out: RowOutput,
    drawing: RowDraw | None = None,
    hidden: Tensor | None = None,
    all_slopes: bool = True,
) -> None:
    """Launch the kernel over the rows: moments, and where ``drawing`` importance and mask.

    ``hidden``: positions that are not attended to, (B, L) bool, contiguous. ``all_slopes``: whether
    the moments are wanted.
    """
    values, crow, col, valid, positions = cells
    rows, heads, device = cells.rows, slope.shape[1], values.device
    # the nonzeros, and behind them an eighth of the row of candidates
    list_words = triton.cdiv(positions + positions // 8, 16) * 16 + 16 + BLOCK_K.value
    words = 2 * triton.cdiv(positions, CHUNK.value) * LANES.value + 2 * list_words
    scratch = torch.empty((rows, words), dtype=torch.int32, device=device)
    series = torch.empty((rows, SERIES_SCRATCH), dtype=torch.float64, device=device)
    partition = out.log_partition
    if partition is None:
        partition = torch.empty_like(out.mean)
    maskable = latents = num_masked = sample_ids = seed_ptr = step_ptr = counts = None
    seed = step = everywhere = chosen = 0
    ratio, (eps, sharpness) = (0.0, 0.0, 0.0), AS_GIVEN
    if drawing is not None:
        maskable, latents, num_masked, mask_ratio, draw, (eps, sharpness) = drawing
        sample_ids, chosen = draw.sample_ids, latents.numel()
        (seed, seed_ptr), (step, step_ptr) = launch.word(draw.seed), launch.word(draw.step)
        if num_masked is None:
            ratio = launch.float32_parts(mask_ratio)
            everywhere = math.floor(mask_ratio * positions)
        if sharpness != 1.0:
            counts = torch.empty(rows, dtype=torch.int32, device=device)
    blocks, options = launch.row_options(positions)
    strides = (0, 0) if crow is not None else values.stride()
    with launch.on(device):
        value_kernel[(rows,)](
            values, crow, col, valid, hidden, maskable, slope, latents, num_masked, sample_ids,
            seed_ptr, step_ptr, scratch, series, partition, out.mean, out.variance, out.occupied,
            out.importance, out.mask, counts, seed, step, *ratio, everywhere, eps, sharpness,
            positions, values.shape[0], slope.numel(), chosen, heads, words, list_words, *strides,
            *launch.strides(valid, 2), *launch.strides(maskable, 2),
            IS_CSR=crow is not None, ALL_SLOPES=all_slopes, LOG=out.log_partition is not None,
            MASKING=drawing is not None, HAS_VALID=valid is not None,
            HAS_HIDDEN=hidden is not None, HAS_MASKABLE=maskable is not None,
            HAS_COUNTS=num_masked is not None, HAS_SAMPLE_IDS=sample_ids is not None,
            HAS_OCCUPIED=out.occupied is not None, SEED_ON_DEVICE=seed_ptr is not None,
            STEP_ON_DEVICE=step_ptr is not None, SHARPEN=sharpness != 1.0,
            WHOLE=positions % 16 == 0, BLOCK_L=min(blocks.block, 1024), **options,
        )  # fmt: skip
        if counts is not None:
            select(out.importance, counts, maskable, draw, drawing.weighting, out.mask)


def _moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = (cells.rows, *slope.shape), cells.values.device
    return tuple(torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3))


def moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell; each (B, N, H)."""
    log_partition, mean, variance = found = _moments(cells, slope)
    run_rows(cells, slope, RowOutput(mean, variance, log_partition))
    return found


def mask(
    cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The masking step in one launch, two where the weights are sharpened: (mask, importance), each
    (B, L), then the moments, each (B, N, H). ``choice`` gives num_masked and latents.
    """
    log_partition, mean, variance = found = _moments(cells, slope)
    shape, device = (cells.rows, cells.num_positions), cells.values.device
    hidden = torch.empty(shape, dtype=torch.bool, device=device)
    importance = torch.empty(shape, dtype=torch.float32, device=device)
    num_masked, latents = choice.given()
    maskable = cells.valid if choice.maskable is None else choice.maskable
    drawing = RowDraw(maskable, latents, num_masked, 0.0, draw, weighting)
    run_rows(cells, slope, RowOutput(mean, variance, log_partition, None, hidden, importance),
             drawing)  # fmt: skip
    return hidden, importance, *found
