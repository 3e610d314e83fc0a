"""The masking step of embeddings by Triton kernels: projection and attention in one pass over the
tokens.

Keys and values exist a tile at a time. A step without gradient stores the keys alone, which the
importance reads again: computing them twice would cost more. One program takes a few heads of a
cell, so that the weights of its keys and values lie in shared memory while the tokens go by.
See README.md beside this file.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..._core import triton_launch as launch
from ..._core.call import Choice, Draw, Parameters, TokenState, Weighting
from ..selection.triton import draw_latents, select
from . import triton_attention as attention
from .triton_tiles import (
    LN_2,
    LOG2_E,
    add_dot,
    attended_kernel,
    dot,
    equal_parts,
    halves,
    head_rows,
    store_head_rows,
    wide,
)


@triton.jit
def product_tile(
    a_ptr,
    b_ptr,
    bias_ptr,
    out_ptr,
    row,
    column,
    rows,
    columns,
    inner,
    a_stride,
    b_stride_inner,
    b_stride_column,
    HAS_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of ``a b + bias`` in float32; ``out`` is (rows, columns) in its own type."""
    sums = tl.zeros([row.shape[0], column.shape[0]], dtype=tl.float32)
    for start in range(0, inner, BLOCK_K):  # trips: Dz / BLOCK_K
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            a_ptr + row[:, None] * a_stride + k[None, :],
            mask=(row < rows)[:, None] & (k < inner)[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + k[:, None] * b_stride_inner + column[None, :] * b_stride_column,
            mask=(k < inner)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        sums = add_dot(a.to(tl.float32), b.to(tl.float32), sums)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + row[:, None] * columns + column[None, :],
        sums.to(out_ptr.dtype.element_ty),
        mask=(row < rows)[:, None] & (column < columns)[None, :],
    )


@triton.jit
def count_row(
    maskable_ptr,
    counts_ptr,
    row,
    num_positions,
    stride,
    ratio0,
    ratio1,
    ratio2,
    BLOCK: tl.constexpr,
):
    """``floor(ratio n)`` in float64, ``n`` the maskable positions of a row.

    The ratio comes as the sum of three float32, since kernels take no float64.
    """
    seen = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, num_positions, BLOCK):  # trips: L / 1024
        position = start + tl.arange(0, BLOCK)
        maskable = tl.load(
            maskable_ptr + wide(row) * stride + position,
            mask=position < num_positions,
            other=0,
        )
        seen += (maskable != 0).to(tl.int32)
    n = tl.sum(seen, 0).to(tl.float64)
    ratio = tl.zeros([], dtype=tl.float64) + ratio0 + ratio1 + ratio2
    tl.store(counts_ptr + row, tl.floor(ratio * n).to(tl.int32))


@triton.jit(do_not_specialize=["everywhere", "num_rows", "num_latents", "num_positions"])
def prepare_kernel(
    latents_ptr,
    in_weight_ptr,
    in_bias_ptr,
    token_weight_ptr,
    token_bias_ptr,
    maskable_ptr,
    query_ptr,
    folded_ptr,
    value_bias_ptr,
    counts_ptr,
    ratio0,
    ratio1,
    ratio2,
    everywhere,
    num_rows,
    num_latents,
    num_positions,
    maskable_stride,
    LATENT_WIDTH: tl.constexpr,
    INPUT_WIDTH: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    HAS_MASKABLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What a step derives from the parameters: Q = Z W_q^T + b_q, the folded W_kv W_p, the bias of
    the values W_v b_p + b_v; and k of each row, `everywhere` where all positions may be hidden. A
    program makes one tile of one of them.
    """
    queries = tl.cdiv(num_latents, BLOCK) * tl.cdiv(LATENT_WIDTH, BLOCK)
    folded = tl.cdiv(2 * LATENT_WIDTH, BLOCK) * tl.cdiv(INPUT_WIDTH, BLOCK)
    biases = tl.cdiv(LATENT_WIDTH, BLOCK)
    program = tl.program_id(0)
    tile = tl.arange(0, BLOCK)
    if program < queries:  # share: 1 / 5
        across = tl.cdiv(LATENT_WIDTH, BLOCK)
        product_tile(
            latents_ptr, in_weight_ptr, in_bias_ptr, query_ptr,
            program // across * BLOCK + tile, program % across * BLOCK + tile,
            num_latents, LATENT_WIDTH, LATENT_WIDTH, LATENT_WIDTH, 1, LATENT_WIDTH, True, BLOCK_K,
        )  # fmt: skip
    elif program < queries + folded:  # share: 4 / 5
        program -= queries
        across = tl.cdiv(INPUT_WIDTH, BLOCK)
        product_tile(
            in_weight_ptr + LATENT_WIDTH * LATENT_WIDTH, token_weight_ptr, in_bias_ptr, folded_ptr,
            program // across * BLOCK + tile, program % across * BLOCK + tile,
            2 * LATENT_WIDTH, INPUT_WIDTH, LATENT_WIDTH, LATENT_WIDTH, INPUT_WIDTH, 1, False,
            BLOCK_K,
        )  # fmt: skip
    elif program < queries + folded + biases:  # share: 1 / 20
        row = (program - queries - folded) * BLOCK + tile
        sums = tl.load(in_bias_ptr + 2 * LATENT_WIDTH + row, mask=row < LATENT_WIDTH, other=0.0).to(
            tl.float32
        )
        for start in range(0, LATENT_WIDTH, BLOCK_K):  # trips: Dz / BLOCK_K
            k = start + tl.arange(0, BLOCK_K)
            weight = tl.load(
                in_weight_ptr + (2 * LATENT_WIDTH + row)[:, None] * LATENT_WIDTH + k[None, :],
                mask=(row < LATENT_WIDTH)[:, None] & (k < LATENT_WIDTH)[None, :],
                other=0.0,
            ).to(tl.float32)
            bias = tl.load(token_bias_ptr + k, mask=k < LATENT_WIDTH, other=0.0).to(tl.float32)
            sums += tl.sum(weight * bias[None, :], 1)
        tl.store(value_bias_ptr + row, sums, mask=row < LATENT_WIDTH)
    elif HAS_COUNTS and HAS_MASKABLE:  # share: 0
        count_row(
            maskable_ptr, counts_ptr, program - queries - folded - biases, num_positions,
            maskable_stride, ratio0, ratio1, ratio2, BLOCK_C,
        )  # fmt: skip
    elif HAS_COUNTS:
        counted = (program - queries - folded - biases) * BLOCK_C + tl.arange(0, BLOCK_C)
        count = tl.zeros([BLOCK_C], dtype=tl.int32) + everywhere
        tl.store(counts_ptr + counted, count, mask=counted < num_rows)


@triton.jit
def attend(q, k, v, start, last, bias_ptr, factor, top, total, output, BLOCK_L: tl.constexpr,
           HAS_VALUE: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """One head meets a tile of tokens: the online softmax (Milakov and Gimelshein, 2018; Dao et
    al., 2022) in powers of two.
    """
    score = dot(q, tl.trans(k))  # [BLOCK_N, BLOCK_L]
    token = start + tl.arange(0, BLOCK_L)
    if HAS_BIAS:
        # Volatile, so that each head loads it anew: held for all of them, it would be spilled.
        score += tl.load(bias_ptr + token, volatile=True)[None, :]
    elif start + BLOCK_L > last:  # share: 0
        score += tl.where(token < last, 0.0, float("-inf"))[None, :]
    new_top = tl.maximum(top, tl.max(score, 1) * factor)
    # As long as no token was met, the top is -inf and any finite base will do.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(score * factor - base[:, None])
    rescale = tl.exp2(top - base)
    total = total * rescale + tl.sum(weight, 1)
    if HAS_VALUE:
        output = add_dot(weight.to(v.dtype), v, output * rescale[:, None])
    return new_top, total, output


@triton.jit(do_not_specialize=["num_latents", "num_positions", "split_size"])
def project_and_attend_kernel(
    tokens_ptr,
    folded_ptr,
    query_ptr,
    bias_ptr,
    range_ptr,
    kept_ptr,
    output_ptr,
    logsumexp_ptr,
    scale,
    num_latents,
    num_positions,
    split_size,
    tokens_stride_batch,
    bias_stride_batch,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_WIDTH: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    KEPT_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_KEYS: tl.constexpr,
    KEEP_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_X: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """HEADS heads of one cell, over one split of its tokens: K, V = X W_kv^T a tile at a time,
    LSE =
    log sum_l e^{scale q.k_l}, O = sum_l e^{scale q.k_l - LSE} v_l.

    Outputs are (split, batch, latent, head, width). What is kept of K and V is (batch, position,
    K or V, head, width).
    """
    groups: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    batch = (tl.program_id(0) // groups).to(tl.int64)
    head = (tl.program_id(0) % groups) * HEADS
    split = tl.program_id(1)
    num_batches = tl.num_programs(0) // groups
    first = split * split_size
    last = tl.minimum(first + split_size, num_positions)
    tokens_ptr += batch * tokens_stride_batch
    factor = scale * LOG2_E

    # The rows of the weights that make the keys of these heads, then those that make their values.
    SIDES: tl.constexpr = 2 if HAS_VALUE else 1
    COLUMNS: tl.constexpr = HEADS * BLOCK_D
    index = tl.arange(0, SIDES * COLUMNS)
    of_head = head + index % COLUMNS // BLOCK_D
    within = index % BLOCK_D
    weight_row = (index // COLUMNS * NUM_HEADS + of_head) * WIDTH + within
    real = (of_head < NUM_HEADS) & (within < WIDTH)
    weights = ()  # CHUNKS of [SIDES * COLUMNS, BLOCK_X]
    for c in tl.static_range(CHUNKS):
        feature = c * BLOCK_X + tl.arange(0, BLOCK_X)
        weights += (
            tl.load(
                folded_ptr + weight_row[:, None] * INPUT_WIDTH + feature[None, :],
                mask=real[:, None] & (feature < INPUT_WIDTH)[None, :],
                other=0.0,
            ),
        )
    latent = tl.arange(0, BLOCK_N)
    queries = ()
    tops = ()  # greatest score, in powers of two
    totals = ()  # sum of 2^(score - top)
    outputs = ()
    for h in tl.static_range(HEADS):
        exists = (latent < num_latents) & (head + h < NUM_HEADS)
        queries += (
            head_rows(
                query_ptr + (head + h) * WIDTH, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D
            ),
        )
        tops += (tl.full([BLOCK_N], float("-inf"), dtype=tl.float32),)
        totals += (tl.zeros([BLOCK_N], dtype=tl.float32),)
        outputs += (tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32),)

    begin = first
    end = last
    if HAS_BIAS:
        bias_ptr += batch * bias_stride_batch
        # From a multiple of the tile, which the bias is padded to.
        begin = tl.maximum(begin, tl.load(range_ptr + 2 * batch) // BLOCK_L * BLOCK_L)
        end = tl.minimum(end, tl.load(range_ptr + 2 * batch + 1))
    if KEEP_KEYS or KEEP_VALUES:
        kept_ptr += batch * num_positions * KEPT_STRIDE + head * WIDTH
    offset = tl.arange(0, BLOCK_L)
    column = tl.arange(0, COLUMNS)
    exists = (head + column // BLOCK_D < NUM_HEADS) & (column % BLOCK_D < WIDTH)
    kept_column = column // BLOCK_D * WIDTH + column % BLOCK_D
    for start in range(begin, end, BLOCK_L):  # trips: L / BLOCK_L
        token = start + offset
        inside = token < end
        row_of_tokens = tokens_ptr + wide(start) * TOKEN_STRIDE + offset[:, None] * TOKEN_STRIDE
        projected = tl.zeros([BLOCK_L, SIDES * COLUMNS], dtype=tl.float32)
        for c in tl.static_range(CHUNKS):
            feature = c * BLOCK_X + tl.arange(0, BLOCK_X)
            mask = inside[:, None]
            if CHUNKS * BLOCK_X != INPUT_WIDTH:
                mask &= (feature < INPUT_WIDTH)[None, :]
            x = tl.load(row_of_tokens + feature[None, :], mask=mask, other=0.0)
            projected = add_dot(x, tl.trans(weights[c]), projected)
        if HAS_BIAS:  # padding may hold NaN
            valid = tl.load(bias_ptr + token) == 0.0
            projected = tl.where(valid[:, None], projected, 0.0)
        projected = projected.to(tokens_ptr.dtype.element_ty)
        if HAS_VALUE:
            k, v = halves(projected, BLOCK_L, 2 * COLUMNS)
            values = equal_parts(v, HEADS, BLOCK_L, COLUMNS)
        else:
            k = projected
        keys = equal_parts(k, HEADS, BLOCK_L, COLUMNS)
        if KEEP_KEYS or KEEP_VALUES:
            mask = inside[:, None]
            if NUM_HEADS % HEADS != 0 or WIDTH != BLOCK_D:
                mask &= exists[None, :]
            place = kept_ptr + wide(start) * KEPT_STRIDE
            place += offset[:, None] * KEPT_STRIDE + kept_column[None, :]
            if KEEP_KEYS:
                tl.store(place, k, mask=mask)
            if KEEP_VALUES:
                tl.store(place + NUM_HEADS * WIDTH, v, mask=mask)
        new_tops = ()
        new_totals = ()
        new_outputs = ()
        for h in tl.static_range(HEADS):
            top, total, output = attend(
                queries[h], keys[h], values[h] if HAS_VALUE else keys[h], start, end, bias_ptr,
                factor, tops[h], totals[h], outputs[h], BLOCK_L, HAS_VALUE, HAS_BIAS,
            )  # fmt: skip
            new_tops += (top,)
            new_totals += (total,)
            new_outputs += (output,)
        tops = new_tops
        totals = new_totals
        outputs = new_outputs

    row = ((split * num_batches + batch) * num_latents + latent) * NUM_HEADS + head
    for h in tl.static_range(HEADS):
        exists = (latent < num_latents) & (head + h < NUM_HEADS)
        empty = totals[h] == 0.0
        safe = tl.where(empty, 1.0, totals[h])
        logsumexp = tl.where(empty, float("-inf"), (tops[h] + tl.log2(safe)) * LN_2)
        tl.store(logsumexp_ptr + row + h, logsumexp, mask=exists)
        if HAS_VALUE:
            store_head_rows(
                output_ptr, row + h, exists, outputs[h] / safe[:, None], WIDTH, WIDTH, BLOCK_D
            )


@triton.jit(do_not_specialize=["num_latents"])
def context_kernel(
    attended_ptr,
    logsumexp_ptr,
    out_weight_ptr,
    out_bias_ptr,
    value_bias_ptr,
    grad_context_ptr,
    grad_penalty_ptr,
    context_ptr,
    penalty_ptr,
    grad_projected_ptr,
    num_latents,
    num_heads,
    LATENT_WIDTH: tl.constexpr,
    BACKWARD: tl.constexpr,
    HAS_GRAD_CONTEXT: tl.constexpr,
    HAS_GRAD_PENALTY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some columns of a cell's P = (O + 1 b_v^T) W_o^T + b_o, without the bias of the values where
    the cell has no tokens.

    Forward: their mean over the latents, and the part of the penalty |P|^2 / B. Backward: their
    gradient, context_bar / N + penalty_bar 2 P / B.
    """
    batch = tl.program_id(0).to(tl.int64)
    num_batches = tl.num_programs(0)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < LATENT_WIDTH
    attended_ptr += batch * num_latents * LATENT_WIDTH
    occupied = tl.load(logsumexp_ptr + batch * num_latents * num_heads) != float("-inf")
    context = tl.zeros([BLOCK_C], dtype=tl.float32)
    squares = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(0, num_latents, BLOCK_N):  # trips: 1
        latent = first + tl.arange(0, BLOCK_N)
        exists = latent < num_latents
        projected = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
        shift = tl.load(out_bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        for start in range(0, LATENT_WIDTH, BLOCK_K):  # trips: Dz / BLOCK_K
            k = start + tl.arange(0, BLOCK_K)
            attended = tl.load(
                attended_ptr + latent[:, None] * LATENT_WIDTH + k[None, :],
                mask=exists[:, None] & (k < LATENT_WIDTH)[None, :],
                other=0.0,
            )
            weight = tl.load(
                out_weight_ptr + column[:, None] * LATENT_WIDTH + k[None, :],
                mask=inside[:, None] & (k < LATENT_WIDTH)[None, :],
                other=0.0,
            )  # [BLOCK_C, BLOCK_K]
            bias = tl.load(value_bias_ptr + k, mask=k < LATENT_WIDTH, other=0.0)
            shift += tl.where(occupied, tl.sum(weight.to(tl.float32) * bias[None, :], 1), 0.0)
            projected = add_dot(attended, tl.trans(weight.to(attended.dtype)), projected)
        projected = tl.where(exists[:, None], projected + shift[None, :], 0.0)
        if BACKWARD:
            gradient = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
            if HAS_GRAD_PENALTY:
                of_penalty = tl.load(grad_penalty_ptr).to(tl.float32)
                gradient += projected * (of_penalty * 2.0 / num_batches)
            if HAS_GRAD_CONTEXT:
                of_context = tl.load(
                    grad_context_ptr + batch * LATENT_WIDTH + column, mask=inside, other=0.0
                )
                gradient += (of_context.to(tl.float32) / num_latents)[None, :]
            tl.store(
                grad_projected_ptr + (batch * num_latents + latent)[:, None] * LATENT_WIDTH
                + column[None, :],
                gradient.to(grad_projected_ptr.dtype.element_ty),
                mask=exists[:, None] & inside[None, :],
            )  # fmt: skip
        else:
            context += tl.sum(projected, 0)
            squares += tl.sum(projected * projected, 0)
    if not BACKWARD:
        tl.store(context_ptr + batch * LATENT_WIDTH + column, context / num_latents, mask=inside)
        part = tl.sum(tl.where(inside, squares, 0.0), 0) / num_batches
        tl.store(penalty_ptr + batch * tl.num_programs(1) + tl.program_id(1), part)


@triton.jit(do_not_specialize=["num_latents", "padded"])
def output_gradient_kernel(
    grad_projected_ptr,
    attended_ptr,
    logsumexp_ptr,
    out_weight_ptr,
    grad_attended_ptr,
    statistics_ptr,
    num_latents,
    padded,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One head of one cell: dO = dP W_o, delta = sum_d dO O, and the log-sum-exp in powers of two.

    The last two are (2, batch, head, padded latents),
    so that a program of the backward pass reads them
    whole; rows of no latent get inf and 0.
    """
    LATENT_WIDTH: tl.constexpr = NUM_HEADS * WIDTH
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = tl.program_id(0) % NUM_HEADS
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = latent < num_latents
    grad_projected_ptr += batch * num_latents * LATENT_WIDTH
    grad_attended = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for start in range(0, LATENT_WIDTH, BLOCK_K):  # trips: Dz / BLOCK_K
        k = start + tl.arange(0, BLOCK_K)
        gradient = tl.load(
            grad_projected_ptr + latent[:, None] * LATENT_WIDTH + k[None, :],
            mask=exists[:, None] & (k < LATENT_WIDTH)[None, :],
            other=0.0,
        )
        weight = head_rows(
            out_weight_ptr + head * WIDTH, k, k < LATENT_WIDTH, LATENT_WIDTH, WIDTH, BLOCK_D
        )
        grad_attended = add_dot(gradient, weight.to(gradient.dtype), grad_attended)
    rounded = grad_attended.to(grad_attended_ptr.dtype.element_ty)
    first = (batch * num_latents * NUM_HEADS + head) * WIDTH
    store_head_rows(
        grad_attended_ptr + first, latent, exists, rounded, LATENT_WIDTH, WIDTH, BLOCK_D
    )
    attended = head_rows(attended_ptr + first, latent, exists, LATENT_WIDTH, WIDTH, BLOCK_D)
    delta = tl.sum(rounded.to(tl.float32) * attended.to(tl.float32), 1)
    logsumexp = tl.load(
        logsumexp_ptr + (batch * num_latents + latent) * NUM_HEADS + head,
        mask=exists,
        other=float("inf"),
    )
    rows = tl.num_programs(0).to(tl.int64) * padded
    place = tl.program_id(0).to(tl.int64) * padded + latent
    tl.store(statistics_ptr + place, logsumexp * LOG2_E)
    tl.store(statistics_ptr + rows + place, delta)


class Plan(NamedTuple):
    """The launch configuration of ``project_and_attend_kernel``."""

    heads: int
    latents: int
    positions: int
    width: int
    inputs: int  # features in a chunk
    chunks: int
    warps: int

    def arguments(self) -> dict[str, int]:
        registers = None if launch.INTERPRETED else attention.HALF_REGISTERS
        return {
            "HEADS": self.heads,
            "BLOCK_N": self.latents,
            "BLOCK_L": self.positions,
            "BLOCK_D": self.width,
            "BLOCK_X": self.inputs,
            "CHUNKS": self.chunks,
            "num_warps": self.warps,
            "num_stages": 1,
            **launch.register_limit(registers),
        }


FUSED_COLUMNS = (
    64  # of the keys of a program: with 128, two programs would not share a multiprocessor
)
FUSED_POSITIONS = 64
FUSED_LATENTS = 128
FUSED_INPUTS = 256  # wider tokens leave no room for a second program, and their tiles are spilled
LARGEST_TILE = 128  # positions of a tile, on a GPU or in the interpreter
SPARE_SHARED = 16 * 1024  # beside the factors: tiles of keys, values and what is stored


def plan(query: Tensor, tokens: Tensor) -> Plan | None:
    """How the projection joins the attention; None where it does not fit, as for float32."""
    (num_latents, num_heads, width), inputs = query.shape, tokens.shape[-1]
    width = max(triton.next_power_of_2(width), attention.SMALLEST_DOT)
    latents = max(triton.next_power_of_2(num_latents), attention.SMALLEST_DOT)
    if latents > FUSED_LATENTS or width > 128 or inputs > FUSED_INPUTS or launch.is_amd():
        return None
    columns = 32 if width == 16 else FUSED_COLUMNS  # the sums of four heads would be spilled
    heads = max(1, min(columns // width, triton.next_power_of_2(num_heads)))
    chunk, chunks = _chunks(inputs, 2 * heads * width)
    if launch.INTERPRETED:
        return Plan(heads, latents, attention.INTERPRETER_POSITIONS, width, chunk, chunks, 1)
    if tokens.dtype == torch.float32:
        return None
    latents = max(latents, 64)  # fewer rows would not go through wgmma
    columns = 2 * heads * width
    elements = columns * chunk * chunks + FUSED_POSITIONS * chunk + heads * width * latents
    if elements * tokens.element_size() + SPARE_SHARED > launch.shared_memory(tokens.device):
        return None
    # The sums of Blackwell's products lie in a memory of their own, from where a program of four
    # warps would load more than its registers hold.
    warps = 4 if columns <= 128 and launch.architecture(tokens.device) < 100 else 8
    return Plan(heads, latents, FUSED_POSITIONS, width, chunk, chunks, warps)


def _chunks(inputs: int, columns: int) -> tuple[int, int]:
    """(width, number) of the parts that the features go by in: the fewest features in all, and then
    the fewest parts.
    """
    largest = 256 if columns <= 128 else 128
    fitting = max(triton.next_power_of_2(inputs), attention.SMALLEST_DOT)
    sizes = [size for size in (256, 128, 64) if size <= min(largest, fitting)] or [fitting]
    chunk = min(sizes, key=lambda size: (triton.cdiv(inputs, size) * size, -size))
    return chunk, triton.cdiv(inputs, chunk)


class Prepared(NamedTuple):
    """What a step derives from the parameters."""

    query: Tensor  # (N, H, d)
    folded: Tensor  # (2 Dz, D): projects a token to its key and its value
    value_bias: Tensor  # (Dz,) float32
    counts: Tensor | None  # k, (B,) int32


def _prepare(
    parameters: Parameters, heads: int, dtype: torch.dtype, counted: tuple | None
) -> Prepared:
    """``counted``: the number of rows and of positions, maskable (B, L) or None, and the ratio."""
    latents, in_weight, in_bias, token_weight, token_bias, *_ = (x.contiguous() for x in parameters)
    (num_latents, width), inputs = latents.shape, token_weight.shape[1]
    new = {"dtype": dtype, "device": latents.device}
    query = torch.empty((num_latents, heads, width // heads), **new)
    folded = torch.empty((2 * width, inputs), **new)
    value_bias = torch.empty(width, dtype=torch.float32, device=latents.device)
    rows, positions, maskable, ratio = counted or (0, 0, None, 0.0)
    counts = torch.empty(rows, dtype=torch.int32, device=latents.device) if counted else None
    block, block_counts = (128, 1024) if launch.INTERPRETED else (32, 1024)
    tiles = triton.cdiv(num_latents, block) * triton.cdiv(width, block)
    tiles += triton.cdiv(2 * width, block) * triton.cdiv(inputs, block) + triton.cdiv(width, block)
    tiles += triton.cdiv(rows, block_counts) if maskable is None else rows
    prepare_kernel[(tiles,)](
        latents, in_weight, in_bias, token_weight, token_bias, maskable, query, folded, value_bias,
        counts,
        *_float32_parts(ratio), math.floor(ratio * positions), rows, num_latents, positions,
        launch.strides(maskable, 2)[0], LATENT_WIDTH=width, INPUT_WIDTH=inputs,
        HAS_COUNTS=counts is not None, HAS_MASKABLE=maskable is not None,
        BLOCK=block, BLOCK_K=32, BLOCK_C=block_counts, num_warps=4,
    )  # fmt: skip
    return Prepared(query, folded, value_bias, counts)


def _float32_parts(x: float) -> tuple[float, float, float]:
    """Three numbers of float32 whose sum is x."""
    parts = []
    for _ in range(3):
        parts.append(float(torch.tensor(x, dtype=torch.float32)))
        x -= parts[-1]
    return tuple(parts)


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
        new = {"device": given.device}
        flags = valid if hidden is None else torch.empty_like(hidden)
        bias = torch.empty((rows, padded), dtype=torch.float32, **new)
        limits = torch.empty((rows, 2), dtype=torch.int32, **new)
        attended_kernel[(rows,)](
            valid, hidden, flags, bias, limits, num_positions, padded,
            launch.strides(valid, 2)[0], HAS_VALID=valid is not None,
            HAS_HIDDEN=hidden is not None, BLOCK_L=1024, num_warps=4,
        )  # fmt: skip
        return Positions(flags, bias, limits)


class Attended(NamedTuple):
    """What a pass over the tokens leaves."""

    output: Tensor | None  # (B, N, H, d)
    logsumexp: Tensor  # (B, N, H)
    keys: Tensor | None  # (B, L, H, d)
    keys_values: Tensor | None  # (B, L, 2, H, d), where both are kept


def _attend(
    tokens: Tensor,
    query: Tensor,
    folded: Tensor,
    positions: Positions,
    kept: Tensor | None,
    *,
    fused: bool,
    values: bool,
    keys: bool,
    both: bool,
) -> Attended:
    """Projection and attention, ``fused`` or one after the other. ``values``: the output is wanted,
    not the log-sum-exp alone;
    ``keys``: they will be read again; ``both``: as will the values. ``kept``: the keys and values
    of an earlier pass, whose keys are there.
    """
    chosen = plan(query, tokens) if fused else None
    (num_latents, num_heads, width), scale = query.shape, query.shape[-1] ** -0.5
    batch, num_positions, inputs = tokens.shape
    if chosen is None:
        if kept is None:
            kept = F.linear(tokens, folded).unflatten(-1, (2, num_heads, width))
        key, value = kept[:, :, 0], kept[:, :, 1]
        if values:
            return Attended(
                *attention.forward(query, key, value, positions.flags, scale), key, kept
            )
        return Attended(None, attention.logsumexp(query, key, positions.flags, scale), key, kept)
    parts = 2 if both else 1
    fresh = kept is None
    if fresh and (keys or both):
        shape = (batch, num_positions, parts, num_heads, width)
        kept = torch.empty(shape, dtype=tokens.dtype, device=tokens.device)
    splits = attention.num_splits(
        batch * triton.cdiv(num_heads, chosen.heads), num_positions, tokens.device
    )
    split_size = (
        triton.cdiv(triton.cdiv(num_positions, splits), chosen.positions) * chosen.positions
    )
    splits = triton.cdiv(num_positions, split_size)
    shape = (splits, batch, num_latents, num_heads)
    logsumexp = torch.empty(shape, dtype=torch.float32, device=tokens.device)
    output = None
    if values:
        dtype = tokens.dtype if splits == 1 else torch.float32
        output = torch.empty((*shape, width), dtype=dtype, device=tokens.device)
    project_and_attend_kernel[(batch * triton.cdiv(num_heads, chosen.heads), splits)](
        tokens, folded, query, positions.bias, positions.range, kept, output, logsumexp, scale,
        num_latents, num_positions,
        split_size,
        tokens.stride(0), launch.strides(positions.bias, 2)[0],
        NUM_HEADS=num_heads, WIDTH=width, INPUT_WIDTH=inputs, TOKEN_STRIDE=tokens.stride(1),
        KEPT_STRIDE=0 if kept is None else kept.stride(1),
        HAS_VALUE=values, HAS_BIAS=positions.bias is not None, KEEP_KEYS=fresh and kept is not None,
        KEEP_VALUES=both and values, **chosen.arguments(),
    )  # fmt: skip
    if splits > 1:
        output, logsumexp = attention.merge(output, logsumexp, tokens.dtype, width)
    else:
        output, logsumexp = None if output is None else output[0], logsumexp[0]
    return Attended(output, logsumexp, None if kept is None else kept[:, :, 0], kept)


def _run_context(
    attended: Tensor, logsumexp: Tensor, parameters: Parameters, value_bias: Tensor,
    gradients: tuple[Tensor | None, Tensor | None] | None,
) -> tuple[Tensor, Tensor] | Tensor:  # fmt: skip
    """Context (B, Dz) and penalty; or, given their gradients, that of the projected output (B, N,
    Dz).
    """
    batch, num_latents, num_heads, head_width = attended.shape
    width, device = num_heads * head_width, attended.device
    half = attended.element_size() == 2
    warps = 4 if launch.architecture(device) == 90 else 8
    block, block_columns = _latent_block(num_latents), 64
    if launch.INTERPRETED:
        block_columns = 128
    elif not half:  # whose products take their factors from registers
        block, block_columns = min(block, 32), 32
    columns = triton.cdiv(width, block_columns)
    context = penalty = grad_projected = None
    if gradients is None:
        context = torch.empty((batch, width), dtype=torch.float32, device=device)
        penalty = torch.empty((batch, columns), dtype=torch.float32, device=device)
    else:
        grad_projected = torch.empty(
            (batch, num_latents, width), dtype=attended.dtype, device=device
        )
    of_context, of_penalty = gradients or (None, None)
    context_kernel[(batch, columns)](
        attended, logsumexp, parameters.out_weight.contiguous(), parameters.out_bias.contiguous(),
        value_bias, of_context, of_penalty, context, penalty, grad_projected, num_latents,
        num_heads,
        LATENT_WIDTH=width, BACKWARD=gradients is not None,
        HAS_GRAD_CONTEXT=of_context is not None, HAS_GRAD_PENALTY=of_penalty is not None,
        BLOCK_N=block, BLOCK_C=block_columns, BLOCK_K=64 if half else 32, num_warps=warps,
        num_stages=2,
    )  # fmt: skip
    return grad_projected if gradients is not None else (context, penalty.sum())


def _latent_block(num_latents: int) -> int:
    smallest = attention.SMALLEST_DOT if launch.INTERPRETED else 64
    return min(max(triton.next_power_of_2(num_latents), smallest), 128)


def step(
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, TokenState]:
    """Mask (B, L), importance (B, L), context (B, Dz), penalty, and what the gradient needs.

    Args:
        tokens: (B, L, D), in the type that is computed in. Padding may hold anything.
        valid: (B, L) bool; None: everywhere.
        parameters: in any floating type.
        heads: ``H``.
        choice, weighting, draw: see ``_core.call``.
        visible: whether the context is of what the mask leaves.
        keep: whether a gradient will be asked for, for which keys and values are kept.
    """
    given, tokens = tokens.dtype, attention.held(tokens)
    batch, num_positions, _ = tokens.shape
    valid = None if valid is None else valid.contiguous()
    maskable = valid if choice.maskable is None else choice.maskable.contiguous()
    with launch.on(tokens.device):
        counted = None
        if choice.num_masked is None:
            counted = (batch, num_positions, maskable, choice.mask_ratio)
        query, folded, value_bias, counts = _prepare(parameters, heads, tokens.dtype, counted)
        chosen = choice.latents
        if chosen is None:
            chosen = draw_latents(query.shape[0], choice.num_drawn, draw, tokens.device)
        if counts is None:
            counts = choice.num_masked
        scale = query.shape[-1] ** -0.5
        everywhere = Positions.of(valid, None)
        fused = plan(query, tokens) is not None

        def decide(query: Tensor, latents: Tensor, of: Attended) -> tuple[Tensor, Tensor]:
            importance = attention.importance(query, of.keys, of.logsumexp, latents, valid, scale)
            mask = select(importance, counts, maskable, draw, weighting)
            return mask, importance

        if visible:
            drawn, every = query[chosen], torch.arange(chosen.shape[0], device=chosen.device)
            before = _attend(
                tokens, drawn, folded, everywhere, None,
                fused=fused, values=False, keys=True, both=keep,
            )  # fmt: skip
            mask, importance = decide(drawn, every, before)
            left = Positions.of(valid, mask)
            of = _attend(
                tokens, query, folded, left, before.keys_values,
                fused=fused, values=True, keys=False, both=keep,
            )  # fmt: skip
        else:
            left = None
            of = _attend(
                tokens, query, folded, everywhere, None,
                fused=fused, values=True, keys=True, both=keep,
            )  # fmt: skip
            mask, importance = decide(query, chosen, of)
        context, penalty = _run_context(of.output, of.logsumexp, parameters, value_bias, None)
    nothing = tokens.new_empty(0, dtype=given)
    state = TokenState(
        of.output.to(given),
        of.logsumexp,
        of.keys_values.to(given) if keep else nothing,
        nothing.bool() if left is None else left.flags,
    )
    return mask, importance, context, penalty, state


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: TokenState,
    wants_tokens: bool,
) -> tuple[Tensor | None, Parameters]:
    """Gradients of the tokens (None unless ``wants_tokens``) and of the parameters,
    in their types."""
    given, exact = tokens.dtype, torch.float32
    tokens = attention.held(tokens)
    attended, logsumexp = attention.held(state.attended), state.logsumexp
    batch, num_latents, num_heads, head_width = attended.shape
    num_positions, width = tokens.shape[1], num_heads * head_width
    live = state.visible if state.visible.dim() == 2 else valid
    live = None if live is None else live.contiguous()
    with launch.on(tokens.device):
        query, folded, value_bias, _ = _prepare(parameters, heads, tokens.dtype, None)
        incoming = tuple(
            None if x is None else x.contiguous() for x in (grad_context, grad_penalty)
        )
        grad_projected = _run_context(attended, logsumexp, parameters, value_bias, incoming)
        tile = attention.one_pass(query)
        one_pass = tile is not None
        if not one_pass:
            tile = attention.backward_tile(query)
        padded = triton.cdiv(num_latents, tile.latents) * tile.latents
        grad_attended = torch.empty_like(attended)
        statistics = torch.empty(
            (2, batch, num_heads, padded), dtype=torch.float32, device=tokens.device
        )
        block = 128 if padded % 128 == 0 and tile.width <= 128 else tile.latents
        output_gradient_kernel[(batch * num_heads, padded // block)](
            grad_projected, attended, logsumexp, parameters.out_weight.contiguous(), grad_attended,
            statistics,
            num_latents, padded, NUM_HEADS=num_heads, WIDTH=head_width, BLOCK_N=block,
            BLOCK_D=tile.width,
            BLOCK_K=64 if tile.width <= 64 else 32, num_warps=4, num_stages=2,
        )  # fmt: skip
        kept = attention.held(state.keys_values)
        if kept.dim() == 1:
            kept = F.linear(tokens, folded).unflatten(-1, (2, num_heads, head_width))
        # Side by side where the kernel can write them so.
        shape = (batch, num_positions, num_heads, head_width)
        grad_kept = kept.new_empty((*shape[:2], 2, *shape[2:]) if one_pass else (2, *shape))
        grad_key, grad_value = grad_kept.unbind(dim=2 if one_pass else 0)
        run = attention.run_gradient if one_pass else attention.run_two_passes
        partial = run(
            grad_attended, statistics, query, kept[:, :, 0], kept[:, :, 1], live,
            grad_key, grad_value, head_width**-0.5, tile,
        )  # fmt: skip
    grad_query = partial.sum(dim=0).flatten(1)  # (N, Dz)
    if not one_pass:
        grad_kept = grad_kept.movedim(0, 2)
    grad_kept = grad_kept.reshape(batch * num_positions, 2 * width)
    grad_tokens = None
    if wants_tokens:
        grad_tokens = (grad_kept @ folded).view(tokens.shape).to(given)
    there = tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)
    grad_folded = (grad_kept.T @ there.reshape(-1, tokens.shape[-1])).to(exact)

    # From here on everything has the size of the parameters.
    latents, in_weight, _, token_weight, token_bias, out_weight, _ = (
        x.to(exact) for x in parameters
    )
    query_weight, token_side = in_weight.tensor_split((width,))
    summed = grad_projected.sum(dim=1, dtype=exact)  # (B, Dz)
    occupied = (logsumexp[:, 0, 0] != -torch.inf).to(exact)
    with_tokens = occupied @ summed
    grad_out_weight = grad_projected.flatten(0, 1).T @ attended.flatten(0, 1).flatten(1)
    grad_out_weight = torch.addr(grad_out_weight.to(exact), with_tokens, value_bias)
    grad_value_bias = with_tokens @ out_weight
    grad_token_side = grad_folded @ token_weight.T
    grad_token_side[width:].addr_(grad_value_bias, token_bias)
    nothing = torch.zeros_like(grad_value_bias)  # the bias of the keys cancels in the softmax
    gradients = Parameters(
        latents=grad_query @ query_weight,
        in_weight=torch.cat([grad_query.T @ latents, grad_token_side]),
        in_bias=torch.cat([grad_query.sum(dim=0), nothing, grad_value_bias]),
        token_weight=token_side.T @ grad_folded,
        token_bias=grad_value_bias @ token_side[width:],
        out_weight=grad_out_weight,
        out_bias=summed.sum(dim=0),
    )
    return grad_tokens, Parameters(
        *(x.to(p.dtype) for x, p in zip(gradients, parameters, strict=True))
    )
