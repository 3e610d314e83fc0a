"""Gradients of attention over keys and values, each of which is read once; and which of the two
ways to compute them a call takes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.triton_language import wide
from . import gradient_by_blocks
from .launches import (
    INTERPRETER_POSITIONS,
    REGISTERS,
    Splits,
    Tile,
    held,
    new_statistics,
    padded_side,
    part,
    registers,
)
from .tiles import (
    LOG2_E,
    add_dot,
    dot,
    head_rows,
    live_tokens,
    store_head_rows,
    store_statistics,
)


@triton.jit(do_not_specialize=["num_latents", "padded"])
def statistics_kernel(
    grad_output_ptr,
    output_ptr,
    logsumexp_ptr,
    grad_logsumexp_ptr,
    statistics_ptr,
    num_latents,
    padded,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_GRAD_LOGSUMEXP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """LSE log2(e) and delta = sum_d dO O - dLSE of one head of a cell; see ``store_statistics``."""
    batch = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    head = tl.program_id(0) % NUM_HEADS
    latent = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = latent < num_latents
    row = (batch * num_latents + latent) * NUM_HEADS + head
    grad_output = head_rows(grad_output_ptr, row, exists, WIDTH, WIDTH, BLOCK_D).to(tl.float32)
    output = head_rows(output_ptr, row, exists, WIDTH, WIDTH, BLOCK_D).to(tl.float32)
    delta = tl.sum(grad_output * output, 1)
    if HAS_GRAD_LOGSUMEXP:
        delta -= tl.load(grad_logsumexp_ptr + row, mask=exists, other=0.0)
    logsumexp = tl.load(logsumexp_ptr + row, mask=exists, other=float("inf"))
    store_statistics(statistics_ptr, latent, logsumexp, delta, padded)


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
    ROWS_ARE_LATENTS: tl.constexpr,
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

    Where ROWS_ARE_LATENTS, that of dQ stays in registers instead: for wide heads, whose sums need
    two groups of four warps. Both would compute the same of 64 tokens, and 128 tokens need twice
    the registers; the latents are divided among them.

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
    shift = tl.load(statistics_ptr + latent)
    delta = tl.load(statistics_ptr + tl.num_programs(0).to(tl.int64) * BLOCK_N + latent)
    if not ROWS_ARE_LATENTS:
        shift = tl.minimum(shift, 1e30)  # inf has no parts; the attention is 0 either way
        shift_parts = as_factor(-shift / factor, PART, BLOCK_N)
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
        counted = live[None, :] if ROWS_ARE_LATENTS else live[:, None]
        from_start = wide(start)
        k = head_rows(key_ptr + from_start * KEY_STRIDE, offset, live, KEY_STRIDE, WIDTH, BLOCK_D)
        v = head_rows(
            value_ptr + from_start * VALUE_STRIDE, offset, live, VALUE_STRIDE, WIDTH, BLOCK_D
        )
        if ROWS_ARE_LATENTS:
            attention = tl.exp2(dot(q, tl.trans(k)) * factor - shift[:, None])  # [BLOCK_N, BLOCK_L]
        else:
            score = add_dot(k, tl.trans(q), dot(ones, shift_parts))
            attention = tl.exp2(score * factor)  # [BLOCK_L, BLOCK_N]
        if HAS_VALID:  # noqa: SIM114
            attention = tl.where(counted, attention, 0.0)
        elif start + BLOCK_L > last:  # share: 0
            attention = tl.where(counted, attention, 0.0)
        if ROWS_ARE_LATENTS:
            grad_value = dot(tl.trans(attention.to(v.dtype)), grad_output)
        else:
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
        if ROWS_ARE_LATENTS:
            grad_attention = dot(grad_output, tl.trans(v)) - delta[:, None]
            grad_score = (attention * grad_attention).to(k.dtype)
            grad_query = add_dot(grad_score, k, grad_query)
            grad_key = dot(tl.trans(grad_score), q) * scale
        else:
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
# What a measurement on a device may try in their place.
ALTERNATIVES = {"gradient, heads of 32": [(64, 8), (128, 8)]}
ONE_PASS_LATENTS = 128


def one_pass(query: Tensor) -> Tile | None:
    """The configuration of ``gradient_kernel``; None where all latents at once do not fit."""
    latents, width = padded_side(query.shape[0]), padded_side(query.shape[-1])
    name = f"gradient, heads of {width}"
    if latents > ONE_PASS_LATENTS or name not in LAUNCHES:
        return None
    # Without wgmma all factors lie in registers, and would be spilled.
    architecture = launch.architecture(query.device)
    if launch.is_amd() or architecture < 90:
        return None
    if launch.INTERPRETED:
        return Tile(latents, INTERPRETER_POSITIONS, width, 1)
    if query.dtype == torch.float32:
        return None
    chosen = LAUNCHES_BLACKWELL.get(name, LAUNCHES[name]) if architecture >= 100 else LAUNCHES[name]
    if chosen is None:
        return None
    positions, warps = chosen
    # fewer rows than 64 would not go through wgmma
    return Tile(max(latents, 64), positions, width, warps, stages=1, registers=REGISTERS)


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
    run = run_one_pass if tile else gradient_by_blocks.run
    tile = tile or gradient_by_blocks.tile_of(query)
    with launch.on(key.device):
        statistics = _statistics(grad_output, output, logsumexp, grad_logsumexp, tile)
        partial = run(
            grad_output, statistics, query, key, value, valid, grad_key, grad_value, scale, tile
        )
    return partial.sum(dim=0).to(dtype), grad_key.to(dtype), grad_value.to(dtype)


def _statistics(
    grad_output: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    grad_logsumexp: Tensor | None,
    tile: Tile,
) -> Tensor:
    """Log-sum-exp in powers of two and ``sum_d dO O - dLSE``; see ``new_statistics``."""
    batch, num_latents, num_heads, width = output.shape
    statistics = new_statistics(batch, num_latents, num_heads, tile, output.device)
    block = min(tile.latents, max(16, 4096 // tile.width))  # 64 numbers of both a thread
    statistics_kernel[(batch * num_heads, statistics.shape[-1] // block)](
        grad_output, output, logsumexp, grad_logsumexp, statistics, num_latents,
        statistics.shape[-1], NUM_HEADS=num_heads, WIDTH=width,
        HAS_GRAD_LOGSUMEXP=grad_logsumexp is not None, BLOCK_N=block, BLOCK_D=tile.width,
        num_warps=4, **registers(),
    )  # fmt: skip
    return statistics


def run_one_pass(
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
    (num_latents, num_heads, width), (batch, num_positions) = query.shape, key.shape[:2]
    splits = Splits.of(num_positions, batch * num_heads, tile.positions, key.device)
    partial = query.new_empty((splits.count * batch, *query.shape), dtype=torch.float32)
    gradient_kernel[(batch * num_heads, splits.count)](
        grad_output, statistics, query, key, value, valid, grad_key, grad_value, partial, scale,
        num_latents, num_positions, splits.size, key.stride(0), value.stride(0),
        *launch.strides(valid, 2), NUM_HEADS=num_heads, WIDTH=width, KEY_STRIDE=key.stride(1),
        KEY_STRIDE_HEAD=key.stride(2), VALUE_STRIDE=value.stride(1),
        VALUE_STRIDE_HEAD=value.stride(2), GRAD_STRIDE=grad_key.stride(1),
        HAS_VALID=valid is not None, ROWS_ARE_LATENTS=tile.width > 64,
        PART=part(), **tile.arguments(),
    )  # fmt: skip
    return partial
