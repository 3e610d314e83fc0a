"""Attention of latents over tokens by Triton kernels: no tensor of latents by positions exists, and
no atomics are used.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core import triton_launch as launch
from ..._core.call import Choice, Draw, Weighting
from ..selection.triton import select
from .triton_tiles import LN_2, LOG2_E, add_dot, dot, head_rows, store_head_rows, wide

SMALLEST_DOT = 16  # tl.dot takes no smaller side
POSITIONS_PER_SPLIT = 256  # fewer do not pay for merging


@triton.jit
def load_rows(matrix_ptr, row, stride, live, width, BLOCK_D: tl.constexpr):
    """Rows of a matrix with contiguous columns, 0 where not `live`, whatever stands there, and past
    `width`.
    """
    column = tl.arange(0, BLOCK_D)
    return tl.load(
        matrix_ptr + row.to(tl.int64)[:, None] * stride + column[None, :],
        mask=live[:, None] & (column < width)[None, :],
        other=0.0,
    )  # [rows, BLOCK_D]


@triton.jit
def store_rows(matrix_ptr, row, stride, live, width, x, BLOCK_D: tl.constexpr):
    """Writes the live rows of a matrix with contiguous columns."""
    column = tl.arange(0, BLOCK_D)
    tl.store(
        matrix_ptr + row.to(tl.int64)[:, None] * stride + column[None, :],
        x.to(matrix_ptr.dtype.element_ty),
        mask=live[:, None] & (column < width)[None, :],
    )


@triton.jit
def live_tokens(valid_ptr, stride, token, last, HAS_VALID: tl.constexpr):
    """Which tokens exist: before `last`, and valid."""
    live = token < last
    if HAS_VALID:
        live &= tl.load(valid_ptr + token.to(tl.int64) * stride, mask=live, other=0) != 0
    return live


@triton.jit(do_not_specialize=["num_latents", "num_positions", "split_size"])
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    valid_ptr,
    output_ptr,
    logsumexp_ptr,
    scale,
    num_latents,
    num_positions,
    num_heads,
    width,
    split_size,
    query_stride_latent,
    query_stride_head,
    key_stride_batch,
    key_stride_position,
    key_stride_head,
    value_stride_batch,
    value_stride_position,
    value_stride_head,
    valid_stride_batch,
    valid_stride_position,
    HAS_VALUE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of one cell, over one split of its positions: LSE = log sum_l e^{scale q.k_l}, O =
    sum_l e^{scale q.k_l - LSE} v_l.

    Online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022) in powers of two. Outputs are
    (split, batch, latent, head, width).
    """
    batch = (tl.program_id(0) // num_heads).to(tl.int64)
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2).to(tl.int64)
    num_batches = tl.num_programs(0) // num_heads
    key_ptr += batch * key_stride_batch + head * key_stride_head
    if HAS_VALUE:
        value_ptr += batch * value_stride_batch + head * value_stride_head
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    first = tl.program_id(2) * split_size
    last = tl.minimum(first + split_size, num_positions)

    q = load_rows(
        query_ptr + head * query_stride_head,
        latent,
        query_stride_latent,
        latent < num_latents,
        width,
        BLOCK_D,
    )
    top = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)  # greatest score, in powers of two
    total = tl.zeros([BLOCK_N], dtype=tl.float32)  # sum of 2^(score - top)
    output = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for start in range(first, last, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        live = live_tokens(valid_ptr, valid_stride_position, token, last, HAS_VALID)
        k = load_rows(key_ptr, token, key_stride_position, live, width, BLOCK_D)
        score = dot(q, tl.trans(k)) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_L]
        score = tl.where(live[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # As long as no token was met, the top is -inf and any finite base will do.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - base[:, None])
        rescale = tl.exp2(top - base)
        total = total * rescale + tl.sum(weight, 1)
        if HAS_VALUE:
            v = load_rows(value_ptr, token, value_stride_position, live, width, BLOCK_D)
            output = output * rescale[:, None] + dot(weight.to(v.dtype), v)
        top = new_top

    empty = total == 0.0
    safe_total = tl.where(empty, 1.0, total)
    row = ((split * num_batches + batch) * num_latents + latent) * num_heads + head
    logsumexp = tl.where(empty, float("-inf"), (top + tl.log2(safe_total)) * LN_2)
    tl.store(logsumexp_ptr + row, logsumexp, mask=latent < num_latents)
    if HAS_VALUE:
        store_rows(
            output_ptr,
            row,
            width,
            latent < num_latents,
            width,
            output / safe_total[:, None],
            BLOCK_D,
        )


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def merge_kernel(
    partial_output_ptr,
    partial_logsumexp_ptr,
    output_ptr,
    logsumexp_ptr,
    num_rows,
    num_splits,
    width,
    HAS_VALUE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows of attention from those over each split: LSE = log sum_s e^{LSE_s}, O = sum_s e^{LSE_s -
    LSE} O_s.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < num_rows
    top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    for split in range(num_splits):
        partial = tl.load(
            partial_logsumexp_ptr + split * num_rows.to(tl.int64) + row,
            mask=live,
            other=float("-inf"),
        )
        top = tl.maximum(top, partial)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    output = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for split in range(num_splits):
        place = split * num_rows.to(tl.int64) + row
        weight = tl.exp(
            tl.load(partial_logsumexp_ptr + place, mask=live, other=float("-inf")) - base
        )
        total += weight
        if HAS_VALUE:
            output += weight[:, None] * load_rows(
                partial_output_ptr, place, width, live, width, BLOCK_D
            )
    empty = total == 0.0
    safe_total = tl.where(empty, 1.0, total)
    tl.store(
        logsumexp_ptr + row, tl.where(empty, float("-inf"), base + tl.log(safe_total)), mask=live
    )
    if HAS_VALUE:
        store_rows(output_ptr, row, width, live, width, output / safe_total[:, None], BLOCK_D)


@triton.jit(do_not_specialize=["num_latents", "padded"])
def statistics_kernel(
    grad_output_ptr,
    output_ptr,
    logsumexp_ptr,
    grad_logsumexp_ptr,
    statistics_ptr,
    num_latents,
    padded,
    num_heads,
    width,
    HAS_GRAD_LOGSUMEXP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """LSE log2(e) and delta = sum_d dO O - dLSE of one head of a cell, as (2, batch, head, padded
    latents): a program of the backward pass reads them whole. Rows of no latent get inf and 0.
    """
    batch = (tl.program_id(0) // num_heads).to(tl.int64)
    head = tl.program_id(0) % num_heads
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = latent < num_latents
    row = (batch * num_latents + latent) * num_heads + head
    grad_output = load_rows(grad_output_ptr, row, width, live, width, BLOCK_D).to(tl.float32)
    output = load_rows(output_ptr, row, width, live, width, BLOCK_D).to(tl.float32)
    delta = tl.sum(grad_output * output, 1)
    if HAS_GRAD_LOGSUMEXP:
        delta -= tl.load(grad_logsumexp_ptr + row, mask=live, other=0.0)
    logsumexp = tl.load(logsumexp_ptr + row, mask=live, other=float("inf")) * LOG2_E
    place = tl.program_id(0).to(tl.int64) * padded + latent
    rows = tl.num_programs(0).to(tl.int64) * padded
    tl.store(statistics_ptr + place, logsumexp)
    tl.store(statistics_ptr + rows + place, delta)


@triton.jit
def as_factor(x, PART: tl.constexpr, BLOCK_N: tl.constexpr):
    """A right factor whose product with rows of ones is x in every row; [16, BLOCK_N] of PART.

    x is the sum of three parts, which of bfloat16 hold the 24 bits of float32.
    """
    first = x.to(PART)
    rest = x - first.to(tl.float32)
    second = rest.to(PART)
    third = (rest - second.to(tl.float32)).to(PART)
    row = tl.arange(0, 16)[:, None]
    zero = tl.zeros([16, BLOCK_N], dtype=PART)
    parts = tl.where(row == 0, first[None, :], zero)
    parts = tl.where(row == 1, second[None, :], parts)
    return tl.where(row == 2, third[None, :], parts)


@triton.jit(do_not_specialize=["num_latents", "num_positions", "split_size"])
def gradient_kernel(
    grad_output_ptr,
    statistics_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    valid_ptr,
    grad_key_ptr,
    grad_value_ptr,
    partial_ptr,
    scale,
    num_latents,
    num_positions,
    split_size,
    key_stride_batch,
    value_stride_batch,
    valid_stride_batch,
    valid_stride_position,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    KEY_STRIDE_HEAD: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    VALUE_STRIDE_HEAD: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of one cell, all its latents, over one split of its tokens: A = e^{scale q.k - LSE},
    dV = A^T dO, dS = A (dO V^T - delta), dK = scale dS^T Q, and its part of dQ = scale dS K.

    Keys and values are read once. Rows of the tiles are tokens, so the factors of dV and dK stay in
    registers. LSE and delta, one number a column, join the products they are subtracted from: as
    vectors they would be read from shared memory by every row, or held in registers and spilled. dQ
    comes before dK: in the other order the assembler runs its product apart from all others.
    Partials are (split, batch, latent, head, width).
    """
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = tl.program_id(0) % NUM_HEADS
    split = tl.program_id(1)
    first = split * split_size
    last = tl.minimum(first + split_size, num_positions)
    latent = tl.arange(0, BLOCK_N)
    exists = latent < num_latents
    q = head_rows(query_ptr + head * WIDTH, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D)
    grad_output = head_rows(
        grad_output_ptr + (batch * num_latents * NUM_HEADS + head) * WIDTH,
        latent,
        exists,
        NUM_HEADS * WIDTH,
        WIDTH,
        BLOCK_D,
    )
    factor = scale * LOG2_E
    statistics_ptr += tl.program_id(0).to(tl.int64) * BLOCK_N
    logsumexp = tl.load(statistics_ptr + latent)
    # Rows of no latent have no gradient, and a cell without tokens no live token: any number does.
    logsumexp = tl.where(tl.abs(logsumexp) < float("inf"), logsumexp, 0.0)
    delta = tl.load(statistics_ptr + tl.num_programs(0).to(tl.int64) * BLOCK_N + latent)
    logsumexp_parts = as_factor(-logsumexp / factor, PART, BLOCK_N)
    delta_parts = as_factor(-delta, PART, BLOCK_N)
    ones = tl.full([BLOCK_L, 16], 1.0, dtype=PART)
    key_ptr += batch * key_stride_batch + head * KEY_STRIDE_HEAD
    value_ptr += batch * value_stride_batch + head * VALUE_STRIDE_HEAD
    grad_key_ptr += batch * num_positions * GRAD_STRIDE + head * WIDTH
    grad_value_ptr += batch * num_positions * GRAD_STRIDE + head * WIDTH
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    offset = tl.arange(0, BLOCK_L)
    grad_query = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for start in range(first, last, BLOCK_L):  # trips: L / BLOCK_L
        token = start + offset
        inside = token < last
        live = live_tokens(valid_ptr, valid_stride_position, token, last, HAS_VALID)
        from_start = wide(start)
        k = head_rows(key_ptr + from_start * KEY_STRIDE, offset, live, KEY_STRIDE, WIDTH, BLOCK_D)
        v = head_rows(
            value_ptr + from_start * VALUE_STRIDE, offset, live, VALUE_STRIDE, WIDTH, BLOCK_D
        )
        score = add_dot(k, tl.trans(q), dot(ones, logsumexp_parts))
        attention = tl.exp2(score * factor)  # [BLOCK_L, BLOCK_N]
        if HAS_VALID:  # noqa: SIM114
            attention = tl.where(live[:, None], attention, 0.0)
        elif start + BLOCK_L > last:  # share: 0
            attention = tl.where(live[:, None], attention, 0.0)
        grad_value = dot(attention.to(v.dtype), grad_output)
        store_head_rows(
            grad_value_ptr + from_start * GRAD_STRIDE,
            offset,
            inside,
            grad_value,
            GRAD_STRIDE,
            WIDTH,
            BLOCK_D,
        )
        grad_attention = add_dot(v, tl.trans(grad_output), dot(ones, delta_parts))
        grad_score = (attention * grad_attention).to(k.dtype)
        grad_query = add_dot(tl.trans(grad_score), k, grad_query)
        grad_key = dot(grad_score, q) * scale
        store_head_rows(
            grad_key_ptr + from_start * GRAD_STRIDE,
            offset,
            inside,
            grad_key,
            GRAD_STRIDE,
            WIDTH,
            BLOCK_D,
        )

    num_batches = tl.num_programs(0) // NUM_HEADS
    row = ((split * num_batches + batch) * num_latents + latent) * NUM_HEADS + head
    store_head_rows(partial_ptr, row, exists, grad_query * scale, WIDTH, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=["num_latents", "padded", "num_positions"])
def key_value_gradient_kernel(
    grad_output_ptr,
    statistics_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    valid_ptr,
    grad_key_ptr,
    grad_value_ptr,
    scale,
    num_latents,
    padded,
    num_positions,
    num_heads,
    width,
    query_stride_latent,
    query_stride_head,
    key_stride_batch,
    key_stride_position,
    key_stride_head,
    value_stride_batch,
    value_stride_position,
    value_stride_head,
    valid_stride_batch,
    valid_stride_position,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of a block of positions,
    latents block by block: dV and dK of ``gradient_kernel``."""
    batch = (tl.program_id(0) // num_heads).to(tl.int64)
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    token = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    live = live_tokens(valid_ptr, valid_stride_position, token, num_positions, HAS_VALID)
    key_ptr += batch * key_stride_batch + head * key_stride_head
    value_ptr += batch * value_stride_batch + head * value_stride_head
    k = load_rows(key_ptr, token, key_stride_position, live, width, BLOCK_D)
    v = load_rows(value_ptr, token, value_stride_position, live, width, BLOCK_D)

    logsumexp_ptr = statistics_ptr + tl.program_id(0).to(tl.int64) * padded
    delta_ptr = logsumexp_ptr + tl.num_programs(0).to(tl.int64) * padded
    grad_key = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    grad_value = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for start in range(0, num_latents, BLOCK_N):
        latent = start + tl.arange(0, BLOCK_N)
        exists = latent < num_latents
        row = (batch * num_latents + latent) * num_heads + head
        q = load_rows(
            query_ptr + head * query_stride_head,
            latent,
            query_stride_latent,
            exists,
            width,
            BLOCK_D,
        )
        grad_output = load_rows(grad_output_ptr, row, width, exists, width, BLOCK_D)
        logsumexp = tl.load(logsumexp_ptr + latent)
        delta = tl.load(delta_ptr + latent)
        # An empty cell's log-sum-exp is -inf, but none of its tokens is live.
        attention = tl.exp2(dot(k, tl.trans(q)) * (scale * LOG2_E) - logsumexp[None, :])
        attention = tl.where(live[:, None], attention, 0.0)
        grad_value += dot(attention.to(grad_output.dtype), grad_output)
        grad_attention = dot(v, tl.trans(grad_output))  # [BLOCK_L, BLOCK_N]
        grad_score = tl.where(live[:, None], attention * (grad_attention - delta[None, :]), 0.0)
        grad_key += dot(grad_score.to(q.dtype), q)

    row = (batch * num_positions + token) * num_heads + head
    store_rows(grad_key_ptr, row, width, token < num_positions, width, grad_key * scale, BLOCK_D)
    store_rows(grad_value_ptr, row, width, token < num_positions, width, grad_value, BLOCK_D)


@triton.jit(do_not_specialize=["num_latents", "padded", "num_positions", "split_size"])
def query_gradient_kernel(
    grad_output_ptr,
    statistics_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    valid_ptr,
    partial_ptr,
    scale,
    num_latents,
    padded,
    num_positions,
    num_heads,
    width,
    split_size,
    query_stride_latent,
    query_stride_head,
    key_stride_batch,
    key_stride_position,
    key_stride_head,
    value_stride_batch,
    value_stride_position,
    value_stride_head,
    valid_stride_batch,
    valid_stride_position,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of latents, one split of a cell: its part of dQ, as in ``gradient_kernel``."""
    batch = (tl.program_id(0) // num_heads).to(tl.int64)
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = latent < num_latents
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    key_ptr += batch * key_stride_batch + head * key_stride_head
    value_ptr += batch * value_stride_batch + head * value_stride_head
    first = tl.program_id(2) * split_size
    last = tl.minimum(first + split_size, num_positions)

    row = (batch * num_latents + latent) * num_heads + head
    q = load_rows(
        query_ptr + head * query_stride_head, latent, query_stride_latent, exists, width, BLOCK_D
    )
    grad_output = load_rows(grad_output_ptr, row, width, exists, width, BLOCK_D)
    logsumexp_ptr = statistics_ptr + tl.program_id(0).to(tl.int64) * padded
    logsumexp = tl.load(logsumexp_ptr + latent)
    delta = tl.load(logsumexp_ptr + tl.num_programs(0).to(tl.int64) * padded + latent)
    grad_query = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for start in range(first, last, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        live = live_tokens(valid_ptr, valid_stride_position, token, last, HAS_VALID)
        k = load_rows(key_ptr, token, key_stride_position, live, width, BLOCK_D)
        v = load_rows(value_ptr, token, value_stride_position, live, width, BLOCK_D)
        score = dot(q, tl.trans(k))  # [BLOCK_N, BLOCK_L]
        attention = tl.exp2(score * (scale * LOG2_E) - logsumexp[:, None])
        attention = tl.where(live[None, :], attention, 0.0)
        grad_score = attention * (dot(grad_output, tl.trans(v)) - delta[:, None])
        grad_query += dot(tl.where(live[None, :], grad_score, 0.0).to(k.dtype), k)

    partial_row = (
        tl.program_id(2) * (tl.num_programs(0) // num_heads).to(tl.int64) * num_latents * num_heads
        + row
    )
    store_rows(partial_ptr, partial_row, width, exists, width, grad_query * scale, BLOCK_D)


@triton.jit
def chosen_attention(
    k,
    index,
    head,
    query_ptr,
    logsumexp_ptr,
    latents_ptr,
    num_chosen,
    num_heads,
    factor,
    query_stride_latent,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """e^{scale q.k_l - LSE} of one head for some of the chosen latents; 0 past their number."""
    exists = index < num_chosen
    latent = tl.load(latents_ptr + index, mask=exists, other=0)
    q = head_rows(query_ptr, latent, exists, query_stride_latent, WIDTH, BLOCK_D)
    logsumexp = tl.load(logsumexp_ptr + latent * num_heads + head, mask=exists, other=float("inf"))
    return tl.exp2(dot(k, tl.trans(q)) * factor - (logsumexp * LOG2_E)[None, :])


@triton.jit(do_not_specialize=["num_latents", "num_positions", "num_chosen"])
def importance_kernel(
    query_ptr,
    key_ptr,
    logsumexp_ptr,
    latents_ptr,
    valid_ptr,
    importance_ptr,
    scale,
    num_latents,
    num_positions,
    num_chosen,
    num_heads,
    query_stride_latent,
    query_stride_head,
    key_stride_batch,
    key_stride_head,
    valid_stride_batch,
    valid_stride_position,
    WIDTH: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_WHOLE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A block of positions of one cell: s_l = sum over the chosen latents and all heads of e^{scale
    q.k_l - LSE}.

    The chosen latents go by in blocks of BLOCK_N, and what is left over, REST columns, in blocks of
    the powers of two that it is the sum of: 38 latents cost 32 + 8 columns, not 64.
    """
    batch = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_L
    offset = tl.arange(0, BLOCK_L)
    token = first + offset
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    live = live_tokens(valid_ptr, valid_stride_position, token, num_positions, HAS_VALID)
    key_ptr += batch * key_stride_batch + wide(first) * KEY_STRIDE
    logsumexp_ptr += batch * num_latents * num_heads
    factor = scale * LOG2_E
    num_whole = num_chosen // BLOCK_N * BLOCK_N
    share = ()
    if HAS_WHOLE:
        share += (tl.zeros([BLOCK_L, BLOCK_N], dtype=tl.float32),)
    for b in tl.static_range(5):
        if REST & (8 << b):
            share += (tl.zeros([BLOCK_L, 8 << b], dtype=tl.float32),)
    for head in tl.range(num_heads, num_stages=STAGES):  # trips: H
        k = head_rows(key_ptr + head * key_stride_head, offset, live, KEY_STRIDE, WIDTH, BLOCK_D)
        query_of_head = query_ptr + head * query_stride_head
        added = ()
        if HAS_WHOLE:
            sums = share[0]
            for start in range(0, num_whole, BLOCK_N):  # trips: R // BLOCK_N
                index = start + tl.arange(0, BLOCK_N)
                sums += chosen_attention(
                    k, index, head, query_of_head, logsumexp_ptr, latents_ptr, num_chosen,
                    num_heads, factor, query_stride_latent, WIDTH, BLOCK_D,
                )  # fmt: skip
            added += (sums,)
        for b in tl.static_range(5):
            if REST & (8 << b):
                index = num_whole + (REST & ((8 << b) - 1)) + tl.arange(0, 8 << b)
                attention = chosen_attention(
                    k, index, head, query_of_head, logsumexp_ptr, latents_ptr, num_chosen,
                    num_heads, factor, query_stride_latent, WIDTH, BLOCK_D,
                )  # fmt: skip
                added += (share[len(added)] + attention,)
        share = added
    importance = tl.sum(share[0], 1)
    for b in tl.static_range(1, len(share)):
        importance += tl.sum(share[b], 1)
    tl.store(
        importance_ptr + batch * num_positions + token,
        tl.where(live, importance, 0.0),
        mask=token < num_positions,
    )


class Tile(NamedTuple):
    """A launch configuration."""

    latents: int
    positions: int
    width: int
    warps: int
    registers: int | None

    def arguments(self) -> dict[str, int]:
        return {
            "BLOCK_N": self.latents,
            "BLOCK_L": self.positions,
            "BLOCK_D": self.width,
            "num_warps": self.warps,
            "num_stages": 2,
            **launch.register_limit(self.registers),
        }


# (latents, positions, warps) by the padded head width; all compile without spills, in the shared
# memory of the device. Two-byte types go through tensor cores. float32, which must not be rounded,
# goes through the general units, whose factors lie in registers: small tiles. The importance, whose
# sums lie in registers too, takes the tiles of the backward pass.
HALF_FORWARD = {
    16: (128, 64, 4),
    32: (128, 64, 4),
    64: (128, 64, 8),
    128: (64, 64, 8),
    256: (32, 32, 8),
}
HALF_BACKWARD = {
    16: (64, 64, 4),
    32: (32, 64, 4),
    64: (64, 32, 4),
    128: (64, 32, 8),
    256: (16, 32, 8),
}
FULL_BACKWARD = {
    16: (16, 32, 4),
    32: (16, 32, 4),
    64: (32, 16, 4),
    128: (16, 32, 8),
    256: (16, 32, 8),
}
FULL_FORWARD = FULL_BACKWARD | {64: (16, 32, 4), 256: (32, 16, 8)}
# (positions, warps) of the backward pass over all latents at once, for two-byte types, by the
# padded head width.
LAUNCHES = {
    "gradient, heads of 16": (64, 4),
    "gradient, heads of 32": (64, 4),
    "gradient, heads of 64": (128, 8),
    "gradient, heads of 128": (64, 8),
}
# On Blackwell larger tiles of wide heads become a kernel that is nothing but a trap (Triton 3.7).
LAUNCHES_BLACKWELL = {"gradient, heads of 64": (64, 8), "gradient, heads of 128": None}
ONE_PASS_LATENTS = 128
# (latents in a block, positions, warps) of the importance
HALF_IMPORTANCE = {
    16: (64, 128, 4),
    32: (64, 128, 4),
    64: (64, 128, 4),
    128: (64, 128, 4),
    256: (64, 64, 4),
}
FULL_IMPORTANCE = {
    16: (16, 32, 4),
    32: (16, 32, 4),
    64: (16, 16, 8),
    128: (16, 16, 8),
    256: (16, 16, 8),
}
# AMD has 64 KiB of shared memory.
HALF_IMPORTANCE_AMD = HALF_IMPORTANCE | {128: (64, 64, 4), 256: (32, 64, 4)}
# AMD's matrix units take all factors from registers, and 8 of its warps have half as many each.
HALF_BACKWARD_AMD = HALF_BACKWARD | {64: (32, 64, 4), 128: (32, 32, 4), 256: (16, 16, 8)}
FULL_AMD = FULL_BACKWARD | {256: (16, 16, 4)}
HALF_REGISTERS = 255

INTERPRETER_LATENTS, INTERPRETER_POSITIONS = (
    64,
    128,
)  # its time is that of its operations, whatever their size


def _tile(query: Tensor, num_latents: int, backward: bool) -> Tile:
    """The configuration for the width, the type and, where it is small, the number of latents."""
    width = max(triton.next_power_of_2(query.shape[-1]), SMALLEST_DOT)
    fitting = max(triton.next_power_of_2(num_latents), SMALLEST_DOT)
    if launch.INTERPRETED:
        return Tile(min(fitting, INTERPRETER_LATENTS), INTERPRETER_POSITIONS, width, 1, None)
    full = query.dtype == torch.float32
    if launch.is_amd() and (full or backward):
        tiles = FULL_AMD if full else HALF_BACKWARD_AMD
    elif full:
        tiles = FULL_BACKWARD if backward else FULL_FORWARD
    else:
        tiles = HALF_BACKWARD if backward else HALF_FORWARD
    latents, positions, warps = tiles[width]
    return Tile(min(fitting, latents), positions, width, warps, None if full else HALF_REGISTERS)


def held(x: Tensor | None) -> Tensor | None:
    """What a kernel is given of a tensor: the interpreter holds bfloat16 as bits, which it would
    multiply, and truncates to it.
    """
    return x.float() if launch.INTERPRETED and x is not None and x.dtype == torch.bfloat16 else x


def num_splits(programs: int, num_positions: int, device: torch.device) -> int:
    """Into how many parts a row is split so that a small batch still fills the device twice."""
    wanted = 2 * launch.num_multiprocessors(device) // programs
    return max(1, min(wanted, num_positions // POSITIONS_PER_SPLIT))


def _split_size(num_positions: int, num_splits: int, tile: Tile) -> int:
    return triton.cdiv(triton.cdiv(num_positions, num_splits), tile.positions) * tile.positions


def _run_forward(
    query: Tensor, key: Tensor, value: Tensor | None, valid: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """Attention of each split, and the merge where there is more than one; without `value` the
    log-sum-exp alone.
    """
    num_latents, num_heads, width = query.shape
    batch, num_positions = key.shape[:2]
    tile = _tile(query, num_latents, backward=False)
    latent_blocks = triton.cdiv(num_latents, tile.latents)
    split_size = _split_size(
        num_positions,
        num_splits(batch * num_heads * latent_blocks, num_positions, key.device),
        tile,
    )
    splits = triton.cdiv(num_positions, split_size)
    shape = (splits, batch, num_latents, num_heads)
    logsumexp = torch.empty(shape, dtype=torch.float32, device=key.device)
    output = None
    if value is not None:
        dtype = query.dtype if splits == 1 else torch.float32
        output = torch.empty((*shape, width), dtype=dtype, device=key.device)
    with launch.on(key.device):
        forward_kernel[(batch * num_heads, latent_blocks, splits)](
            query, key, value, valid, output, logsumexp, scale, num_latents, num_positions,
            num_heads, width, split_size,
            *query.stride()[:2], *key.stride()[:3], *launch.strides(value, 4)[:3],
            *launch.strides(valid, 2),
            HAS_VALUE=value is not None, HAS_VALID=valid is not None, **tile.arguments(),
        )  # fmt: skip
        if splits > 1:
            return merge(output, logsumexp, query.dtype, width)
    return None if output is None else output[0], logsumexp[0]


def merge(
    partial_output: Tensor | None, partial_logsumexp: Tensor, dtype: torch.dtype, width: int
) -> tuple[Tensor | None, Tensor]:
    num_splits, *shape = partial_logsumexp.shape
    logsumexp = partial_logsumexp.new_empty(shape)
    output = (
        None if partial_output is None else partial_output.new_empty((*shape, width), dtype=dtype)
    )
    block_rows, block_width = 16, triton.next_power_of_2(width)
    merge_kernel[(triton.cdiv(logsumexp.numel(), block_rows),)](
        partial_output, partial_logsumexp, output, logsumexp, logsumexp.numel(), num_splits, width,
        HAS_VALUE=output is not None, BLOCK_R=block_rows, BLOCK_D=block_width, num_warps=4,
    )  # fmt: skip
    return output, logsumexp


def forward(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``O = A V`` and the log-sum-exp of the scores; (B, N, H, d) and (B, N, H)."""
    output, logsumexp = _run_forward(held(query), held(key), held(value), valid, scale)
    return output.to(query.dtype), logsumexp


def logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """The log-sum-exp of the scores alone; (B, N, H)."""
    return _run_forward(held(query), held(key), None, valid, scale)[1]


def _statistics(
    grad_output: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    grad_logsumexp: Tensor | None,
    padded: int,
) -> Tensor:
    """Log-sum-exp in powers of two and ``sum_d dO O - dLSE``; (2, B, H, padded latents)."""
    batch, num_latents, num_heads, width = output.shape
    statistics = torch.empty(
        (2, batch, num_heads, padded), dtype=torch.float32, device=output.device
    )
    block = min(padded, 64)
    statistics_kernel[(batch * num_heads, padded // block)](
        grad_output, output, logsumexp, grad_logsumexp, statistics, num_latents, padded, num_heads,
        width,
        HAS_GRAD_LOGSUMEXP=grad_logsumexp is not None, BLOCK_N=block,
        BLOCK_D=triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return statistics


def one_pass(query: Tensor) -> Tile | None:
    """The configuration of ``gradient_kernel``; None where all latents at once do not fit."""
    num_latents, _, width = query.shape
    width = max(triton.next_power_of_2(width), SMALLEST_DOT)
    latents = max(triton.next_power_of_2(num_latents), SMALLEST_DOT)
    name = f"gradient, heads of {width}"
    if latents > ONE_PASS_LATENTS or name not in LAUNCHES:
        return None
    # Without wgmma all factors lie in registers, and would be spilled.
    architecture = launch.architecture(query.device)
    if launch.is_amd() or architecture < 90:
        return None
    if launch.INTERPRETED:
        return Tile(latents, INTERPRETER_POSITIONS, width, 1, None)
    if query.dtype == torch.float32:
        return None
    chosen = LAUNCHES_BLACKWELL.get(name, LAUNCHES[name]) if architecture >= 100 else LAUNCHES[name]
    if chosen is None:
        return None
    positions, warps = chosen
    # fewer rows than 64 would not go through wgmma
    return Tile(max(latents, 64), positions, width, warps, HALF_REGISTERS)


def backward_tile(query: Tensor) -> Tile:
    """The configuration of the backward pass, latents block by block."""
    return _tile(query, query.shape[0], backward=True)


def _part(query: Tensor) -> tl.dtype:
    """The type of the parts of ``as_factor``. The interpreter does not multiply bfloat16."""
    if launch.INTERPRETED:
        return {torch.float16: tl.float16}.get(query.dtype, tl.float32)
    return tl.bfloat16


def run_gradient(
    grad_output: Tensor,
    statistics: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    grad_key: Tensor,
    grad_value: Tensor,
    scale: float,
    tile: Tile,
) -> Tensor:
    """Writes the gradients of key and value, whose positions lie equally far apart; returns that of
    the query in parts, (splits * B, N, H, d) float32.
    """
    num_latents, num_heads, width = query.shape
    batch, num_positions = key.shape[:2]
    splits = num_splits(batch * num_heads, num_positions, key.device)
    split_size = _split_size(num_positions, splits, tile)
    splits = triton.cdiv(num_positions, split_size)
    partial = torch.empty((splits * batch, *query.shape), dtype=torch.float32, device=key.device)
    gradient_kernel[(batch * num_heads, splits)](
        grad_output, statistics, query, key, value, valid, grad_key, grad_value, partial, scale,
        num_latents, num_positions, split_size, key.stride(0), value.stride(0),
        *launch.strides(valid, 2),
        NUM_HEADS=num_heads, WIDTH=width, KEY_STRIDE=key.stride(1), KEY_STRIDE_HEAD=key.stride(2),
        VALUE_STRIDE=value.stride(1), VALUE_STRIDE_HEAD=value.stride(2),
        GRAD_STRIDE=grad_key.stride(1),
        HAS_VALID=valid is not None, PART=_part(query), **(tile.arguments() | {"num_stages": 1}),
    )  # fmt: skip
    return partial


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
    """Gradients of query (N, H, d), key and value (B, L, H, d); the batch's parts of the first are
    added in a fixed order.
    """
    dtype = query.dtype
    query, key, value = held(query).contiguous(), held(key), held(value)
    grad_output, output = held(grad_output).contiguous(), held(output).contiguous()
    if grad_logsumexp is not None:
        grad_logsumexp = grad_logsumexp.contiguous()
    grad_key = torch.empty(key.shape, dtype=key.dtype, device=key.device)
    grad_value = torch.empty(value.shape, dtype=value.dtype, device=key.device)
    # The log-sum-exp is divided by the scale there.
    tile = one_pass(query) if 1e-3 <= abs(scale) <= 1e3 else None
    with launch.on(key.device):
        if tile is not None:
            statistics = _statistics(grad_output, output, logsumexp, grad_logsumexp, tile.latents)
            partial = run_gradient(
                grad_output, statistics, query, key, value, valid, grad_key, grad_value, scale, tile
            )
        else:
            tile = backward_tile(query)
            padded = triton.cdiv(query.shape[0], tile.latents) * tile.latents
            statistics = _statistics(grad_output, output, logsumexp, grad_logsumexp, padded)
            partial = run_two_passes(
                grad_output, statistics, query, key, value, valid, grad_key, grad_value, scale, tile
            )
    return partial.sum(dim=0).to(dtype), grad_key.to(dtype), grad_value.to(dtype)


def run_two_passes(
    grad_output: Tensor,
    statistics: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    grad_key: Tensor,
    grad_value: Tensor,
    scale: float,
    tile: Tile,
) -> Tensor:
    """As ``run_gradient``, latents block by block: for any number and width of them,
    and float32."""
    num_latents, num_heads, width = query.shape
    batch, num_positions = key.shape[:2]
    padded = statistics.shape[-1]
    latent_blocks = padded // tile.latents
    splits = num_splits(batch * num_heads * latent_blocks, num_positions, key.device)
    split_size = _split_size(num_positions, splits, tile)
    splits = triton.cdiv(num_positions, split_size)
    partial = torch.empty((splits * batch, *query.shape), dtype=torch.float32, device=key.device)
    strides = (
        *query.stride()[:2],
        *key.stride()[:3],
        *value.stride()[:3],
        *launch.strides(valid, 2),
    )
    flags = {"HAS_VALID": valid is not None, **tile.arguments()}
    key_value_gradient_kernel[(batch * num_heads, triton.cdiv(num_positions, tile.positions))](
        grad_output, statistics, query, key, value, valid, grad_key, grad_value, scale,
        num_latents, padded, num_positions, num_heads, width, *strides, **flags,
    )  # fmt: skip
    query_gradient_kernel[(batch * num_heads, latent_blocks, splits)](
        grad_output, statistics, query, key, value, valid, partial, scale,
        num_latents, padded, num_positions, num_heads, width, split_size, *strides, **flags,
    )  # fmt: skip
    return partial


def importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
) -> Tensor:
    """``s_l = sum_{n in R} sum_h A[n, h, l]``; (B, L)."""
    query, key = held(query), held(key)
    num_latents, num_heads, width = query.shape
    batch, num_positions = key.shape[:2]
    block_width = max(triton.next_power_of_2(width), SMALLEST_DOT)
    full = query.dtype == torch.float32
    half = HALF_IMPORTANCE_AMD if launch.is_amd() else HALF_IMPORTANCE
    block, positions, warps = (FULL_IMPORTANCE if full else half)[block_width]
    if launch.INTERPRETED:
        positions = INTERPRETER_POSITIONS
    step = 16 if full else 8  # the smallest side of a product
    rest = triton.cdiv(latents.numel() % block, step) * step
    summed = torch.empty((batch, num_positions), dtype=torch.float32, device=key.device)
    with launch.on(key.device):
        importance_kernel[(batch, triton.cdiv(num_positions, positions))](
            query, key, logsumexp, latents, valid, summed, scale,
            num_latents, num_positions, latents.numel(), num_heads,
            *query.stride()[:2], key.stride(0), key.stride(2), *launch.strides(valid, 2),
            WIDTH=width, KEY_STRIDE=key.stride(1), HAS_VALID=valid is not None,
            HAS_WHOLE=latents.numel() >= block, REST=rest, BLOCK_N=block, BLOCK_L=positions,
            BLOCK_D=block_width, STAGES=3, num_warps=warps,
            **launch.register_limit(None if launch.INTERPRETED else HALF_REGISTERS),
        )  # fmt: skip
    return summed


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
    weights = importance(query, key, logsumexp, choice.latents, valid, scale)
    maskable = valid if choice.maskable is None else choice.maskable
    return select(weights, choice.num_masked, maskable, draw, weighting), weights
