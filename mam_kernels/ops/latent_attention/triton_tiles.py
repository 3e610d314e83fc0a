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
def head_rows(matrix_ptr, row, live, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a matrix with contiguous columns, 0 where not `live`, whatever stands there, and past
    WIDTH.
    """
    column = tl.arange(0, BLOCK_D)
    return tl.load(
        matrix_ptr + row[:, None] * stride + column[None, :],
        mask=live[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )  # [rows, BLOCK_D]


@triton.jit
def store_head_rows(matrix_ptr, row, live, x, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the live rows of a matrix with contiguous columns."""
    column = tl.arange(0, BLOCK_D)
    tl.store(
        matrix_ptr + row[:, None] * stride + column[None, :],
        x.to(matrix_ptr.dtype.element_ty),
        mask=live[:, None] & (column < WIDTH)[None, :],
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
def valid_range(valid_ptr, first, last, BLOCK: tl.constexpr):
    """The smallest range in [first, last) that holds every valid position; empty if none is."""
    begin = last
    end = first
    for start in range(first, last, BLOCK):  # trips: L / 1024
        position = start + tl.arange(0, BLOCK)
        valid = tl.load(valid_ptr + position, mask=position < last, other=0) != 0
        begin = tl.minimum(begin, tl.min(tl.where(valid, position, last), 0))
        end = tl.maximum(end, tl.max(tl.where(valid, position + 1, first), 0))
    return begin, end
