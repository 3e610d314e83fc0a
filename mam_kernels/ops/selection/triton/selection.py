"""Draws the positions of each row by an exponential race, one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import AS_GIVEN, Draw, Weighting
from ...._core.triton_language import read_word
from .all_keys import draw_row
from .interval import FEWEST_SAMPLED
from .one_pass import draw_row_in_one_pass, draw_scratch


@triton.jit(do_not_specialize=["seed", "step"])
def select_kernel(
    weights_ptr,
    valid_ptr,
    num_samples_ptr,
    sample_ids_ptr,
    seed_ptr,
    step_ptr,
    scratch_ptr,
    mask_ptr,
    seed: tl.int64,
    step: tl.int64,
    eps,
    inverse_temperature,
    num_positions,
    scratch_stride,
    weights_stride_row,
    weights_stride_position,
    valid_stride_row,
    valid_stride_position,
    HAS_VALID: tl.constexpr,
    HAS_SAMPLE_IDS: tl.constexpr,
    SEED_ON_DEVICE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    SHARPEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """mask[b, l] = whether E[b, l] / w[b, l] is among the num_samples[b] smallest of its row."""
    row = tl.program_id(0).to(tl.int64)
    sample_id = row
    if HAS_SAMPLE_IDS:
        sample_id = tl.load(sample_ids_ptr + row)
    weights_ptr += row * weights_stride_row
    if HAS_VALID:
        valid_ptr += row * valid_stride_row
    scratch_ptr = tl.multiple_of(scratch_ptr + row * scratch_stride, 16)
    mask_ptr += row * num_positions
    num_samples = tl.minimum(tl.load(num_samples_ptr + row), num_positions)
    seed = read_word(seed, seed_ptr, SEED_ON_DEVICE)
    step = read_word(step, step_ptr, STEP_ON_DEVICE)
    drawn = num_samples * 0
    if num_positions >= FEWEST_SAMPLED:
        drawn = draw_row_in_one_pass(
            weights_ptr, weights_stride_position, valid_ptr, valid_stride_position, scratch_ptr,
            mask_ptr, num_positions, num_samples, seed, step, sample_id, eps, inverse_temperature,
            HAS_VALID, SHARPEN, WHOLE,
        )  # fmt: skip
    if drawn == 0:  # share: 0
        draw_row(
            weights_ptr,
            weights_stride_position,
            valid_ptr,
            valid_stride_position,
            scratch_ptr.to(tl.pointer_type(tl.float32), bitcast=True),
            mask_ptr,
            num_positions,
            num_samples,
            seed,
            step,
            sample_id,
            eps,
            inverse_temperature,
            HAS_VALID,
            SHARPEN,
            BLOCK_L,
        )


BLOCK = 1024  # positions at a time, of short rows too: shorter blocks spill registers
# How many registers a thread may have: left alone, the assembler spills a few for occupancy. Uneven
# rows, whose length is no multiple of 16, compile to other code.
REGISTERS = 128
REGISTERS_OF_UNEVEN = 168


def select(
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    draw: Draw,
    weighting: Weighting = AS_GIVEN,
    out: Tensor | None = None,
) -> Tensor:
    """``num_samples[b]`` positions of each row, drawn in proportion to ``(weights + eps) **
    inverse_temperature``; (B, L) bool, written to ``out`` where it is given.
    """
    rows, num_positions = weights.shape
    eps, inverse_temperature = weighting
    sample_ids = draw.sample_ids
    mask = out
    if mask is None:
        mask = torch.empty((rows, num_positions), dtype=torch.bool, device=weights.device)
    words = draw_scratch(num_positions)
    scratch = torch.empty((rows, words), dtype=torch.int32, device=weights.device)
    seed_value, seed_ptr = launch.word(draw.seed)
    step_value, step_ptr = launch.word(draw.step)
    sharpen = inverse_temperature != 1.0
    whole = num_positions % 16 == 0
    limit = REGISTERS if whole else REGISTERS_OF_UNEVEN
    options = {} if launch.INTERPRETED else launch.register_limit(limit)
    with launch.on(weights.device):
        select_kernel[(rows,)](
            weights,
            valid,
            num_samples,
            sample_ids,
            seed_ptr,
            step_ptr,
            scratch,
            mask,
            seed_value,
            step_value,
            eps,
            inverse_temperature,
            num_positions,
            words,
            *weights.stride(),
            *launch.strides(valid, 2),
            HAS_VALID=valid is not None,
            HAS_SAMPLE_IDS=sample_ids is not None,
            SEED_ON_DEVICE=seed_ptr is not None,
            STEP_ON_DEVICE=step_ptr is not None,
            SHARPEN=sharpen,
            WHOLE=whole,
            BLOCK_L=BLOCK,
            num_warps=4,
            **options,
        )
    return mask
