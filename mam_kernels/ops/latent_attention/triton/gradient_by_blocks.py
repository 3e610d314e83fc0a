"""Gradients of attention in two passes over keys and values, latents block by block: for any number
and width of them, and for float32, whose products have no tensor cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.triton_language import wide
from . import launches
from .launches import (
    Splits,
    Tile,
    registers,
)
from .tiles import LOG2_E, dot, head_rows, live_tokens, store_head_rows


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
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of a block of positions: dV and dK of ``gradient_kernel``, block by block."""
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = (tl.program_id(0) % NUM_HEADS).to(tl.int64)
    start_token = tl.program_id(1) * BLOCK_L
    offset = tl.arange(0, BLOCK_L)
    token = start_token + offset
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    live = live_tokens(valid_ptr, valid_stride_position, token, num_positions, HAS_VALID)
    key_ptr += batch * key_stride_batch + head * key_stride_head
    key_ptr += wide(start_token) * key_stride_position
    value_ptr += batch * value_stride_batch + head * value_stride_head
    value_ptr += wide(start_token) * value_stride_position
    k = head_rows(key_ptr, offset, live, key_stride_position, WIDTH, BLOCK_D)
    v = head_rows(value_ptr, offset, live, value_stride_position, WIDTH, BLOCK_D)

    shift_ptr = statistics_ptr + tl.program_id(0).to(tl.int64) * padded
    delta_ptr = shift_ptr + tl.num_programs(0).to(tl.int64) * padded
    query_ptr += head * WIDTH
    grad_output_ptr += (batch * num_latents * NUM_HEADS + head) * WIDTH
    grad_key = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    grad_value = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for start in range(0, num_latents, BLOCK_N):  # trips: ceil(N / BLOCK_N)
        latent = start + tl.arange(0, BLOCK_N)
        exists = latent < num_latents
        q = head_rows(query_ptr, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D)
        grad_output = head_rows(grad_output_ptr, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D)
        shift = tl.load(shift_ptr + latent)
        delta = tl.load(delta_ptr + latent)
        attention = tl.exp2(dot(k, tl.trans(q)) * (scale * LOG2_E) - shift[None, :])
        attention = tl.where(live[:, None], attention, 0.0)
        grad_value += dot(attention.to(grad_output.dtype), grad_output)
        grad_attention = dot(v, tl.trans(grad_output))  # [BLOCK_L, BLOCK_N]
        grad_score = tl.where(live[:, None], attention * (grad_attention - delta[None, :]), 0.0)
        grad_key += dot(grad_score.to(q.dtype), q)

    row = (batch * num_positions + token) * NUM_HEADS + head
    inside = token < num_positions
    store_head_rows(grad_key_ptr, row, inside, grad_key * scale, WIDTH, WIDTH, BLOCK_D)
    store_head_rows(grad_value_ptr, row, inside, grad_value, WIDTH, WIDTH, BLOCK_D)


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
    split_size,
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
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of latents, one split of a cell: its part of dQ, as in ``gradient_kernel``."""
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = (tl.program_id(0) % NUM_HEADS).to(tl.int64)
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = latent < num_latents
    split = tl.program_id(2).to(tl.int64)
    num_batches = tl.num_programs(0) // NUM_HEADS
    if HAS_VALID:
        valid_ptr += batch * valid_stride_batch
    key_ptr += batch * key_stride_batch + head * key_stride_head
    value_ptr += batch * value_stride_batch + head * value_stride_head
    first = tl.program_id(2) * split_size
    last = tl.minimum(first + split_size, num_positions)

    q = head_rows(query_ptr + head * WIDTH, latent, exists, NUM_HEADS * WIDTH, WIDTH, BLOCK_D)
    row = (batch * num_latents + latent) * NUM_HEADS + head
    grad_output = head_rows(grad_output_ptr, row, exists, WIDTH, WIDTH, BLOCK_D)
    shift_ptr = statistics_ptr + tl.program_id(0).to(tl.int64) * padded
    shift = tl.load(shift_ptr + latent)
    delta = tl.load(shift_ptr + tl.num_programs(0).to(tl.int64) * padded + latent)
    grad_query = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    offset = tl.arange(0, BLOCK_L)
    for start in range(first, last, BLOCK_L):  # trips: ceil(L / BLOCK_L)
        live = live_tokens(valid_ptr, valid_stride_position, start + offset, last, HAS_VALID)
        k = head_rows(
            key_ptr + wide(start) * key_stride_position,
            offset, live, key_stride_position, WIDTH, BLOCK_D,
        )  # fmt: skip
        v = head_rows(
            value_ptr + wide(start) * value_stride_position,
            offset, live, value_stride_position, WIDTH, BLOCK_D,
        )  # fmt: skip
        score = dot(q, tl.trans(k))  # [BLOCK_N, BLOCK_L]
        attention = tl.exp2(score * (scale * LOG2_E) - shift[:, None])
        attention = tl.where(live[None, :], attention, 0.0)
        grad_score = attention * (dot(grad_output, tl.trans(v)) - delta[:, None])
        grad_query += dot(tl.where(live[None, :], grad_score, 0.0).to(k.dtype), k)

    partial_row = split * num_batches * num_latents * NUM_HEADS + row
    store_head_rows(partial_ptr, partial_row, exists, grad_query * scale, WIDTH, WIDTH, BLOCK_D)


# (latents, positions, warps) by the padded head width
HALF = {
    16: (64, 64, 4),
    32: (32, 64, 4),
    64: (64, 32, 4),
    128: (64, 32, 8),
    256: (16, 32, 8),
}
FULL = {
    16: (16, 32, 4),
    32: (16, 32, 4),
    64: (16, 32, 4),
    128: (16, 32, 8),
    256: (16, 32, 8),
}
# AMD's matrix units take all factors from registers, and 8 of its warps have half as many each; it
# has 64 KiB of shared memory.
HALF_AMD = HALF | {64: (32, 64, 4), 128: (32, 32, 4), 256: (16, 16, 8)}
FULL_AMD = FULL | {256: (16, 16, 4)}


def tile_of(query: Tensor) -> Tile:
    """The configuration of both passes."""
    tables = (HALF_AMD, FULL_AMD) if launch.is_amd() else (HALF, FULL)
    # With Triton 3.6, left alone, NVIDIA's assembler spills a few registers of float32 heads of
    # 128; on AMD, those of 256 spill where the next tile is loaded ahead.
    old = launch.BEFORE_3_7 and not launch.INTERPRETED
    tile = launches.tile_of(query, *tables, limited=(128,) if old else ())
    whole = query.dtype == torch.float32
    return (
        tile._replace(stages=1) if old and launch.is_amd() and whole and tile.width == 256 else tile
    )


def run(
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
    """Writes the gradients of key and value, both contiguous; returns that of the query, which is
    contiguous, in parts, (splits * B, N, H, d) float32.
    """
    (num_latents, num_heads, width), (batch, num_positions) = query.shape, key.shape[:2]
    length = statistics.shape[-1]
    latent_blocks = length // tile.latents
    programs = batch * num_heads * latent_blocks
    splits = Splits.of(num_positions, programs, tile.positions, key.device)
    partial = query.new_empty((splits.count * batch, *query.shape), dtype=torch.float32)
    strides = (*key.stride()[:3], *value.stride()[:3], *launch.strides(valid, 2))
    flags = {
        "NUM_HEADS": num_heads, "WIDTH": width, "HAS_VALID": valid is not None, **tile.arguments(),
    }  # fmt: skip
    # left alone, the assembler spills a few registers of wide heads
    of_keys = flags | (registers() if tile.width >= 128 else {})
    key_value_gradient_kernel[(batch * num_heads, triton.cdiv(num_positions, tile.positions))](
        grad_output, statistics, query, key, value, valid, grad_key, grad_value, scale,
        num_latents, length, num_positions, *strides, **of_keys,
    )  # fmt: skip
    query_gradient_kernel[(batch * num_heads, latent_blocks, splits.count)](
        grad_output, statistics, query, key, value, valid, partial, scale,
        num_latents, length, num_positions, splits.size, *strides, **flags,
    )  # fmt: skip
    return partial
