"""Projection and attention in one pass over the tokens.

Keys and values exist a tile at a time. A step without gradient stores the keys alone, which the
importance reads again: computing them twice would cost more. One program takes a few heads of a
cell, so that the weights of its keys and values lie in shared memory while the tokens go by.
"""

from enum import Enum
from typing import NamedTuple

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.triton_language import wide
from . import attention
from .attention import divisor, log_of_sum
from .launches import Splits
from .plan import plan
from .positions import Positions
from .tiles import (
    LOG2_E,
    add_dot,
    dot,
    equal_parts,
    head_rows,
    left_and_right,
    store_columns,
    store_head_rows,
    upper_and_lower,
)


@triton.jit
def attend_tile(
    q,
    k,
    v,
    start,
    last,
    bias_ptr,
    factor,
    top,
    total,
    output,
    BLOCK_L: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS_ARE_FEATURES: tl.constexpr,
):
    """One head meets a tile of tokens: the online softmax (Milakov and Gimelshein, 2018; Dao et
    al., 2022) in powers of two.
    """
    score = dot(q, k if ROWS_ARE_FEATURES else tl.trans(k))  # [BLOCK_N, BLOCK_L]
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
    # Adds nothing, but has the sum precede the product: put off until another head's scores are
    # there too, both would be spilled.
    rescale += 0.0 * total
    if HAS_VALUE:
        v = tl.trans(v) if ROWS_ARE_FEATURES else v
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
    LATENT_BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_X: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS_ARE_FEATURES: tl.constexpr,
):
    """HEADS heads of one cell, over one split of its tokens: K, V = X W_kv^T a tile at a time,
    LSE = log sum_l e^{scale q.k_l}, O = sum_l e^{scale q.k_l - LSE} v_l.

    A tile of K and V has tokens as rows, of which the columns of several heads are taken apart
    without a move. Where ROWS_ARE_FEATURES it has them as columns: then two groups of four warps
    share one wide head, of which each would compute all tokens otherwise.

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
    latents = ()
    queries = ()
    tops = ()  # greatest score, in powers of two
    totals = ()  # sum of 2^(score - top)
    outputs = ()
    for i in tl.static_range(HEADS * LATENT_BLOCKS):
        at = head + i // LATENT_BLOCKS
        latent = i % LATENT_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = (latent < num_latents) & (at < NUM_HEADS)
        latents += (latent,)
        queries += (
            head_rows(query_ptr + at * WIDTH, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D),
        )
        tops += (tl.full([BLOCK_N], float("-inf"), dtype=tl.float32),)
        totals += (tl.zeros([BLOCK_N], dtype=tl.float32),)
        outputs += (tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32),)

    begin = first
    end = last
    if HAS_BIAS:
        bias_ptr += batch * bias_stride_batch
        # From a multiple of the tile, to which the bias is padded.
        begin = tl.maximum(begin, tl.load(range_ptr + 2 * batch) // BLOCK_L * BLOCK_L)
        end = tl.minimum(end, tl.load(range_ptr + 2 * batch + 1))
    if KEEP_KEYS or KEEP_VALUES:
        kept_ptr += batch * num_positions * KEPT_STRIDE
    offset = tl.arange(0, BLOCK_L)
    column = tl.arange(0, COLUMNS)  # of the keys alone, or of the values
    key_row = (head + column // BLOCK_D) * WIDTH + column % BLOCK_D
    key_real = (head + column // BLOCK_D < NUM_HEADS) & (column % BLOCK_D < WIDTH)
    for start in range(begin, end, BLOCK_L):  # trips: L / BLOCK_L
        token = start + offset
        inside = token < end
        row_of_tokens = tokens_ptr + wide(start) * TOKEN_STRIDE + offset[:, None] * TOKEN_STRIDE
        if ROWS_ARE_FEATURES:
            projected = tl.zeros([SIDES * COLUMNS, BLOCK_L], dtype=tl.float32)
        else:
            projected = tl.zeros([BLOCK_L, SIDES * COLUMNS], dtype=tl.float32)
        for c in tl.static_range(CHUNKS):
            feature = c * BLOCK_X + tl.arange(0, BLOCK_X)
            mask = inside[:, None]
            if CHUNKS * BLOCK_X != INPUT_WIDTH:
                mask &= (feature < INPUT_WIDTH)[None, :]
            x = tl.load(row_of_tokens + feature[None, :], mask=mask, other=0.0)
            if ROWS_ARE_FEATURES:
                projected = add_dot(weights[c], tl.trans(x), projected)
            else:
                projected = add_dot(x, tl.trans(weights[c]), projected)
        if HAS_BIAS:  # padding may hold NaN
            attended = tl.load(bias_ptr + token) == 0.0
            attended = attended[None, :] if ROWS_ARE_FEATURES else attended[:, None]
            projected = tl.where(attended, projected, 0.0)
        projected = projected.to(tokens_ptr.dtype.element_ty)
        if ROWS_ARE_FEATURES:
            k, v = upper_and_lower(projected, SIDES, COLUMNS, BLOCK_L)
            keys = (k,)
            values = (v,)
        else:
            k, v = left_and_right(projected, SIDES, BLOCK_L, COLUMNS)
            values = equal_parts(v, HEADS, BLOCK_L, COLUMNS)
            keys = equal_parts(k, HEADS, BLOCK_L, COLUMNS)
        if KEEP_KEYS or KEEP_VALUES:
            ALL_REAL: tl.constexpr = NUM_HEADS % HEADS == 0 and WIDTH == BLOCK_D
            place = kept_ptr + wide(start) * KEPT_STRIDE
            if KEEP_KEYS and KEEP_VALUES and HEADS > 1:
                store_columns(
                    place, projected, offset, weight_row, inside, real, KEPT_STRIDE, ALL_REAL,
                    ROWS_ARE_FEATURES,
                )  # fmt: skip
            else:
                if KEEP_KEYS:
                    store_columns(
                        place, k, offset, key_row, inside, key_real, KEPT_STRIDE, ALL_REAL,
                        ROWS_ARE_FEATURES,
                    )  # fmt: skip
                if KEEP_VALUES:
                    place += NUM_HEADS * WIDTH
                    store_columns(
                        place, v, offset, key_row, inside, key_real, KEPT_STRIDE, ALL_REAL,
                        ROWS_ARE_FEATURES,
                    )  # fmt: skip
        new_tops = ()
        new_totals = ()
        new_outputs = ()
        for i in tl.static_range(HEADS * LATENT_BLOCKS):
            top, total, output = attend_tile(
                queries[i], keys[i // LATENT_BLOCKS], values[i // LATENT_BLOCKS], start, end,
                bias_ptr, factor, tops[i], totals[i], outputs[i], BLOCK_L, HAS_VALUE, HAS_BIAS,
                ROWS_ARE_FEATURES,
            )  # fmt: skip
            new_tops += (top,)
            new_totals += (total,)
            new_outputs += (output,)
        tops = new_tops
        totals = new_totals
        outputs = new_outputs

    for i in tl.static_range(HEADS * LATENT_BLOCKS):
        at = head + i // LATENT_BLOCKS
        exists = (latents[i] < num_latents) & (at < NUM_HEADS)
        row = ((split * num_batches + batch) * num_latents + latents[i]) * NUM_HEADS + at
        tl.store(logsumexp_ptr + row, log_of_sum(tops[i], totals[i]), mask=exists)
        if HAS_VALUE:
            output = outputs[i] / divisor(totals[i])[:, None]
            store_head_rows(output_ptr, row, exists, output, WIDTH, WIDTH, BLOCK_D)


class Keep(Enum):
    """What of the projected tokens a pass leaves in memory."""

    KEYS = 1  # for the importance
    BOTH = 2  # for the gradient too


class Attended(NamedTuple):
    """What a pass over the tokens leaves."""

    output: Tensor | None  # (B, N, H, d)
    logsumexp: Tensor  # (B, N, H)
    kept: Tensor | None  # (B, L, 1 or 2, H, d): the keys, or keys and values

    @property
    def keys(self) -> Tensor:
        """(B, L, H, d)."""
        return self.kept[:, :, 0]


def attend(
    tokens: Tensor,
    query: Tensor,
    folded: Tensor,
    positions: Positions,
    kept: Tensor | None,
    keep: Keep | None,
    *,
    fused: bool,
    with_output: bool,
) -> Attended:
    """Attention over the projected tokens, in one pass (``fused``) or after their projection.

    Args:
        tokens, query, folded: (B, L, D), (N, H, d) and (2 Dz, D), of one type.
        positions: which are attended to.
        kept: of an earlier pass over the same tokens.
        keep: what this pass adds to ``kept``, or leaves where there is none.
        with_output: whether the output is wanted, or the log-sum-exp alone.
    """
    if fused:
        return _attend_at_once(tokens, query, folded, positions, kept, keep, with_output)
    if kept is None:
        kept = F.linear(tokens, folded).unflatten(-1, (2, *query.shape[1:]))
    key, value = kept.unbind(dim=2)
    scale = query.shape[-1] ** -0.5
    if not with_output:
        return Attended(None, attention.logsumexp(query, key, positions.flags, scale), kept)
    return Attended(*attention.forward(query, key, value, positions.flags, scale), kept)


def _attend_at_once(
    tokens: Tensor,
    query: Tensor,
    folded: Tensor,
    positions: Positions,
    kept: Tensor | None,
    keep: Keep | None,
    with_output: bool,
) -> Attended:
    chosen = plan(query, tokens)
    (num_latents, num_heads, width), (batch, num_positions, inputs) = query.shape, tokens.shape
    fresh = kept is None and keep is not None
    if fresh:
        kept = tokens.new_empty((batch, num_positions, keep.value, num_heads, width))
    programs = batch * triton.cdiv(num_heads, chosen.heads)
    splits = Splits.of(num_positions, programs, chosen.positions, tokens.device)
    output, logsumexp = attention.partial_results(query, batch, splits, with_output=with_output)
    project_and_attend_kernel[(programs, splits.count)](
        tokens, folded, query, positions.bias, positions.range, kept, output, logsumexp,
        width**-0.5, num_latents, num_positions, splits.size, tokens.stride(0),
        launch.strides(positions.bias, 2)[0], NUM_HEADS=num_heads, WIDTH=width, INPUT_WIDTH=inputs,
        TOKEN_STRIDE=tokens.stride(1), KEPT_STRIDE=launch.strides(kept, 5)[1],
        HAS_VALUE=with_output, HAS_BIAS=positions.bias is not None, KEEP_KEYS=fresh,
        KEEP_VALUES=keep is Keep.BOTH and with_output, **chosen.arguments(),
    )  # fmt: skip
    return Attended(*attention.merged(output, logsumexp, tokens.dtype), kept)
