"""Attention of latents over keys and values: online softmax, in splits of the tokens where the
batch is small.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.triton_language import wide
from .launches import (
    Splits,
    Tile,
    held,
    tile_of,
)
from .tiles import LN_2, LOG2_E, add_dot, dot, head_rows, live_tokens, store_head_rows


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
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
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
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = (tl.program_id(0) % NUM_HEADS).to(tl.int64)
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2).to(tl.int64)
    num_batches = tl.num_programs(0) // NUM_HEADS
    key_ptr += batch * key_stride_batch + head * key_stride_head
    if HAS_VALUE:
        value_ptr += batch * value_stride_batch + head * value_stride_head
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    first = tl.program_id(2) * split_size
    last = tl.minimum(first + split_size, num_positions)

    exists = latent < num_latents
    q = head_rows(
        query_ptr + head * query_stride_head, latent, exists, query_stride_latent, WIDTH, BLOCK_D
    )
    top = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)  # greatest score, in powers of two
    total = tl.zeros([BLOCK_N], dtype=tl.float32)  # sum of 2^(score - top)
    output = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    offset = tl.arange(0, BLOCK_L)
    for start in range(first, last, BLOCK_L):
        live = live_tokens(valid_ptr, valid_stride_position, start + offset, last, HAS_VALID)
        k = head_rows(
            key_ptr + wide(start) * key_stride_position,
            offset, live, key_stride_position, WIDTH, BLOCK_D,
        )  # fmt: skip
        score = dot(q, tl.trans(k)) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_L]
        score = tl.where(live[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # As long as no token was met, the top is -inf and any finite base will do.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - base[:, None])
        rescale = tl.exp2(top - base)
        total = total * rescale + tl.sum(weight, 1)
        if HAS_VALUE:
            v = head_rows(
                value_ptr + wide(start) * value_stride_position,
                offset, live, value_stride_position, WIDTH, BLOCK_D,
            )  # fmt: skip
            output = add_dot(weight.to(v.dtype), v, output * rescale[:, None])
        top = new_top

    row = ((split * num_batches + batch) * num_latents + latent) * NUM_HEADS + head
    tl.store(logsumexp_ptr + row, log_of_sum(top, total), mask=exists)
    if HAS_VALUE:
        store_head_rows(
            output_ptr, row, exists, output / divisor(total)[:, None], WIDTH, WIDTH, BLOCK_D
        )


@triton.jit
def log_of_sum(top, total):
    """The natural logarithm of 2^top total; -inf for no tokens."""
    return tl.where(total == 0.0, float("-inf"), (top + tl.log2(divisor(total))) * LN_2)


@triton.jit
def divisor(total):
    """The sum of weights to divide by; for no tokens, whose output is 0, any positive number."""
    return tl.where(total == 0.0, 1.0, total)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def merge_kernel(
    partial_output_ptr,
    partial_logsumexp_ptr,
    output_ptr,
    logsumexp_ptr,
    num_rows,
    num_splits,
    WIDTH: tl.constexpr,
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
        place = split * num_rows.to(tl.int64) + row
        partial = tl.load(partial_logsumexp_ptr + place, mask=live, other=float("-inf"))
        top = tl.maximum(top, partial)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    output = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for split in range(num_splits):
        place = split * num_rows.to(tl.int64) + row
        partial = tl.load(partial_logsumexp_ptr + place, mask=live, other=float("-inf"))
        weight = tl.exp(partial - base)
        total += weight
        if HAS_VALUE:
            output += weight[:, None] * head_rows(
                partial_output_ptr, place, live, WIDTH, WIDTH, BLOCK_D
            )
    logsumexp = tl.where(total == 0.0, float("-inf"), base + tl.log(divisor(total)))
    tl.store(logsumexp_ptr + row, logsumexp, mask=live)
    if HAS_VALUE:
        store_head_rows(
            output_ptr, row, live, output / divisor(total)[:, None], WIDTH, WIDTH, BLOCK_D
        )


# (latents, positions, warps) by the padded head width. Two-byte types go through tensor cores.
# float32, which must not be rounded, goes through the general units, whose factors lie in
# registers: small tiles.
HALF = {
    16: (128, 64, 4),
    32: (128, 64, 4),
    64: (128, 64, 8),
    128: (64, 64, 8),
    256: (32, 32, 8),
}
FULL = {
    16: (16, 32, 4),
    32: (16, 32, 4),
    64: (16, 32, 4),
    128: (16, 32, 8),
    256: (32, 16, 8),
}
FULL_AMD = FULL | {256: (16, 16, 4)}  # in 64 KiB of shared memory


def _tile(query: Tensor) -> Tile:
    # left alone, the assembler spills a few registers of float32 heads of 64, and with Triton 3.6
    # of 128
    limited = (64, 128) if launch.BEFORE_3_7 else (64,)
    return tile_of(query, HALF, FULL_AMD if launch.is_amd() else FULL, limited)


def forward(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``O = A V`` and the log-sum-exp of the scores; (B, N, H, d) and (B, N, H)."""
    output, logsumexp = _run(held(query), held(key), held(value), valid, scale)
    return output.to(query.dtype), logsumexp


def logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """The log-sum-exp of the scores alone; (B, N, H)."""
    return _run(held(query), held(key), None, valid, scale)[1]


def _run(
    query: Tensor, key: Tensor, value: Tensor | None, valid: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """Attention of each split, and the merge where there is more than one; without `value` the
    log-sum-exp alone.
    """
    (num_latents, num_heads, width), (batch, num_positions) = query.shape, key.shape[:2]
    tile = _tile(query)
    latent_blocks = triton.cdiv(num_latents, tile.latents)
    programs = batch * num_heads * latent_blocks
    splits = Splits.of(num_positions, programs, tile.positions, key.device)
    output, logsumexp = partial_results(query, batch, splits, with_output=value is not None)
    with launch.on(key.device):
        forward_kernel[(batch * num_heads, latent_blocks, splits.count)](
            query, key, value, valid, output, logsumexp, scale, num_latents, num_positions,
            splits.size, *query.stride()[:2], *key.stride()[:3], *launch.strides(value, 4)[:3],
            *launch.strides(valid, 2), NUM_HEADS=num_heads, WIDTH=width,
            HAS_VALUE=value is not None, HAS_VALID=valid is not None, **tile.arguments(),
        )  # fmt: skip
        return merged(output, logsumexp, query.dtype)


def partial_results(
    query: Tensor, batch: int, splits: Splits, *, with_output: bool
) -> tuple[Tensor | None, Tensor]:
    """Room for what each split gives: the output (splits, B, N, H, d), float32 where it will be
    merged, and the log-sum-exp (splits, B, N, H).
    """
    shape = (splits.count, batch, *query.shape)
    logsumexp = query.new_empty(shape[:-1], dtype=torch.float32)
    dtype = query.dtype if splits.count == 1 else torch.float32
    return (query.new_empty(shape, dtype=dtype) if with_output else None), logsumexp


def merged(
    partial_output: Tensor | None, partial_logsumexp: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Output and log-sum-exp of the whole rows from those of ``partial_results``."""
    num_splits, *shape = partial_logsumexp.shape
    has_value = partial_output is not None
    if num_splits == 1:
        return (partial_output[0] if has_value else None), partial_logsumexp[0]
    width = partial_output.shape[-1] if has_value else 1
    logsumexp = partial_logsumexp.new_empty(shape)
    output = partial_output.new_empty((*shape, width), dtype=dtype) if has_value else None
    block = 16
    merge_kernel[(triton.cdiv(logsumexp.numel(), block),)](
        partial_output, partial_logsumexp, output, logsumexp, logsumexp.numel(), num_splits,
        WIDTH=width, HAS_VALUE=has_value, BLOCK_R=block, BLOCK_D=triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return output, logsumexp
