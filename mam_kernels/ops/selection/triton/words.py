"""Bits of positions in words, and lists of them, by Triton.

Rows are taken in chunks of 32 positions a lane: the lane has eight quads of four positions, one a
turn, and bit 8 j + i of a lane's word stands for position j of its quad in turn i.
"""

import triton
import triton.language as tl

from ...._core.triton_language import STREAM_POSITIONS, four_words

LANES = tl.constexpr(128)
TURNS = tl.constexpr(8)
CHUNK = tl.constexpr(4 * 8 * 128)
AT_ONCE = tl.constexpr(2)  # turns: with all eight in a row Triton compiles twice as long


@triton.jit
def word_of(position, seed, sample_id, step):
    """The word of each position."""
    word0, word1, word2, word3 = four_words(position >> 2, seed, sample_id, step, STREAM_POSITIONS)
    odd = (position & 1) != 0
    high = tl.where(odd, word3, word2)
    return tl.where((position & 2) != 0, high, tl.where(odd, word1, word0))


@triton.jit
def columns(x):
    """The four columns of [LANES, 4]."""
    even, odd = tl.split(tl.reshape(x, [LANES, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def bytes_of_bit_23(x0, x1, x2, x3):
    """1 in those bytes of a word whose numbers have bit 23."""
    low = ((x0 >> 23) & 1) | ((x1 >> 15) & 0x100)
    return low | ((x2 >> 7) & 0x10000) | ((x3 << 1) & 0x1000000)


@triton.jit
def sum_of_bytes(x):
    """The sum of the four bytes of each word, below 256."""
    return ((x.to(tl.uint32, bitcast=True) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def quads_in_row(chunk, lane, length):
    """A 1 in the bytes of every turn in which the lane's quad lies in the row, as a word; for a
    length divisible by 4.
    """
    turns = (length // 4 - chunk * (TURNS * LANES) - lane + (LANES - 1)) // LANES
    turns = tl.minimum(tl.maximum(turns, 0), TURNS)
    return ((1 << turns) - 1) * 0x01010101


@triton.jit
def store_mask(mask_ptr, quad, bytes_, length, WHOLE: tl.constexpr):
    """Four positions of the mask for each lane."""
    if WHOLE:
        words_ptr = mask_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        tl.store(words_ptr + quad, bytes_, mask=quad < length // 4)
    else:
        within = tl.arange(0, 4)
        position = quad[:, None] * 4 + within[None, :]
        chosen = ((bytes_[:, None] >> (8 * within)[None, :]) & 1) != 0
        tl.store(mask_ptr + position, chosen, mask=position < length)


@triton.jit
def bits_of(word):
    """How many bits of a word are set."""
    word = word.to(tl.uint32, bitcast=True)
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def lowest_bit_of(word):
    """The index of the lowest bit that is set; of 0, any."""
    lowest = word & (0 - word)
    power = lowest.to(tl.uint32, bitcast=True).to(tl.float32)
    return (power.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def list_flagged(
    flags_ptr,
    list_ptr,
    values_ptr,
    values_stride,
    values_list_ptr,
    length,
    most,
    GATHER: tl.constexpr,
):
    """Lists the flagged positions, lane by lane; how many there are, and where `GATHER` their
    values, of these the least, the greatest, and whether all are finite. Beyond `most` none is
    written.
    """
    # phase: list
    lane = tl.arange(0, LANES)
    chunks = tl.cdiv(length, CHUNK)
    count = tl.zeros([LANES], dtype=tl.int32)
    turns = tl.zeros([LANES], dtype=tl.int32)  # one for each position, and for each empty word
    for chunk in range(chunks):  # trips: L / (32 * LANES)
        bits = bits_of(tl.load(flags_ptr + chunk * LANES + lane))
        count += bits
        turns += tl.maximum(bits, 1)
    slot = tl.cumsum(count, 0) - count
    total = tl.sum(count, 0)
    low = tl.full([LANES], float("inf"), dtype=tl.float32)
    high = tl.full([LANES], float("-inf"), dtype=tl.float32)
    bad = tl.zeros([LANES], dtype=tl.float32)
    chunk = tl.zeros([LANES], dtype=tl.int32)
    first = 4 * lane
    word = tl.load(flags_ptr + lane, mask=chunk < chunks, other=0)
    for _ in range(tl.max(turns, 0)):  # trips: first_list | second_list | third_list | 0
        there = (word != 0) & (slot < most)
        bit = lowest_bit_of(word)
        position = first + (bit & 7) * (4 * LANES) + (bit >> 3)
        tl.store(list_ptr + slot, position, mask=there)
        if GATHER:
            at = values_ptr + position.to(tl.int64) * values_stride
            x = tl.load(at, mask=there, other=0.0).to(tl.float32)
            tl.store(values_list_ptr + slot, x, mask=there)
            low = tl.minimum(low, tl.where(there, x, float("inf")))
            high = tl.maximum(high, tl.where(there, x, float("-inf")))
            bad += x * 0.0
        slot += (word != 0).to(tl.int32)
        word = word & (word - 1)
        done = word == 0
        chunk += done.to(tl.int32)
        first += tl.where(done, CHUNK, 0)
        next_word = tl.load(flags_ptr + chunk * LANES + lane, mask=done & (chunk < chunks), other=0)
        word = tl.where(done, next_word, word)
    if GATHER:
        return total, tl.min(low, 0), tl.max(high, 0), tl.sum(bad, 0) == 0.0
    else:
        return total, 0.0, 0.0, True
