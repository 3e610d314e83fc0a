"""What the kernels of attention over tokens share: rows of a head, products in float32, the parts
of a tile, and the statistics of the backward pass.
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
def left_and_right(x, SIDES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of each side; of one side twice the same. In the layout of a product they are
    where they were: no instruction.
    """
    if SIDES == 1:
        return x, x
    else:
        return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, COLUMNS]), [0, 2, 1]))


@triton.jit
def upper_and_lower(x, SIDES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows of each side, likewise."""
    if SIDES == 1:
        return x, x
    else:
        return tl.split(tl.permute(tl.reshape(x, [2, ROWS, COLUMNS]), [1, 2, 0]))


@triton.jit
def equal_parts(x, COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns in COUNT groups, a power of two, as a tuple."""
    if COUNT == 1:
        return (x,)
    else:
        left, right = left_and_right(x, 2, ROWS, COLUMNS // 2)
        return equal_parts(left, COUNT // 2, ROWS, COLUMNS // 2) + equal_parts(
            right, COUNT // 2, ROWS, COLUMNS // 2
        )


@triton.jit
def store_columns(
    matrix_ptr,
    x,
    row,
    column,
    live,
    real,
    STRIDE: tl.constexpr,
    ALL_REAL: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Writes the real columns of the live rows of a matrix; x is (column, row) where TRANSPOSED."""
    if TRANSPOSED:
        place = matrix_ptr + row[None, :] * STRIDE + column[:, None]
        mask = live[None, :]
        if not ALL_REAL:
            mask &= real[:, None]
    else:
        place = matrix_ptr + row[:, None] * STRIDE + column[None, :]
        mask = live[:, None]
        if not ALL_REAL:
            mask &= real[None, :]
    tl.store(place, x, mask=mask)


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
