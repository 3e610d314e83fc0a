"""The masking step of scalar values around the pass over the cells, by Triton: slopes, directions
and constant of the parameters before it, context and penalty after it, and the gradient.

See ``collapse.py`` for the equations. Every sum has a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Cells, Choice, Draw, Parameters, Weighting
from ...selection.triton import choose_latents
from ..arguments import state_parts, state_size
from .rows import RowDraw, RowOutput, run_rows

SPLITS = 16  # programs of a head, each with a part of its latents and elements
MOST_PARTS = 128  # programs that add up over the cells


@triton.jit
def multiply_columns(matrix_ptr, stride, row, rows, vector, column, columns):
    """Rows of a matrix times parts of a vector, element by element, 0 outside of the matrix."""
    tile = tl.load(
        matrix_ptr + row[:, None] * stride + column[None, :],
        mask=(row < rows)[:, None] & (column < columns)[None, :],
        other=0.0,
    )
    return tile * vector[None, :]


@triton.jit(do_not_specialize=["seed", "step", "num_latents", "num_chosen"])
def project_kernel(
    latents_ptr,
    in_weight_ptr,
    in_bias_ptr,
    token_weight_ptr,
    token_bias_ptr,
    out_weight_ptr,
    slope_ptr,
    directions_ptr,
    constants_ptr,
    folded_ptr,
    units_ptr,
    chosen_ptr,
    finished_ptr,
    seed_ptr,
    step_ptr,
    seed: tl.int64,
    step: tl.int64,
    scale,
    num_latents,
    num_chosen,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DRAW: tl.constexpr,
    SEED_ON_DEVICE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head and split: u = W_k w, g = W_v w, e = W_v b + b_v; slope = latents (u W_q) + u b_q
    over sqrt(d), direction = W_o g and its part of the constant, W_o e. One program more draws the
    latents and resets the counter of ``finish_kernel``.
    """
    head = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    DEPTH: tl.constexpr = WIDTH // HEADS
    if head == HEADS:  # share: 1 / blocks
        tl.store(finished_ptr, 0)
        if DRAW:
            choose_latents(
                seed_ptr, step_ptr, chosen_ptr, seed, step, num_latents, num_chosen,
                SEED_ON_DEVICE, STEP_ON_DEVICE,
            )  # fmt: skip
    else:
        within = tl.arange(0, BLOCK_D)
        unit = head * DEPTH + within
        key_ptr = in_weight_ptr + (WIDTH + head * DEPTH) * WIDTH
        value_ptr = key_ptr + WIDTH * WIDTH
        of_u = tl.zeros([BLOCK_D, BLOCK_W], dtype=tl.float32)
        of_g = tl.zeros([BLOCK_D, BLOCK_W], dtype=tl.float32)
        of_e = tl.zeros([BLOCK_D, BLOCK_W], dtype=tl.float32)
        for start in range(0, WIDTH, BLOCK_W):  # trips: D / BLOCK_W
            column = start + tl.arange(0, BLOCK_W)
            w = tl.load(token_weight_ptr + column, mask=column < WIDTH, other=0.0)
            b = tl.load(token_bias_ptr + column, mask=column < WIDTH, other=0.0)
            of_u += multiply_columns(key_ptr, WIDTH, within, DEPTH, w, column, WIDTH)
            of_g += multiply_columns(value_ptr, WIDTH, within, DEPTH, w, column, WIDTH)
            of_e += multiply_columns(value_ptr, WIDTH, within, DEPTH, b, column, WIDTH)
        u = tl.sum(of_u, 1)
        g = tl.sum(of_g, 1)
        e = tl.sum(of_e, 1)
        e += tl.load(in_bias_ptr + 2 * WIDTH + unit, mask=within < DEPTH, other=0.0)
        bias = tl.load(in_bias_ptr + unit, mask=within < DEPTH, other=0.0)
        bias = tl.sum(u * bias, 0)
        if split == 0:
            tl.store(units_ptr + unit, u, mask=within < DEPTH)
            tl.store(units_ptr + WIDTH + unit, g, mask=within < DEPTH)
            tl.store(units_ptr + 2 * WIDTH + unit, e, mask=within < DEPTH)
        each = tl.cdiv(num_latents, SPLITS)
        for first in range(0, each, BLOCK_N):  # trips: 1
            latent = split * each + first + tl.arange(0, BLOCK_N)
            last = tl.minimum(split * each + each, num_latents)
            products = tl.zeros([BLOCK_N, BLOCK_W], dtype=tl.float32)
            for start in range(0, WIDTH, BLOCK_W):  # trips: D / BLOCK_W
                column = start + tl.arange(0, BLOCK_W)
                query = tl.load(
                    in_weight_ptr + unit[:, None] * WIDTH + column[None, :],
                    mask=(within < DEPTH)[:, None] & (column < WIDTH)[None, :],
                    other=0.0,
                )
                folded = tl.sum(query * u[:, None], 0)
                if (split == 0) & (first == 0):
                    at = folded_ptr + head * WIDTH + column
                    tl.store(at, folded, mask=column < WIDTH)
                products += multiply_columns(
                    latents_ptr, WIDTH, latent, last, folded, column, WIDTH
                )
            dot = tl.sum(products, 1)
            tl.store(slope_ptr + latent * HEADS + head, (dot + bias) * scale, mask=latent < last)
        EACH: tl.constexpr = (WIDTH + SPLITS - 1) // SPLITS
        for first in range(0, EACH, BLOCK_N):  # trips: D / 16 / BLOCK_N
            element = split * EACH + first + tl.arange(0, BLOCK_N)
            last = tl.minimum(split * EACH + EACH, WIDTH)
            of_head = out_weight_ptr + head * DEPTH
            direction = tl.sum(multiply_columns(of_head, WIDTH, element, last, g, within, DEPTH), 1)
            constant = tl.sum(multiply_columns(of_head, WIDTH, element, last, e, within, DEPTH), 1)
            at = head * WIDTH + element
            tl.store(directions_ptr + at, direction, mask=element < last)
            tl.store(constants_ptr + at, constant, mask=element < last)


@triton.jit(do_not_specialize=["num_rows", "num_latents"])
def finish_kernel(
    mean_ptr,
    occupied_ptr,
    directions_ptr,
    constants_ptr,
    out_bias_ptr,
    context_ptr,
    average_ptr,
    constant_ptr,
    second_ptr,
    gram_ptr,
    penalty_ptr,
    partial_ptr,
    finished_ptr,
    num_rows,
    num_latents,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    APART: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Every so many-th cell: context = average(m) P + r with r = out_bias + constant where the cell
    has tokens, and its part of the penalty. The last program to be done adds up the penalty: the
    sum over cells of <m^T m, P P^T> + 2 N r (context - r / 2), over their number.
    """
    program = tl.program_id(0)
    head = tl.arange(0, BLOCK_H)
    inside = head < HEADS
    pair = head[:, None] * HEADS + head[None, :]
    pairs = inside[:, None] & inside[None, :]
    # of each head with all: by element where they fit in registers, else a matrix product
    by_head = ()
    for _ in tl.static_range(HEADS if APART else 0):
        by_head += (tl.zeros([BLOCK_N, BLOCK_H], dtype=tl.float32),)
    second = tl.zeros([BLOCK_H, BLOCK_H], dtype=tl.float32)
    squares = tl.zeros([BLOCK_W], dtype=tl.float32)
    for cell in range(program, num_rows, tl.num_programs(0)):  # trips: B / blocks
        row = tl.zeros([], dtype=tl.int64) + cell
        total = tl.zeros([BLOCK_N, BLOCK_H], dtype=tl.float32)
        for first in range(0, num_latents, BLOCK_N):  # trips: N / BLOCK_N
            latent = first + tl.arange(0, BLOCK_N)
            live = latent < num_latents
            at = mean_ptr + (row * num_latents + latent) * HEADS
            m = tl.load(
                at[:, None] + head[None, :], mask=live[:, None] & inside[None, :], other=0.0
            )
            if APART:
                added = ()
                for h in tl.static_range(HEADS):
                    of_head = tl.load(at + h, mask=live, other=0.0)
                    added += (by_head[h] + m * of_head[:, None],)
                by_head = added
            else:
                second = tl.dot(tl.trans(m), m, second, input_precision="ieee")
            total += m
        average = tl.sum(total, 0) / num_latents
        tl.store(average_ptr + row * HEADS + head, average, mask=inside)
        there = tl.load(occupied_ptr + row)
        for start in range(0, WIDTH, BLOCK_W):  # trips: D / BLOCK_W
            column = start + tl.arange(0, BLOCK_W)
            exists = inside[:, None] & (column < WIDTH)[None, :]
            at = head[:, None] * WIDTH + column[None, :]
            attended = tl.load(directions_ptr + at, mask=exists, other=0.0) * average[:, None]
            constant = tl.sum(tl.load(constants_ptr + at, mask=exists, other=0.0), 0)
            bias = tl.load(out_bias_ptr + column, mask=column < WIDTH, other=0.0)
            offset = bias + there * constant
            context = tl.sum(attended, 0) + offset
            tl.store(context_ptr + row * WIDTH + column, context, mask=column < WIDTH)
            squares += offset * (context - 0.5 * offset)
            if cell == 0:
                tl.store(constant_ptr + column, constant, mask=column < WIDTH)
    size: tl.constexpr = HEADS * HEADS + 1
    if APART:
        for h in tl.static_range(HEADS):
            of_head = partial_ptr + program * size + h * HEADS + head
            tl.store(of_head, tl.sum(by_head[h], 0), mask=inside)
    else:
        tl.store(partial_ptr + program * size + pair, second, mask=pairs)
    tl.store(partial_ptr + program * size + HEADS * HEADS, tl.sum(squares, 0))
    tl.debug_barrier()
    done = tl.atomic_add(finished_ptr, 1, sem="acq_rel")
    tl.debug_barrier()
    if done + 1 == tl.num_programs(0):  # share: 1 / blocks
        whole = tl.zeros([BLOCK_H, BLOCK_H], dtype=tl.float64)
        for part in range(tl.num_programs(0)):  # trips: blocks / blocks
            of_part = partial_ptr + part * size + pair
            products = tl.load(of_part, mask=pairs, other=0.0, cache_modifier=".cg")
            whole += products.to(tl.float64)
        every = tl.arange(0, BLOCK_P)
        parts = tl.load(
            partial_ptr + every * size + HEADS * HEADS, mask=every < tl.num_programs(0), other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        gram = tl.zeros([BLOCK_H, BLOCK_H], dtype=tl.float32)
        for start in range(0, WIDTH, BLOCK_W):  # trips: 0
            column = start + tl.arange(0, BLOCK_W)
            p = tl.load(
                directions_ptr + head[:, None] * WIDTH + column[None, :],
                mask=inside[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            )
            if APART:
                gram += tl.sum(p[:, None, :] * p[None, :, :], 2)
            else:
                gram = tl.dot(p, tl.trans(p), gram, input_precision="ieee")
        tl.store(second_ptr + pair, whole.to(tl.float32), mask=pairs)
        tl.store(gram_ptr + pair, gram, mask=pairs)
        product = tl.sum(tl.sum(whole * gram.to(tl.float64), 1), 0)
        product += tl.sum(parts.to(tl.float64), 0) * (2 * num_latents)
        penalty = product / tl.maximum(num_rows, 1).to(tl.float64)
        tl.store(penalty_ptr, penalty.to(tl.float32))


def _power_of_two(n: int, least: int = 1) -> int:
    return max(triton.next_power_of_2(n), least)


def step(
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
) -> tuple[Tensor, ...]:
    """Mask, importance, context and penalty, then the state that the gradient needs: projections,
    rows, context; one more pass over the rows where the context is that of what is left visible,
    and one more draw where the weights are sharpened.
    """
    device, (count, width) = cells.values.device, parameters.latents.shape
    rows, positions = cells.rows, cells.num_positions
    new = {"dtype": torch.float32, "device": device}
    state = torch.empty(state_size(rows, count, heads, width), **new)
    parts = state_parts(state, rows, count, heads, width)
    mask = torch.empty((rows, positions), dtype=torch.bool, device=device)
    importance = torch.empty((rows, positions), **new)
    context, penalty = torch.empty((rows, width), **new), torch.empty((), **new)
    programs = max(min(rows, MOST_PARTS), 1)
    slope = torch.empty((count, heads), **new)
    constants = torch.empty((heads, width), **new)
    partial = torch.empty((programs, heads * heads + 1), **new)
    finished = torch.empty((), dtype=torch.int32, device=device)
    chosen, drawn = choice.latents, choice.latents is None
    if drawn:
        chosen = torch.empty(choice.num_drawn, dtype=torch.int64, device=device)
    (seed, seed_ptr), (number, step_ptr) = launch.word(draw.seed), launch.word(draw.step)
    block_w, apart = min(_power_of_two(width), 64), heads <= 8
    with launch.on(device):
        project_kernel[(heads * SPLITS + 1,)](
            *parameters[:6], slope, parts.directions, constants, parts.folded, parts.unit, chosen,
            finished, seed_ptr, step_ptr, seed, number, (width // heads) ** -0.5, count,
            chosen.numel(), HEADS=heads, WIDTH=width, DRAW=drawn,
            SEED_ON_DEVICE=seed_ptr is not None, STEP_ON_DEVICE=step_ptr is not None,
            SPLITS=SPLITS, BLOCK_D=_power_of_two(width // heads), BLOCK_W=block_w, BLOCK_N=16,
            num_warps=4,
        )  # fmt: skip
        if rows > 0:
            maskable = cells.valid if choice.maskable is None else choice.maskable
            drawing = RowDraw(
                maskable, chosen, choice.num_masked, choice.mask_ratio, draw, weighting
            )
            moments = RowOutput(parts.mean, parts.variance, None, parts.occupied)
            both = moments._replace(mask=mask, importance=importance)
            run_rows(cells, slope, both, drawing, all_slopes=not visible)
            if visible:
                run_rows(cells, slope, moments, hidden=mask)
        finish_kernel[(programs,)](
            parts.mean, parts.occupied, parts.directions, constants, parameters.out_bias, context,
            parts.average, parts.constant, parts.second, parts.gram, penalty, partial, finished,
            rows, count, HEADS=heads, WIDTH=width, APART=apart,
            BLOCK_H=_power_of_two(heads, 1 if apart else 16),
            BLOCK_N=min(_power_of_two(count, 16), 64), BLOCK_W=_power_of_two(block_w, 16),
            BLOCK_P=_power_of_two(programs), num_warps=4,
        )  # fmt: skip
    return mask, importance, context, penalty, state
