"""The draw of a row in one pass over its weights, by Triton: the counterpart of
csrc/cuda/{interval,draw,candidates}.cuh. See README.md beside this file.

Rows are taken in chunks of 32 positions a lane: the lane has eight quads of four positions, one a
turn, and bit 8 j + i of a lane's word stands for position j of its quad in turn i.
"""

import triton
import triton.language as tl

from ..._core.triton_language import (
    LARGEST_FLOAT32,
    STREAM_POSITIONS,
    exponential,
    four_words,
    is_drawable,
    load_weights,
    relative_weight,
    uniform,
)

SAMPLE = tl.constexpr(512)
LANES = tl.constexpr(128)
TURNS = tl.constexpr(8)
CHUNK = tl.constexpr(4 * 8 * 128)
BLOCK_C = tl.constexpr(256)
BLOCK_K = tl.constexpr(1024)
FEWEST_SAMPLED = tl.constexpr(1024)
LOG2E = tl.constexpr(1.4426950408889634)
ROOM = tl.constexpr(4e-6)  # more than everything that rounds comes to, as a part of 1
LAST_TIME = tl.constexpr(1e30)
MOST_SLOP = tl.constexpr(0.004)


def draw_scratch(length: int) -> int:
    """Words of scratch that the draw of a row takes, a multiple of 16: its keys, or its flags and
    then positions and keys of its candidates, a quarter of the row each at most.
    """
    flags = triton.cdiv(length, CHUNK.value) * LANES.value
    listed = triton.cdiv(length, 16) * 4 + BLOCK_K.value
    return triton.cdiv(max(length, flags + 2 * listed), 16) * 16


@triton.jit
def expected_below(relative, time):
    """Means over the sample: of the probability that a key is below `time`, of its square, and of
    its derivative.
    """
    # phase: sample and interval
    q = tl.exp2(time * -LOG2E * relative)
    p = 1.0 - q
    each = 1.0 / SAMPLE
    return tl.sum(p, 0) * each, tl.sum(p * p, 0) * each, tl.sum(relative * q, 0) * each


@triton.jit
def likely_interval(weight, common, of_common, others, eps, k):
    """(known, everything, steep, scale, early, late, typical) such that the k-th of the keys E /
    (scale (weight + eps)) is nearly always in [early, late).

    `common` positions have the weight `of_common`, the `others` weigh as a sample of them does,
    whose weights are -1 where they cannot be drawn. `everything`: no time is late enough, all that
    can be drawn has to be looked at. `steep`: a tangent at `typical` is no good.
    """
    # phase: sample and interval
    can = weight >= 0.0
    each = others / SAMPLE
    drawable = tl.sum(can.to(tl.float32), 0) * each + common
    mean = tl.sum(tl.where(can, weight + eps, 0.0), 0) * each
    mean += tl.where(common > 0.0, (of_common + eps) * common, 0.0)
    mean = mean / tl.maximum(drawable, 1.0)
    sound = (mean > 1e-30) & (mean < 1e30)
    bits = tl.where(sound, mean, 1.0).to(tl.int32, bitcast=True) & 0x7F800000
    scale = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    relative = tl.where(can, (weight + eps) * scale, 0.0)
    relative_common = tl.where(common > 0.0, (of_common + eps) * scale, 0.0)
    length = common + others
    part_common = common / length
    part_others = others / length
    share = (k.to(tl.float32) - 0.5) / length
    part = share * length / tl.maximum(drawable, 1.0)
    sound = sound & (part < 1.0)
    part = tl.where(sound, part, 0.5)
    # The expected share is concave in the time: Newton's method climbs to it from below, from where
    # equal weights would have it.
    time = exponential(part) / tl.where(sound, mean * scale, 1.0)
    margin = share * 0.0
    slope = share * 0.0 + 1.0
    searching = sound.to(tl.int32)
    found = searching * 0
    steps = 0
    while searching != 0:  # trips: newton_steps
        now, squares, slope = expected_below(relative, time)
        spread = tl.maximum(squares - now * now, 0.0)
        q = tl.exp2(time * -LOG2E * relative_common)
        now = part_common * (1.0 - q) + part_others * now
        squares = part_common * ((1.0 - q) * (1.0 - q)) + part_others * squares
        slope = part_common * (relative_common * q) + part_others * slope
        # the variance of the share of keys below `time`, given the weights, and that of its
        # expectation, of which there is a sample
        within = tl.maximum(now - squares, 0.0) / length
        between = part_others * part_others * spread / SAMPLE
        margin = 4.5 * tl.sqrt(within + between) + 2.0 / length
        missing = share - now
        time += missing / slope
        steps += 1
        sound = (slope > 0.0) & (time > 0.0) & (time < LAST_TIME)
        close = tl.abs(missing) <= 0.5 * margin
        found = (sound & close).to(tl.int32)
        searching = (sound & (found == 0) & (steps < 40)).to(tl.int32)
    early = tl.maximum(time - margin / slope, 0.0)
    guess = time + margin / slope
    then, _, slope_then = expected_below(relative, guess)
    q = tl.exp2(guess * -LOG2E * relative_common)
    then = part_common * (1.0 - q) + part_others * then
    slope_then = part_common * (relative_common * q) + part_others * slope_then
    late = guess + tl.maximum(share + margin - then, 0.0) / slope_then
    everything = ((share + 1.5 * margin) * length > drawable) | ~(late < LAST_TIME)
    late = tl.where(everything, LAST_TIME, late)
    known = (found != 0) & (late > early)
    typical = tl.maximum(1.0 - part, 0.05)
    tangent, chord = tangent_of(early, late, typical)
    q = tl.exp2(late * -LOG2E * relative)
    slop = tl.sum(tangent + chord * q - tl.exp2(early * -LOG2E * relative), 0) / SAMPLE
    return known, everything, everything | (slop > MOST_SLOP), scale, early, late, typical


@triton.jit
def tangent_of(early, late, typical):
    """(a, b) with a + b q >= q^(early / late) for all q, and equal at `typical`: concave in q."""
    g = early / late
    power = tl.exp2(g * tl.log2(typical))
    return (1.0 - g) * power, g * power / typical


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
def sift_row(
    weights_ptr,
    weights_stride,
    eligible_ptr,
    eligible_stride,
    flags_ptr,
    mask_ptr,
    length,
    seed,
    step,
    sample_id,
    eps,
    inverse_temperature,
    top,
    scale,
    early,
    late,
    typical,
    everything,
    HAS_ELIGIBLE: tl.constexpr,
    SHARPEN: tl.constexpr,
    STEEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Marks the positions whose keys are below `early` for sure, and flags those whose keys may be
    below `late`. Returns how many were marked, and the largest weight.

    STEEP: both sides have a power of two; else the early one is a tangent to the late one's.
    """
    # phase: set-up of the pass
    lane = tl.arange(0, LANES)
    within = tl.arange(0, 4)
    exponent = late * scale * -LOG2E
    early_exponent = early * scale * -LOG2E
    at_eps = tl.exp2(exponent * eps)
    early_at_eps = tl.exp2(early_exponent * eps)
    tangent, chord = tangent_of(early, late, typical)
    early_at_zero = 1.0 - tangent - ROOM
    early_slope = at_eps * chord
    marked = tl.zeros([LANES], dtype=tl.int32)
    largest = tl.full([LANES], -1.0, dtype=tl.float32)
    offset = lane.to(tl.int64)[:, None] * 4 + within[None, :]
    weights_ptr += offset * weights_stride
    if HAS_ELIGIBLE:
        eligible_ptr += offset * eligible_stride
    # phase: pass
    for chunk in range(tl.cdiv(length, CHUNK)):  # trips: steep * L / (32 * LANES) | (1 - steep) * L / (32 * LANES)
        word = tl.zeros([LANES], dtype=tl.int32)
        found = tl.zeros([LANES], dtype=tl.int32)
        for turn in tl.static_range(TURNS):
            quad = lane + (chunk * TURNS + turn) * LANES
            if WHOLE:
                in_row = tl.broadcast_to((quad < length // 4)[:, None], [LANES, 4])
            else:
                in_row = quad[:, None] * 4 + within[None, :] < length
            # NaN has no side: what cannot be drawn is neither marked nor flagged
            at = weights_ptr + turn * 4 * LANES * weights_stride
            x = tl.load(at, mask=in_row, other=float("nan")).to(tl.float32)
            if HAS_ELIGIBLE:
                at = eligible_ptr + turn * 4 * LANES * eligible_stride
                x = tl.where(tl.load(at, mask=in_row, other=0) != 0, x, float("nan"))
            word0, word1, word2, word3 = four_words(quad, seed, sample_id, step, STREAM_POSITIONS)
            bits = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [LANES, 4])
            # 2 - v, less what is cut off: with a probability added it reaches 2 where v is below
            # that, and bit 23 says so; NaN counts as 0
            rest = (((bits ^ 0xFFFFFFFF) >> 9) + 0x3F800000).to(tl.float32, bitcast=True)
            if SHARPEN:
                can = is_drawable(x, eps)
                x = relative_weight(x, top, eps, inverse_temperature, SHARPEN)
                x = tl.where(can, x, float("nan"))
                q = tl.exp2(exponent * x)
            else:
                q = tl.exp2(exponent * x) * at_eps if STEEP else tl.exp2(exponent * x)
                x0, x1, x2, x3 = columns(x)
                x0 = tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3))
                largest = tl.maximum(largest, x0)
            if STEEP:
                surely = 1.0 - ROOM - tl.exp2(early_exponent * x) * early_at_eps
                perhaps = 1.0 + ROOM - q
                can = is_drawable(x, eps).to(tl.float32)
                perhaps = tl.where(everything, can, perhaps)
            else:
                surely = early_at_zero - early_slope * q
                perhaps = (1.0 + ROOM) - at_eps * q
            above = (rest + tl.maximum(surely, 0.0)).to(tl.int32, bitcast=True)
            far = (rest + tl.maximum(perhaps, 0.0)).to(tl.int32, bitcast=True)
            a0, a1, a2, a3 = columns(above)
            f0, f1, f2, f3 = columns(far)
            not_surely = bytes_of_bit_23(a0, a1, a2, a3)
            not_perhaps = bytes_of_bit_23(f0, f1, f2, f3)
            surely_bytes = ~not_surely & 0x01010101
            store_mask(mask_ptr, quad, surely_bytes, length, WHOLE)
            found += surely_bytes
            word |= (not_surely & ~not_perhaps) << turn
        tl.store(flags_ptr + chunk * LANES + lane, word)
        marked += sum_of_bytes(found)
        weights_ptr += CHUNK * weights_stride
        if HAS_ELIGIBLE:
            eligible_ptr += CHUNK * eligible_stride
    return tl.sum(marked, 0), tl.max(largest, 0)


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
    return (lowest.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


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
    for chunk in range(chunks):  # trips: ceil(L / (32 * LANES)) / 4 | ceil(L / (32 * LANES)) % 4
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
        next_word = tl.load(
            flags_ptr + chunk * LANES + lane, mask=done & (chunk < chunks), other=0
        )
        word = tl.where(done, next_word, word)
    if GATHER:
        return total, tl.min(low, 0), tl.max(high, 0), tl.sum(bad, 0) == 0.0
    else:
        return total, 0.0, 0.0, True


@triton.jit
def keys_of_listed(
    weights_ptr,
    weights_stride,
    list_ptr,
    keys_ptr,
    count,
    seed,
    step,
    sample_id,
    eps,
    inverse_temperature,
    top,
    scale,
    early,
    late,
    SHARPEN: tl.constexpr,
):
    """Writes the keys of the listed positions, and BLOCK_K infinities after them; returns how many are below `early`, and below
    `late`.
    """
    # phase: keys of the candidates
    below = tl.zeros([BLOCK_C], dtype=tl.int32)
    upto = tl.zeros([BLOCK_C], dtype=tl.int32)
    for start in range(0, count, BLOCK_C):  # trips: ceil(candidates / BLOCK_C)
        item = start + tl.arange(0, BLOCK_C)
        there = item < count
        position = tl.load(list_ptr + item, mask=there, other=0)
        weight = tl.load(
            weights_ptr + position.to(tl.int64) * weights_stride, mask=there, other=-1.0
        ).to(tl.float32)
        if SHARPEN:
            raced = relative_weight(weight, top, eps, inverse_temperature, SHARPEN)
        else:
            raced = weight + eps
        word = word_of(position, seed, sample_id, step)
        key = exponential(uniform(word)) / (raced * scale)
        key = tl.where(is_drawable(weight, eps), key, float("inf"))
        tl.store(keys_ptr + item, key, mask=there)
        below += (there & (key < early)).to(tl.int32)
        upto += (there & (key < late)).to(tl.int32)
    # whoever reads them reads whole blocks
    after = count + tl.arange(0, BLOCK_K)
    tl.store(keys_ptr + after, tl.full([BLOCK_K], float("inf"), dtype=tl.float32))
    return tl.sum(below, 0), tl.sum(upto, 0)


@triton.jit
def mark_smallest(list_ptr, keys_ptr, mask_ptr, count, wanted, below, upto, early, late):
    """Marks those `wanted` of the listed positions whose keys are smallest, the lower position
    first among equals. `below` and `upto` keys lie below `early` and `late`.

    0 where the last of them is not in [early, late): then the mask means nothing.
    """
    # phase: rank of the candidates
    holds = (wanted > below) & (wanted <= upto)
    if holds:
        # Keys are not negative, so their bits are in their order.
        low = early.to(tl.int32, bitcast=True)
        high = late.to(tl.int32, bitcast=True)
        while (upto - below > 2) & (high - low > 1):  # trips: bisections
            middle = low + ((high - low) >> 1)
            pivot = middle.to(tl.float32, bitcast=True)
            number = 0
            for start in range(0, count, BLOCK_K):  # trips: ceil(candidates / BLOCK_K)
                key = tl.load(keys_ptr + start + tl.arange(0, BLOCK_K))
                number += tl.sum((key < pivot).to(tl.int32), 0)
            enough = number >= wanted
            high = tl.where(enough, middle, high)
            upto = tl.where(enough, number, upto)
            low = tl.where(enough, low, middle)
            below = tl.where(enough, below, number)
        # its keys are few: the next one after the one before, so many times
        start_key = low.to(tl.float32, bitcast=True)
        border = start_key * 0.0 - 1.0
        place = wanted * 0 - 1
        for _ in range(wanted - below):  # trips: 1.5
            next_key = border * 0.0 + float("inf")
            next_place = place * 0 + 2147483647
            for start in range(0, count, BLOCK_K):  # trips: ceil(candidates / BLOCK_K)
                item = start + tl.arange(0, BLOCK_K)
                key = tl.load(keys_ptr + item)
                position = tl.load(list_ptr + item)  # beyond the last, whatever stands there
                after = (key > border) | ((key == border) & (position > place))
                key = tl.where((key >= start_key) & after, key, float("inf"))
                least = tl.min(key, 0)
                where = tl.min(tl.where(key == least, position, 2147483647), 0)
                closer = (least < next_key) | ((least == next_key) & (where < next_place))
                next_place = tl.where(closer, where, next_place)
                next_key = tl.minimum(next_key, least)
            border = next_key
            place = next_place
        for start in range(0, count, BLOCK_K):  # trips: ceil(candidates / BLOCK_K)
            item = start + tl.arange(0, BLOCK_K)
            key = tl.load(keys_ptr + item)
            position = tl.load(list_ptr + item)
            chosen = (key < border) | ((key == border) & (position <= place))
            tl.store(mask_ptr + position, chosen, mask=chosen)
    return holds.to(tl.int32)


@triton.jit
def largest_weight(
    weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps,
    HAS_ELIGIBLE: tl.constexpr,
):  # fmt: skip
    """The largest weight that can be drawn, -1 if there is none."""
    # phase: largest weight
    largest = tl.full([BLOCK_K], -1.0, dtype=tl.float32)
    for start in range(0, length, BLOCK_K):  # trips: L / BLOCK_K
        weight = load_weights(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride,
            start + tl.arange(0, BLOCK_K), length, eps, HAS_ELIGIBLE,
        )  # fmt: skip
        largest = tl.maximum(largest, weight)
    return tl.max(largest, 0)


@triton.jit
def draw_row_in_one_pass(
    weights_ptr,
    weights_stride,
    eligible_ptr,
    eligible_stride,
    scratch_ptr,
    mask_ptr,
    length,
    num_samples,
    seed,
    step,
    sample_id,
    eps,
    inverse_temperature,
    HAS_ELIGIBLE: tl.constexpr,
    SHARPEN: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The draw of `draw_row`, nearly always, for a length of 1024 at least; 0 where the row has to
    be drawn by all keys. `scratch_ptr`: `draw_scratch(length)` int32, aligned to 16 bytes.
    """
    # phase: sample and interval
    item = tl.arange(0, SAMPLE)
    position = ((length // 4) * (item // 4)) // (SAMPLE // 4) * 4 + item % 4
    weight = load_weights(
        weights_ptr, weights_stride, eligible_ptr, eligible_stride, position, length, eps,
        HAS_ELIGIBLE,
    )  # fmt: skip
    top = eps * 0.0
    raced_eps = eps
    if SHARPEN:
        top = largest_weight(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps, HAS_ELIGIBLE
        )
        top = tl.where(top + eps > 0.0, top, 1.0)
        relative = relative_weight(weight, top, eps, inverse_temperature, SHARPEN)
        weight = tl.where(weight >= 0.0, relative, -1.0)
        raced_eps = eps * 0.0
    none = eps * 0.0
    known, everything, steep, scale, early, late, typical = likely_interval(
        weight, none, none, length.to(tl.float32), raced_eps, num_samples
    )
    drawn = num_samples * 0
    if known & (num_samples > 0):
        words = tl.cdiv(length, CHUNK) * LANES
        most = tl.cdiv(length, 16) * 4
        if steep:
            marked, largest = sift_row(
                weights_ptr, weights_stride, eligible_ptr, eligible_stride, scratch_ptr, mask_ptr,
                length, seed, step, sample_id, eps, inverse_temperature, top, scale, early, late,
                typical, everything, HAS_ELIGIBLE, SHARPEN, True, WHOLE,
            )  # fmt: skip
        else:
            marked, largest = sift_row(
                weights_ptr, weights_stride, eligible_ptr, eligible_stride, scratch_ptr, mask_ptr,
                length, seed, step, sample_id, eps, inverse_temperature, top, scale, early, late,
                typical, everything, HAS_ELIGIBLE, SHARPEN, False, WHOLE,
            )  # fmt: skip
        tl.debug_barrier()
        list_ptr = tl.multiple_of(scratch_ptr + words, 16)
        keys_ptr = tl.multiple_of(list_ptr + (most + BLOCK_K), 16)
        keys_ptr = keys_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
        count, _, _, _ = list_flagged(
            scratch_ptr, list_ptr, weights_ptr, weights_stride, keys_ptr, length, most, False
        )
        tl.debug_barrier()
        # an infinite weight would be taken for a heavy one
        if (count <= most) & (largest <= LARGEST_FLOAT32):
            below, upto = keys_of_listed(
                weights_ptr, weights_stride, list_ptr, keys_ptr, count, seed, step, sample_id, eps,
                inverse_temperature, top, scale, early, late, SHARPEN,
            )  # fmt: skip
            tl.debug_barrier()
            drawn = mark_smallest(
                list_ptr, keys_ptr, mask_ptr, count, num_samples - marked, below, upto, early, late
            )
        tl.debug_barrier()
    return drawn
