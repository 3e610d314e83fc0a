"""The values of one row that are not zero, by Triton: flags of all positions, and a list.

Flags are words as ``selection/triton/words.py`` lays them out.
"""

import triton
import triton.language as tl

from ...._core.triton_language import wide
from ...selection.triton.words import CHUNK, LANES, TURNS, list_flagged, quads_in_row

BLOCK_E = tl.constexpr(512)  # stored entries at a time


@triton.jit
def flags_of(tile):
    """1 in those bytes of a word whose position of [LANES, 4] is not zero."""
    within = tl.arange(0, 4)
    return tl.sum((tile != 0).to(tl.int32) << (8 * within)[None, :], 1)


@triton.jit
def in_row_of(quad, length, WHOLE: tl.constexpr):
    """Which positions of each quad are in the row; [LANES, 4]."""
    if WHOLE:
        return tl.broadcast_to((quad < length // 4)[:, None], [LANES, 4])
    else:
        return quad[:, None] * 4 + tl.arange(0, 4)[None, :] < length


@triton.jit
def attended_of(
    valid_ptr, hidden_ptr, quad, offset, valid_stride, length, HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Which positions of each quad are attended to; [LANES, 4]."""
    attended = in_row_of(quad, length, WHOLE)
    if HAS_VALID:
        attended &= tl.load(valid_ptr + offset * valid_stride, mask=attended, other=0) != 0
    if HAS_HIDDEN:
        attended &= tl.load(hidden_ptr + offset, mask=attended, other=1) == 0
    return attended


@triton.jit
def flag_row(
    values_ptr,
    values_stride,
    valid_ptr,
    valid_stride,
    hidden_ptr,
    flags_ptr,
    attended_ptr,
    length,
    IS_CSR: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Flags the values of a dense row that are not zero, and the positions that are attended to;
    how many these are. Of a CSR row, which has no such values, none.
    """
    # phase: load and flag
    lane = tl.arange(0, LANES)
    within = tl.arange(0, 4)
    found = tl.zeros([LANES], dtype=tl.int32)
    offset = lane.to(tl.int64)[:, None] * 4 + within[None, :]
    left = length
    for chunk in range(tl.cdiv(length, CHUNK)):  # trips: L / (32 * LANES)
        nonzero = tl.zeros([LANES], dtype=tl.int32)
        attended = tl.zeros([LANES], dtype=tl.int32)
        for turn in range(TURNS):  # trips: 8
            there = attended_of(
                valid_ptr, hidden_ptr, lane, offset, valid_stride, left, HAS_VALID, HAS_HIDDEN,
                WHOLE,
            )  # fmt: skip
            if HAS_VALID or HAS_HIDDEN or not WHOLE:
                attended |= flags_of(there) << turn
            if not IS_CSR:
                x = tl.load(values_ptr + offset * values_stride, mask=there, other=0.0)
                nonzero |= flags_of(x.to(tl.float32)) << turn
            left -= 4 * LANES
            if not IS_CSR:
                values_ptr += wide(4 * LANES) * values_stride
            if HAS_VALID:
                valid_ptr += wide(4 * LANES) * valid_stride
            if HAS_HIDDEN:
                hidden_ptr += 4 * LANES
        if not (HAS_VALID or HAS_HIDDEN) and WHOLE:
            attended = quads_in_row(chunk, lane, length)
        tl.store(flags_ptr + chunk * LANES + lane, nonzero)
        tl.store(attended_ptr + chunk * LANES + lane, attended)
        if HAS_VALID or HAS_HIDDEN:
            bits = (attended & 0x55555555) + ((attended >> 1) & 0x55555555)
            bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
            bits = (bits & 0x0F0F0F0F) + ((bits >> 4) & 0x0F0F0F0F)
            found += (bits.to(tl.uint32, bitcast=True) * 0x01010101 >> 24).to(tl.int32)
    num_attended = length
    if HAS_VALID or HAS_HIDDEN:
        num_attended = tl.sum(found, 0)
    return num_attended


@triton.jit
def list_csr(
    values_ptr,
    col_ptr,
    first,
    last,
    flags_ptr,
    attended_ptr,
    list_ptr,
    values_list_ptr,
    length,
):
    """Lists and flags the stored entries first ... last - 1 that are attended to and not zero: how
    many, the least and the greatest, and whether all are finite.
    """
    # phase: stored entries
    count = 0
    bad = tl.zeros([BLOCK_E], dtype=tl.float32)
    low = tl.full([BLOCK_E], float("inf"), dtype=tl.float32)
    high = tl.full([BLOCK_E], float("-inf"), dtype=tl.float32)
    for start in range(first, last, BLOCK_E):  # trips: ceil(nonzeros / 512)
        entry = start + tl.arange(0, BLOCK_E)
        exists = entry < last
        column = tl.load(col_ptr + entry, mask=exists, other=0).to(tl.int64)
        exists &= (column >= 0) & (column < length)
        position = tl.where(exists, column, 0).to(tl.int32)
        quad = position >> 2
        word = (quad // (TURNS * LANES)) * LANES + quad % LANES
        bit = ((position & 3) << 3) + (quad // LANES) % TURNS
        exists &= ((tl.load(attended_ptr + word, mask=exists, other=0) >> bit) & 1) != 0
        x = tl.load(values_ptr + entry, mask=exists, other=0.0).to(tl.float32)
        nonzero = exists & (x != 0.0)
        place = count + tl.cumsum(nonzero.to(tl.int32), 0) - 1
        tl.store(values_list_ptr + place, x, mask=nonzero)
        tl.store(list_ptr + place, position, mask=nonzero)
        tl.atomic_or(flags_ptr + word, (position * 0 + 1) << bit, mask=nonzero)
        count += tl.sum(nonzero.to(tl.int32), 0)
        low = tl.minimum(low, tl.where(nonzero, x, float("inf")))
        high = tl.maximum(high, tl.where(nonzero, x, float("-inf")))
        bad += tl.where(nonzero, x - x, 0.0)  # NaN where x is NaN or infinite
    return count, tl.min(low, 0), tl.max(high, 0), tl.sum(bad, 0) == 0.0


@triton.jit
def look_at_row(
    values_ptr,
    values_stride,
    col_ptr,
    first,
    last,
    valid_ptr,
    valid_stride,
    hidden_ptr,
    flags_ptr,
    attended_ptr,
    list_ptr,
    values_list_ptr,
    length,
    IS_CSR: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """(nonzeros, zeros, least, greatest, whether all are finite) of a row; its nonzeros listed, and
    its positions flagged.
    """
    attended = flag_row(
        values_ptr, values_stride, valid_ptr, valid_stride, hidden_ptr, flags_ptr, attended_ptr,
        length, IS_CSR, HAS_VALID, HAS_HIDDEN, WHOLE,
    )  # fmt: skip
    tl.debug_barrier()
    if IS_CSR:
        count, low, high, finite = list_csr(
            values_ptr, col_ptr, first, last, flags_ptr, attended_ptr, list_ptr, values_list_ptr,
            length,
        )  # fmt: skip
    else:
        count, low, high, finite = list_flagged(
            flags_ptr, list_ptr, values_ptr, values_stride, values_list_ptr, length, length, True
        )
    tl.debug_barrier()
    num_zeros = tl.maximum(attended - count, 0)  # a column may stand twice in a row
    zero_low = tl.where(num_zeros > 0, 0.0, float("inf"))
    return count, num_zeros, tl.minimum(low, zero_low), tl.maximum(high, -zero_low), finite
