"""From the attended values to context and penalty, and back."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Parameters
from .launches import Tile, new_statistics, padded_side, registers
from .tiles import add_dot, head_rows, store_head_rows, store_statistics


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
    """One head of one cell: dO = dP W_o, delta = sum_d dO O, and the log-sum-exp in powers of two;
    see ``store_statistics``.
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
    store_statistics(statistics_ptr, latent, logsumexp, delta, padded)


def context_and_penalty(
    attended: Tensor, logsumexp: Tensor, parameters: Parameters, value_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Context (B, Dz) and penalty, float32, of the attended values (B, N, H, d)."""
    tile, columns = _tile(attended)
    context = attended.new_empty((attended.shape[0], columns.width), dtype=torch.float32)
    parts = attended.new_empty((attended.shape[0], columns.blocks), dtype=torch.float32)
    context_kernel[(attended.shape[0], columns.blocks)](
        attended, logsumexp, parameters.out_weight.contiguous(), parameters.out_bias.contiguous(),
        value_bias, None, None, context, parts, None, *attended.shape[1:3],
        LATENT_WIDTH=columns.width, BACKWARD=False, HAS_GRAD_CONTEXT=False, HAS_GRAD_PENALTY=False,
        **tile,
    )  # fmt: skip
    return context, parts.sum()


def projected_gradient(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    attended: Tensor,
    logsumexp: Tensor,
    parameters: Parameters,
    value_bias: Tensor,
) -> Tensor:
    """The gradient of the projected output, (B, N, Dz), in the type of the attended values."""
    tile, columns = _tile(attended)
    grad_context, grad_penalty = (
        None if x is None else x.contiguous() for x in (grad_context, grad_penalty)
    )
    gradient = attended.new_empty((*attended.shape[:2], columns.width))
    context_kernel[(attended.shape[0], columns.blocks)](
        attended, logsumexp, parameters.out_weight.contiguous(), parameters.out_bias.contiguous(),
        value_bias, grad_context, grad_penalty, None, None, gradient, *attended.shape[1:3],
        LATENT_WIDTH=columns.width, BACKWARD=True, HAS_GRAD_CONTEXT=grad_context is not None,
        HAS_GRAD_PENALTY=grad_penalty is not None, **tile,
    )  # fmt: skip
    return gradient


class Columns(NamedTuple):
    """The columns of the projected output, in blocks."""

    width: int
    blocks: int


def _tile(attended: Tensor) -> tuple[dict[str, int], Columns]:
    """The configuration of ``context_kernel``, and its columns."""
    num_latents, width = attended.shape[1], attended.shape[2] * attended.shape[3]
    block, block_columns, inner = min(max(padded_side(num_latents), 64), 128), 64, 64
    if launch.INTERPRETED:
        block, block_columns = min(padded_side(num_latents), 128), 128
    elif attended.element_size() == 4:  # whose products take their factors from registers
        block, block_columns, inner = 32, 32, 32
    warps = 4 if launch.architecture(attended.device) == 90 else 8
    tile = {"BLOCK_N": block, "BLOCK_C": block_columns, "BLOCK_K": inner, "num_warps": warps}
    return tile | {"num_stages": 2}, Columns(width, triton.cdiv(width, block_columns))


def attended_gradient(
    grad_projected: Tensor, attended: Tensor, logsumexp: Tensor, out_weight: Tensor, tile: Tile
) -> tuple[Tensor, Tensor]:
    """The gradient of the attended values (B, N, H, d), and the statistics of their backward pass,
    whose configuration is ``tile``.
    """
    batch, num_latents, num_heads, head_width = attended.shape
    gradient = torch.empty_like(attended)
    statistics = new_statistics(batch, num_latents, num_heads, tile, attended.device)
    length = statistics.shape[-1]
    # of float32, whose factors lie in registers, fewer
    rows = 32 if attended.element_size() == 4 else 128
    block = rows if length % rows == 0 and tile.width <= 128 else tile.latents
    output_gradient_kernel[(batch * num_heads, length // block)](
        grad_projected, attended, logsumexp, out_weight.contiguous(), gradient, statistics,
        num_latents, length, NUM_HEADS=num_heads, WIDTH=head_width, BLOCK_N=block,
        BLOCK_D=tile.width, BLOCK_K=64 if tile.width <= 64 else 32, num_warps=4, num_stages=2,
        **registers(),
    )  # fmt: skip
    return gradient, statistics
