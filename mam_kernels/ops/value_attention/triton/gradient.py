"""The gradient of the masking step of scalar values, by Triton, in three launches: sums over parts
of the cells, the parts added up, and everything of the size of the parameters.

See ``collapse.py`` for the equations. Every sum has a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Parameters
from ..arguments import state_parts

MOST_PARTS = 128  # programs that add up over the cells
ROWS = 8  # of a head's weights that a program of the last launch takes


@triton.jit
def twice_penalty(grad_penalty_ptr, num_rows, HAS_PENALTY: tl.constexpr):
    """2 / B times the gradient of the penalty."""
    twice = 0.0
    if HAS_PENALTY:
        twice = tl.load(grad_penalty_ptr) * 2.0 / num_rows
    return twice


@triton.jit
def pulled_of(
    grad_context_ptr, constant_ptr, out_bias_ptr, row, column, there, pull,
    WIDTH: tl.constexpr, HAS_CONTEXT: tl.constexpr,
):  # fmt: skip
    """Gradient of a cell's context, that by its part of the penalty among it, at some columns."""
    inside = column < WIDTH
    offset = tl.load(out_bias_ptr + column, mask=inside, other=0.0)
    offset += there * tl.load(constant_ptr + column, mask=inside, other=0.0)
    pulled = pull * offset
    if HAS_CONTEXT:
        pulled += tl.load(grad_context_ptr + row * WIDTH + column, mask=inside, other=0.0)
    return pulled


@triton.jit(do_not_specialize=["num_rows", "num_latents"])
def rows_gradient_kernel(
    grad_context_ptr,
    grad_penalty_ptr,
    mean_ptr,
    variance_ptr,
    occupied_ptr,
    average_ptr,
    directions_ptr,
    constant_ptr,
    gram_ptr,
    out_bias_ptr,
    partial_ptr,
    finished_ptr,
    num_rows,
    num_latents,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_CONTEXT: tl.constexpr,
    HAS_PENALTY: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Every so many-th cell: sums of the gradients by the slopes of some latents, or by some
    columns of the directions, the bias and the constant.
    """
    part = tl.program_id(0)
    tile = tl.program_id(1)
    if (part == 0) & (tile == 0):
        tl.store(finished_ptr, 0)
    tiles_of_latents = tl.cdiv(num_latents, BLOCK_N)
    num_slopes = num_latents * HEADS
    partial_ptr += part * (num_slopes + (HEADS + 2) * WIDTH)
    head = tl.arange(0, BLOCK_H)
    inside = head < HEADS
    twice = twice_penalty(grad_penalty_ptr, num_rows, HAS_PENALTY)
    pull = twice * num_latents
    if tile < tiles_of_latents:  # share: 1 / 3
        latent = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = (latent < num_latents)[:, None] & inside[None, :]
        gram = tl.load(
            gram_ptr + head[:, None] * HEADS + head[None, :],
            mask=inside[:, None] & inside[None, :],
            other=0.0,
        )
        gram = gram * twice
        sums = tl.zeros([BLOCK_N, BLOCK_H], dtype=tl.float32)
        for cell in range(part, num_rows, tl.num_programs(0)):  # trips: B / partials
            row = tl.zeros([], dtype=tl.int64) + cell
            there = tl.load(occupied_ptr + row)
            by_head = tl.zeros([BLOCK_H], dtype=tl.float32)
            for start in range(0, WIDTH, BLOCK_W):  # trips: D / BLOCK_W
                column = start + tl.arange(0, BLOCK_W)
                pulled = pulled_of(
                    grad_context_ptr, constant_ptr, out_bias_ptr, row, column, there, pull, WIDTH,
                    HAS_CONTEXT,
                )  # fmt: skip
                direction = tl.load(
                    directions_ptr + head[:, None] * WIDTH + column[None, :],
                    mask=inside[:, None] & (column < WIDTH)[None, :],
                    other=0.0,
                )
                by_head += tl.sum(direction * pulled[None, :], 1)
            at = (row * num_latents + latent)[:, None] * HEADS + head[None, :]
            m = tl.load(mean_ptr + at, mask=exists, other=0.0)
            by_mean = tl.dot(m, gram, input_precision="ieee") + (by_head / num_latents)[None, :]
            sums += by_mean * tl.load(variance_ptr + at, mask=exists, other=0.0)
        tl.store(partial_ptr + latent[:, None] * HEADS + head[None, :], sums, mask=exists)
    else:  # share: 2 / 3
        column = (tile - tiles_of_latents) * BLOCK_W + tl.arange(0, BLOCK_W)
        of_head = inside[:, None] & (column < WIDTH)[None, :]
        at_head = head[:, None] * WIDTH + column[None, :]
        of_direction = tl.load(directions_ptr + at_head, mask=of_head, other=0.0)
        directions = tl.zeros([BLOCK_H, BLOCK_W], dtype=tl.float32)
        bias = tl.zeros([BLOCK_W], dtype=tl.float32)
        constant = tl.zeros([BLOCK_W], dtype=tl.float32)
        for cell in range(part, num_rows, tl.num_programs(0)):  # trips: B / partials
            row = tl.zeros([], dtype=tl.int64) + cell
            there = tl.load(occupied_ptr + row)
            average = tl.load(average_ptr + row * HEADS + head, mask=inside, other=0.0)
            pulled = pulled_of(
                grad_context_ptr, constant_ptr, out_bias_ptr, row, column, there, pull, WIDTH,
                HAS_CONTEXT,
            )  # fmt: skip
            directions += average[:, None] * pulled[None, :]
            by_offset = pulled + pull * tl.sum(average[:, None] * of_direction, 0)
            bias += by_offset
            constant += there * by_offset
        partial_ptr += num_slopes
        tl.store(partial_ptr + at_head, directions, mask=of_head)
        tl.store(partial_ptr + HEADS * WIDTH + column, bias, mask=column < WIDTH)
        tl.store(partial_ptr + (HEADS + 1) * WIDTH + column, constant, mask=column < WIDTH)


@triton.jit(do_not_specialize=["num_rows", "num_slopes", "num_parts"])
def sum_parts_kernel(
    partial_ptr,
    grad_penalty_ptr,
    second_ptr,
    directions_ptr,
    sums_ptr,
    out_bias_ptr,
    scale,
    num_rows,
    num_slopes,
    num_parts,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PENALTY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sum over the parts; of the slopes times `scale`, of the directions with what the penalty
    adds.
    """
    size = num_slopes + (HEADS + 2) * WIDTH
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(0, num_parts, BLOCK_P):  # trips: partials / BLOCK_P
        part = first + tl.arange(0, BLOCK_P)
        at = partial_ptr + part[:, None] * size + column[None, :]
        exists = (part < num_parts)[:, None] & (column < size)[None, :]
        total += tl.sum(tl.load(at, mask=exists, other=0.0), 0)
    total = tl.where(column < num_slopes, scale * total, total)
    if HAS_PENALTY:
        twice = twice_penalty(grad_penalty_ptr, num_rows, HAS_PENALTY)
        element = column - num_slopes
        directed = (element >= 0) & (element < HEADS * WIDTH)
        for g in range(HEADS):  # trips: H / 4
            second = tl.load(second_ptr + element // WIDTH * HEADS + g, mask=directed, other=0.0)
            direction = tl.load(
                directions_ptr + g * WIDTH + element % WIDTH, mask=directed, other=0.0
            )
            total += twice * second * direction
    tl.store(sums_ptr + column, total, mask=column < size)
    biased = column - (num_slopes + HEADS * WIDTH)
    tl.store(out_bias_ptr + biased, total, mask=(biased >= 0) & (biased < WIDTH))


@triton.jit(do_not_specialize=["num_latents"])
def parameters_gradient_kernel(
    sums_ptr,
    latents_ptr,
    in_weight_ptr,
    in_bias_ptr,
    token_weight_ptr,
    token_bias_ptr,
    out_weight_ptr,
    folded_ptr,
    units_ptr,
    by_latents_ptr,
    by_in_weight_ptr,
    by_in_bias_ptr,
    by_token_weight_ptr,
    by_token_bias_ptr,
    by_out_weight_ptr,
    partial_ptr,
    finished_ptr,
    num_latents,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Some rows of a head's weights, or some latents. The last program of the former to be done
    adds up the gradient of the token's projection.
    """
    DEPTH: tl.constexpr = WIDTH // HEADS
    SPLITS: tl.constexpr = (DEPTH + ROWS - 1) // ROWS
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_W)
    inside = column < WIDTH
    if program >= HEADS * SPLITS:  # share: N / BLOCK_N / blocks
        latent = (program - HEADS * SPLITS) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_N, BLOCK_W], dtype=tl.float32)
        for h in range(HEADS):  # trips: H
            by_slope = tl.load(sums_ptr + latent * HEADS + h, mask=latent < num_latents, other=0.0)
            folded = tl.load(folded_ptr + h * WIDTH + column, mask=inside, other=0.0)
            total += by_slope[:, None] * folded[None, :]
        tl.store(
            by_latents_ptr + latent[:, None] * WIDTH + column[None, :], total,
            mask=(latent < num_latents)[:, None] & inside[None, :],
        )  # fmt: skip
    else:
        head = program // SPLITS
        row = program % SPLITS * ROWS + tl.arange(0, ROWS)
        exists = row < DEPTH
        both = exists[:, None] & inside[None, :]
        unit = head * DEPTH + row
        directed_ptr = sums_ptr + num_latents * HEADS
        by_direction = tl.load(directed_ptr + head * WIDTH + column, mask=inside, other=0.0)
        at = directed_ptr + (HEADS + 1) * WIDTH + column
        by_constant = tl.load(at, mask=inside, other=0.0)
        w = tl.load(token_weight_ptr + column, mask=inside, other=0.0)
        b = tl.load(token_bias_ptr + column, mask=inside, other=0.0)
        u = tl.load(units_ptr + unit, mask=exists, other=0.0)
        g = tl.load(units_ptr + WIDTH + unit, mask=exists, other=0.0)
        e = tl.load(units_ptr + 2 * WIDTH + unit, mask=exists, other=0.0)

        by_folded = tl.zeros([BLOCK_W], dtype=tl.float32)
        by_bias = tl.zeros([BLOCK_N], dtype=tl.float32)
        for first in range(0, num_latents, BLOCK_N):  # trips: N / BLOCK_N
            latent = first + tl.arange(0, BLOCK_N)
            live = latent < num_latents
            by_slope = tl.load(sums_ptr + latent * HEADS + head, mask=live, other=0.0)
            z = tl.load(
                latents_ptr + latent[:, None] * WIDTH + column[None, :],
                mask=live[:, None] & inside[None, :],
                other=0.0,
            )
            by_folded += tl.sum(z * by_slope[:, None], 0)
            by_bias += by_slope
        bias = tl.sum(by_bias, 0)

        at = unit[:, None] * WIDTH + column[None, :]
        square: tl.constexpr = WIDTH * WIDTH
        query = tl.load(in_weight_ptr + at, mask=both, other=0.0)
        across = column[None, :] * WIDTH + unit[:, None]
        out = tl.load(out_weight_ptr + across, mask=both, other=0.0)
        key = tl.sum(query * by_folded[None, :], 1)
        key += bias * tl.load(in_bias_ptr + unit, mask=exists, other=0.0)
        gain = tl.sum(out * by_direction[None, :], 1)
        nothing = tl.sum(out * by_constant[None, :], 1)
        # the constant of a key cancels in the softmax, and its bias has no gradient
        tl.store(by_in_bias_ptr + unit, u * bias, mask=exists)
        tl.store(by_in_bias_ptr + WIDTH + unit, u * 0.0, mask=exists)
        tl.store(by_in_bias_ptr + 2 * WIDTH + unit, nothing, mask=exists)
        tl.store(by_in_weight_ptr + at, u[:, None] * by_folded[None, :], mask=both)
        tl.store(by_in_weight_ptr + square + at, key[:, None] * w[None, :], mask=both)
        of_value = gain[:, None] * w[None, :] + nothing[:, None] * b[None, :]
        tl.store(by_in_weight_ptr + 2 * square + at, of_value, mask=both)
        of_out = e[:, None] * by_constant[None, :] + g[:, None] * by_direction[None, :]
        tl.store(by_out_weight_ptr + across, of_out, mask=both)

        key_weight = tl.load(in_weight_ptr + square + at, mask=both, other=0.0)
        value_weight = tl.load(in_weight_ptr + 2 * square + at, mask=both, other=0.0)
        of_weight = tl.sum(key_weight * key[:, None] + value_weight * gain[:, None], 0)
        of_bias = tl.sum(value_weight * nothing[:, None], 0)
        tl.store(partial_ptr + 2 * program * WIDTH + column, of_weight, mask=inside)
        tl.store(partial_ptr + (2 * program + 1) * WIDTH + column, of_bias, mask=inside)
        tl.debug_barrier()
        done = tl.atomic_add(finished_ptr, 1, sem="acq_rel")
        tl.debug_barrier()
        if done + 1 == HEADS * SPLITS:
            of_weight = tl.zeros([BLOCK_W], dtype=tl.float32)
            of_bias = tl.zeros([BLOCK_W], dtype=tl.float32)
            for part in range(HEADS * SPLITS):  # trips: 1
                of_part = partial_ptr + 2 * part * WIDTH + column
                of_weight += tl.load(of_part, mask=inside, other=0.0, cache_modifier=".cg")
                of_bias += tl.load(of_part + WIDTH, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(by_token_weight_ptr + column, of_weight, mask=inside)
            tl.store(by_token_bias_ptr + column, of_bias, mask=inside)


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: Tensor,
    rows: int,
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    device, (count, width) = state.device, parameters.latents.shape
    kept = state_parts(state, rows, count, heads, width)
    new = {"dtype": torch.float32, "device": device}
    out = Parameters(*(torch.empty(x.shape, **new) for x in parameters))
    parts, depth = max(min(rows, MOST_PARTS), 1), width // heads
    size = count * heads + (heads + 2) * width
    partial, sums = torch.empty((parts, size), **new), torch.empty(size, **new)
    finished = torch.empty((), dtype=torch.int32, device=device)
    programs = heads * triton.cdiv(depth, ROWS)
    of_token = torch.empty((programs, 2, width), **new)
    block_w, whole = min(max(triton.next_power_of_2(width), 16), 128), triton.next_power_of_2(width)
    block_n = min(max(triton.next_power_of_2(count), 16), 64)
    block_h = max(triton.next_power_of_2(heads), 16)
    tiles = triton.cdiv(count, block_n) + triton.cdiv(width, block_w)
    with launch.on(device):
        rows_gradient_kernel[(parts, tiles)](
            grad_context, grad_penalty, kept.mean, kept.variance, kept.occupied, kept.average,
            kept.directions, kept.constant, kept.gram, parameters.out_bias, partial, finished, rows,
            count, HEADS=heads, WIDTH=width, HAS_CONTEXT=grad_context is not None,
            HAS_PENALTY=grad_penalty is not None and rows > 0, BLOCK_H=block_h, BLOCK_N=block_n,
            BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip
        sum_parts_kernel[(triton.cdiv(size, 32),)](
            partial, grad_penalty, kept.second, kept.directions, sums, out.out_bias, depth**-0.5,
            rows, count * heads, parts, HEADS=heads, WIDTH=width,
            HAS_PENALTY=grad_penalty is not None and rows > 0, BLOCK_P=32, BLOCK_C=32, num_warps=4,
        )  # fmt: skip
        parameters_gradient_kernel[(programs + triton.cdiv(count, 16),)](
            sums, *parameters[:6], kept.folded, kept.unit, *out[:6], of_token, finished, count,
            HEADS=heads, WIDTH=width, ROWS=ROWS, BLOCK_N=16, BLOCK_W=whole, num_warps=4,
        )  # fmt: skip
    return tuple(out)
