"""What a step derives from the parameters before it meets a token."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Parameters
from ...._core.triton_language import wide


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
    PRECISION: tl.constexpr,
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
        sums = tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision=PRECISION)
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
    PRECISION: tl.constexpr,
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
            num_latents, LATENT_WIDTH, LATENT_WIDTH, LATENT_WIDTH, 1, LATENT_WIDTH, True,
            PRECISION, BLOCK_K,
        )  # fmt: skip
    elif program < queries + folded:  # share: 4 / 5
        program -= queries
        across = tl.cdiv(INPUT_WIDTH, BLOCK)
        product_tile(
            in_weight_ptr + LATENT_WIDTH * LATENT_WIDTH, token_weight_ptr, in_bias_ptr, folded_ptr,
            program // across * BLOCK + tile, program % across * BLOCK + tile,
            2 * LATENT_WIDTH, INPUT_WIDTH, LATENT_WIDTH, LATENT_WIDTH, INPUT_WIDTH, 1, False,
            PRECISION, BLOCK_K,
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


class Prepared(NamedTuple):
    """What a step derives from the parameters."""

    query: Tensor  # (N, H, d)
    folded: Tensor  # (2 Dz, D): projects a token to its key and its value
    value_bias: Tensor  # (Dz,) float32
    counts: Tensor | None  # k, (B,) int32


def prepare(
    parameters: Parameters, heads: int, dtype: torch.dtype, counted: tuple | None
) -> Prepared:
    """Query and folded weights in ``dtype``. ``counted``: None, or how to count what a row hides,
    the number of rows and of positions, maskable (B, L) or None, and the ratio.
    """
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
    precision = _precision(dtype)
    warps = 4 if precision == "ieee" else 2  # tensor cores would give four the same rows twice
    prepare_kernel[(tiles,)](
        latents, in_weight, in_bias, token_weight, token_bias, maskable, query, folded, value_bias,
        counts,
        *launch.float32_parts(ratio), math.floor(ratio * positions), rows, num_latents, positions,
        launch.strides(maskable, 2)[0], LATENT_WIDTH=width, INPUT_WIDTH=inputs,
        HAS_COUNTS=counts is not None, HAS_MASKABLE=maskable is not None,
        PRECISION=precision, BLOCK=block, BLOCK_K=32, BLOCK_C=block_counts, num_warps=warps,
    )  # fmt: skip
    return Prepared(query, folded, value_bias, counts)


def _precision(dtype: torch.dtype) -> str:
    """How factors in float32 are multiplied: by tensor cores, in three parts that lose 1e-6, where
    the product is rounded to 16 bits; else unrounded.
    """
    return "ieee" if dtype == torch.float32 or launch.is_amd() else "tf32x3"
