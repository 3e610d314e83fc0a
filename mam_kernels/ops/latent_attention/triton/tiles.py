"""What the kernels of attention over tokens share: rows of a head, products in float32, and the
statistics of the backward pass.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b):
    """Matrix product in float32, float32 factors unrounded."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def add_dot(a, b, c):
    """``a b + c``, likewise."""
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def wide(x):
    """An index in 64 bits, in which no address overflows; the interpreter's loops count in plain
    numbers, which have no ``to``.
    """
    return tl.zeros([], dtype=tl.int64) + x


@triton.jit
def live_tokens(valid_ptr, stride, token, last, HAS_VALID: tl.constexpr):
    """Which tokens exist: before `last`, and valid."""
    live = token < last
    if HAS_VALID:
        live &= tl.load(valid_ptr + token.to(tl.int64) * stride, mask=live, other=0) != 0
    return live


@triton.jit
def row_mask(live, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The live rows' columns below WIDTH; where all are, the comparison would cost registers."""
    if WIDTH == BLOCK_D:
        return live[:, None]
    else:
        return live[:, None] & (tl.arange(0, BLOCK_D) < WIDTH)[None, :]


@triton.jit
def head_rows(matrix_ptr, row, live, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a matrix with contiguous columns, 0 where not `live`, whatever stands there, and past
    WIDTH. Rows far from the pointer are indices of 64 bits.
    """
    column = tl.arange(0, BLOCK_D)
    return tl.load(
        matrix_ptr + row[:, None] * stride + column[None, :],
        mask=row_mask(live, WIDTH, BLOCK_D),
        other=0.0,
    )  # [rows, BLOCK_D]


@triton.jit
def store_head_rows(matrix_ptr, row, live, x, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the live rows of a matrix with contiguous columns."""
    column = tl.arange(0, BLOCK_D)
    tl.store(
        matrix_ptr + row[:, None] * stride + column[None, :],
        x.to(matrix_ptr.dtype.element_ty),
        mask=row_mask(live, WIDTH, BLOCK_D),
    )


@triton.jit
def shift_of(logsumexp):
    """What scores in powers of two are lowered by to become the logarithm of attention. A
    log-sum-exp of -inf is that of a cell without tokens, whose attention is 0, whatever the scores
    are.
    """
    return tl.where(logsumexp == float("-inf"), float("inf"), logsumexp) * LOG2_E


@triton.jit
def store_statistics(statistics_ptr, latent, logsumexp, delta, padded):
    """Writes shift and delta of one head of a cell, of (2, batch, head, padded latents): a program
    of the backward pass reads them whole. Rows of no latent have a log-sum-exp of inf, and delta 0.
    """
    rows = tl.num_programs(0).to(tl.int64) * padded
    place = tl.program_id(0).to(tl.int64) * padded + latent
    tl.store(statistics_ptr + place, shift_of(logsumexp))
    tl.store(statistics_ptr + rows + place, delta)
