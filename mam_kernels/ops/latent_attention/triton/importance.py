"""How much attention the chosen latents pay to each token, and the mask that is drawn from it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Choice, Draw, Weighting
from ...._core.triton_language import wide
from ...selection.triton import select
from .launches import INTERPRETER_POSITIONS, held, padded_side, registers
from .tiles import LOG2_E, add_dot, dot, head_rows, live_tokens, shift_of


@triton.jit
def some_columns(matrix_ptr, row, live, stride, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS columns, from `first`, of the live rows of a matrix; 0 past WIDTH."""
    column = first + tl.arange(0, COLUMNS)
    return tl.load(
        matrix_ptr + row[:, None] * stride + column[None, :],
        mask=live[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )


@triton.jit
def chosen_attention(
    k,
    key_ptr,
    offset,
    live,
    index,
    head,
    query_ptr,
    logsumexp_ptr,
    latents_ptr,
    num_chosen,
    num_heads,
    factor,
    query_stride_latent,
    KEY_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """e^{scale q.k_l - LSE} of one head for some of the chosen latents; 0 past their number.

    `k` are the keys, unless they go by COLUMNS columns at a time.
    """
    exists = index < num_chosen
    latent = tl.load(latents_ptr + index, mask=exists, other=0)
    if COLUMNS == BLOCK_D:
        q = head_rows(query_ptr, latent, exists, query_stride_latent, WIDTH, BLOCK_D)
        score = dot(k, tl.trans(q))
    else:
        score = tl.zeros([offset.shape[0], index.shape[0]], dtype=tl.float32)
        for first in range(0, BLOCK_D, COLUMNS):  # trips: BLOCK_D / COLUMNS
            part = some_columns(key_ptr, offset, live, KEY_STRIDE, first, WIDTH, COLUMNS)
            q = some_columns(query_ptr, latent, exists, query_stride_latent, first, WIDTH, COLUMNS)
            score = add_dot(part, tl.trans(q), score)
    logsumexp = tl.load(logsumexp_ptr + latent * num_heads + head, mask=exists, other=float("inf"))
    return tl.exp2(score * factor - shift_of(logsumexp)[None, :])


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
    COLUMNS: tl.constexpr,
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
        key_of_head = key_ptr + head * key_stride_head
        query_of_head = query_ptr + head * query_stride_head
        if COLUMNS == BLOCK_D:
            k = head_rows(key_of_head, offset, live, KEY_STRIDE, WIDTH, BLOCK_D)
        else:
            k = None
        added = ()
        if HAS_WHOLE:
            sums = share[0]
            for start in range(0, num_whole, BLOCK_N):  # trips: R // BLOCK_N
                index = start + tl.arange(0, BLOCK_N)
                sums += chosen_attention(
                    k, key_of_head, offset, live, index, head, query_of_head, logsumexp_ptr,
                    latents_ptr, num_chosen, num_heads, factor, query_stride_latent, KEY_STRIDE,
                    WIDTH, BLOCK_D, COLUMNS,
                )  # fmt: skip
            added += (sums,)
        for b in tl.static_range(5):
            if REST & (8 << b):
                index = num_whole + (REST & ((8 << b) - 1)) + tl.arange(0, 8 << b)
                attention = chosen_attention(
                    k, key_of_head, offset, live, index, head, query_of_head, logsumexp_ptr,
                    latents_ptr, num_chosen, num_heads, factor, query_stride_latent, KEY_STRIDE,
                    WIDTH, BLOCK_D, COLUMNS,
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


# (latents in a block, positions, columns of a head at a time, warps) by the padded head width.
# Sums and factors lie in registers: of wide heads fewer positions, and of float32, whose factors
# all do, a few columns at a time.
HALF = {
    16: (64, 128, 16, 4),
    32: (64, 128, 32, 4),
    64: (64, 128, 64, 4),
    128: (64, 128, 128, 4),
    256: (64, 64, 256, 4),
}
# Triton 3.6 keeps more of the sums and scores at a time, which four warps spill.
HALF_BEFORE_3_7 = {width: (64, 128, width, 8) for width in HALF}
FULL = {
    16: (16, 32, 16, 4),
    32: (16, 32, 32, 4),
    64: (16, 32, 32, 4),
    128: (16, 32, 32, 4),
    256: (16, 32, 32, 4),
}
# Where products take all factors from registers: before Hopper, and on AMD, whose 64 KiB of shared
# memory hold no more either.
HALF_FROM_REGISTERS = HALF | {128: (64, 64, 128, 4), 256: (64, 64, 64, 4)}


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
    full = query.dtype == torch.float32
    from_shared = not launch.is_amd() and launch.architecture(key.device) >= 90
    half = HALF_BEFORE_3_7 if launch.BEFORE_3_7 else HALF
    half = half if from_shared else HALF_FROM_REGISTERS
    block, positions, columns, warps = (FULL if full else half)[padded_side(width)]
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
            BLOCK_D=padded_side(width), COLUMNS=columns, STAGES=3, num_warps=warps, **registers(),
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
