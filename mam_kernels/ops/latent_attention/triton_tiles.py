"""What the Triton kernels of attention over tokens share: rows of a head, columns taken apart, and
products in float32.
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
def row_mask(live, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The live rows' columns below WIDTH; where all are, the comparison would cost registers."""
    if WIDTH == BLOCK_D:
        return live[:, None]
    else:
        return live[:, None] & (tl.arange(0, BLOCK_D) < WIDTH)[None, :]


@triton.jit
def head_rows(matrix_ptr, row, live, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a matrix with contiguous columns, 0 where not `live`, whatever stands there, and past
    WIDTH.
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
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns. In the layout of a product both are where they
    were: no instruction.
    """
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def equal_parts(x, COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns in COUNT groups, a power of two, as a tuple."""
    if COUNT == 1:
        return (x,)
    else:
        left, right = halves(x, ROWS, COLUMNS)
        return equal_parts(left, COUNT // 2, ROWS, COLUMNS // 2) + equal_parts(
            right, COUNT // 2, ROWS, COLUMNS // 2
        )


@triton.jit
def attended_kernel(
    valid_ptr,
    hidden_ptr,
    visible_ptr,
    bias_ptr,
    range_ptr,
    num_positions,
    padded,
    valid_stride_batch,
    HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Which positions of a row are attended to: valid and not hidden.

    As a bias of the scores, 0 or -inf, (batch, padded), which needs no mask and no comparison where
    it is read; as the smallest range that holds them all, (batch, 2); and, where some are hidden,
    as flags.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = num_positions
    end = 0
    for start in range(0, padded, BLOCK_L):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK_L)
        inside = position < num_positions
        attended = inside
        if HAS_VALID:
            valid_row = valid_ptr + row * valid_stride_batch
            attended &= tl.load(valid_row + position, mask=inside, other=0) != 0
        if HAS_HIDDEN:
            place = row * num_positions + position
            attended &= tl.load(hidden_ptr + place, mask=inside, other=0) == 0
            tl.store(visible_ptr + place, attended, mask=inside)
        bias = tl.where(attended, 0.0, float("-inf"))
        tl.store(bias_ptr + row * padded + position, bias, mask=position < padded)
        begin = tl.minimum(begin, tl.min(tl.where(attended, position, num_positions), 0))
        end = tl.maximum(end, tl.max(tl.where(attended, position + 1, 0), 0))
    tl.store(range_ptr + 2 * row, begin)
    tl.store(range_ptr + 2 * row + 1, end)
