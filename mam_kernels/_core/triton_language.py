"""What the Triton kernels share: random bits, keys of the exponential race, and the draw along one
row.

The device counterpart of csrc/include/mam/{philox,keys}.h. Rows are worked on by one program each,
which keeps what does not fit in registers in global memory; wherever one thread may read there what
another wrote, `tl.debug_barrier` stands between. It orders global memory within a program on NVIDIA
GPUs, and on AMD GPUs whose work-groups share one compute unit's cache (the gfx9 family).
"""

import triton
import triton.language as tl

STREAM_POSITIONS = tl.constexpr(0)
STREAM_LATENTS = tl.constexpr(1)

LARGEST_UNIFORM = tl.constexpr(1.0 - 2.0**-24)
SMALLEST_RELATIVE_WEIGHT = tl.constexpr(1e-37)
LARGEST_FLOAT32 = tl.constexpr(3.4028234663852886e38)

RADIX_BITS = tl.constexpr(8)
RADIX_BINS = tl.constexpr(256)


@triton.jit
def read_word(value, pointer, ON_DEVICE: tl.constexpr):
    """A seed or step, int64: what the launch was given, or what lies on the device."""
    if ON_DEVICE:
        return tl.load(pointer)
    else:
        return value.to(tl.int64)


@triton.jit
def positional_bits(first, seed, sample_id, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Philox4x32-10 at positions first .. first + BLOCK - 1: word l & 3 of counter (l >> 2, sample
    id, step, stream).

    `first` is divisible by 4; of `sample_id` and `step` the low 32 bits count.
    """
    group = ((first >> 2) + tl.arange(0, BLOCK // 4)).to(tl.uint32)  # [BLOCK // 4]
    zero = group * 0
    word0, word1, word2, word3 = tl.philox(
        seed, group, sample_id.to(tl.uint32) + zero, step.to(tl.uint32) + zero, zero + STREAM
    )
    return tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))  # [BLOCK]


@triton.jit
def uniform(bits):
    """v = (r + 1/2) / 2^32 in float32, below 1: the small v, which decide the race, keep all 32
    bits.
    """
    return tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, LARGEST_UNIFORM)


@triton.jit
def exponential(v):
    """-log1p(-v) for v in (0, 1), to 2.5e-7 of itself at the smallest v as at the largest.

    1 - v = w + (lost digits) and w = 2^e (1 + f) with |f| < 0.42: log w = e log 2 + f - f^2/2 + f^3
    p(f), p a minimax polynomial. Written out because no logarithm of the language promises this
    near 1 on every target.
    """
    w = 1.0 - v
    lost = v - (1.0 - w)
    # Subtracting the bits of sqrt(1/2) makes the exponent field step at sqrt(1/2) rather than at 1.
    exponent = (w.to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    f = (w.to(tl.int32, bitcast=True) - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = 0.08700418472290039
    p = p * f - 0.14267484843730927
    p = p * f + 0.14914771914482117
    p = p * f - 0.1657758504152298
    p = p * f + 0.19963063299655914
    p = p * f - 0.2500133812427521
    p = p * f + 0.3333390951156616
    square = f * f
    log_w = exponent.to(tl.float32) * 0.6931471805599453 + (f + (square * f * p - 0.5 * square))
    return lost - log_w


@triton.jit
def is_drawable(weight, eps):
    """A weight can be drawn when it is finite, not negative, and positive after eps; NaN compares
    false.
    """
    return (weight >= 0.0) & (weight + eps > 0.0) & (weight <= LARGEST_FLOAT32)


@triton.jit
def relative_weight(weight, largest, eps, inverse_temperature, SHARPEN: tl.constexpr):
    """((weight + eps) / (largest + eps)) ** inverse_temperature, in [1e-37, 1]; SHARPEN is off
    where the exponent is 1.
    """
    ratio = (weight + eps) / (largest + eps)
    if SHARPEN:
        ratio = tl.exp2(inverse_temperature * tl.log2(tl.maximum(ratio, SMALLEST_RELATIVE_WEIGHT)))
    return tl.maximum(ratio, SMALLEST_RELATIVE_WEIGHT)


@triton.jit
def load_weights(
    weights_ptr,
    weights_stride,
    eligible_ptr,
    eligible_stride,
    position,
    length,
    eps,
    HAS_ELIGIBLE: tl.constexpr,
):
    """Weights of one row's positions, -1 where they cannot be drawn."""
    in_row = position < length
    offset = position.to(tl.int64)
    weight = tl.load(weights_ptr + offset * weights_stride, mask=in_row, other=-1.0).to(tl.float32)
    drawable = is_drawable(weight, eps)
    if HAS_ELIGIBLE:
        drawable &= tl.load(eligible_ptr + offset * eligible_stride, mask=in_row, other=0) != 0
    return tl.where(drawable, weight, -1.0)


@triton.jit
def kth_smallest(keys_ptr, length, k, BLOCK: tl.constexpr):  # share: all_keys
    """(bits of the k-th smallest key, how many keys equal to it are among the k smallest), by radix
    on the bits of the floats.

    Keys are not negative, so their bits are in their order. With k = 0 no key lies below the bits
    returned, and no equal one counts.
    """
    bins = tl.arange(0, RADIX_BINS)
    prefix = 0
    remaining = k
    for digit in range(4):
        shift = 24 - RADIX_BITS * digit
        histogram = tl.zeros([RADIX_BINS], dtype=tl.int32)
        for start in range(0, length, BLOCK):
            position = start + tl.arange(0, BLOCK)
            in_row = position < length
            bits = (
                tl.load(keys_ptr + position, mask=in_row, other=0.0).to(tl.int32, bitcast=True)
                >> shift
            )
            candidate = in_row & ((bits >> RADIX_BITS) == prefix)
            histogram += tl.histogram(bits & (RADIX_BINS - 1), RADIX_BINS, mask=candidate)
        bucket = tl.sum((tl.cumsum(histogram, 0) < remaining).to(tl.int32), 0)
        remaining -= tl.sum(tl.where(bins < bucket, histogram, 0), 0)
        prefix = (prefix << RADIX_BITS) | bucket
    return prefix, remaining


@triton.jit
def draw_row(  # share: all_keys
    weights_ptr,
    weights_stride,
    eligible_ptr,
    eligible_stride,
    keys_ptr,
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
    BLOCK: tl.constexpr,
):
    """Hides the `num_samples` positions of one row with the smallest keys E / w, the lower index
    first among equals.

    Draws without replacement in proportion to w = (weight + eps) ** inverse_temperature. The
    pointers are the row's; `keys_ptr` is scratch for `length` float32 and may be `weights_ptr`
    itself where that is float32 of stride 1, which then holds the keys.
    """
    largest = tl.full([BLOCK], -1.0, dtype=tl.float32)
    drawable = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, length, BLOCK):  # trips: all_keys * L / 1024
        position = start + tl.arange(0, BLOCK)
        weight = load_weights(
            weights_ptr,
            weights_stride,
            eligible_ptr,
            eligible_stride,
            position,
            length,
            eps,
            HAS_ELIGIBLE,
        )
        largest = tl.maximum(largest, weight)
        drawable += (weight >= 0.0).to(tl.int32)
    # A row without drawable positions divides by eps or by 1, not by zero: its keys are all
    # infinite.
    top = tl.max(largest, 0)
    top = tl.where(top + eps > 0.0, top, 1.0)
    k = tl.minimum(num_samples, tl.sum(drawable, 0))

    for start in range(0, length, BLOCK):  # trips: all_keys * L / 1024
        position = start + tl.arange(0, BLOCK)
        weight = load_weights(
            weights_ptr,
            weights_stride,
            eligible_ptr,
            eligible_stride,
            position,
            length,
            eps,
            HAS_ELIGIBLE,
        )
        bits = positional_bits(start, seed, sample_id, step, STREAM_POSITIONS, BLOCK)
        key = exponential(uniform(bits)) / relative_weight(
            weight, top, eps, inverse_temperature, SHARPEN
        )
        # Keys may overwrite the weights they come from, and several threads may load the same one.
        tl.debug_barrier()
        tl.store(
            keys_ptr + position, tl.where(weight >= 0.0, key, float("inf")), mask=position < length
        )
    tl.debug_barrier()

    threshold, num_equal = kth_smallest(keys_ptr, length, k, BLOCK)

    seen = 0
    for start in range(0, length, BLOCK):  # trips: all_keys * L / 1024
        position = start + tl.arange(0, BLOCK)
        in_row = position < length
        bits = tl.load(keys_ptr + position, mask=in_row, other=float("inf")).to(
            tl.int32, bitcast=True
        )
        equal = (in_row & (bits == threshold)).to(tl.int32)
        rank = tl.cumsum(equal, 0) + seen
        hidden = (bits < threshold) | ((equal != 0) & (rank <= num_equal))
        tl.store(mask_ptr + position, hidden, mask=in_row)
        seen += tl.sum(equal, 0)


# The draw of a row in one pass: the counterpart of csrc/cuda/{interval,draw,candidates}.cuh

SAMPLE = tl.constexpr(512)
LANES = tl.constexpr(128)
TURNS = tl.constexpr(8)  # quads of a lane whose flags share a word
BUCKETS = tl.constexpr(512)
BLOCK_C = tl.constexpr(256)
FEWEST_SAMPLED = tl.constexpr(1024)
LOG2E = tl.constexpr(1.4426950408889634)
ROOM = tl.constexpr(4e-6)  # more than everything that rounds comes to, as a part of 1
LAST_TIME = tl.constexpr(1e6)


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
def likely_interval(weight, eps, length, k):
    """(known, scale, from, to) such that the k-th of the keys E / (scale (weight + eps)) is nearly
    always in [from, to); of a sample of weights, -1 where they cannot be drawn.
    """
    # phase: sample and interval
    can = weight >= 0.0
    drawable = tl.sum(can.to(tl.float32), 0)
    mean = tl.sum(tl.where(can, weight + eps, 0.0), 0) / tl.maximum(drawable, 1.0)
    sound = (mean > 1e-30) & (mean < 1e30)
    bits = tl.where(sound, mean, 1.0).to(tl.int32, bitcast=True) & 0x7F800000
    scale = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    relative = tl.where(can, (weight + eps) * scale, 0.0)
    share = (k.to(tl.float32) - 0.5) / length
    part = share * SAMPLE / tl.maximum(drawable, 1.0)
    sound = sound & (part < 1.0)
    part = tl.where(sound, part, 0.5)
    time = exponential(part) / tl.where(sound, mean * scale, 1.0)
    margin = share * 0.0
    slope = share * 0.0 + 1.0
    searching = sound.to(tl.int32)
    found = searching * 0
    steps = 0
    while searching != 0:  # trips: newton_steps
        now, squares, slope = expected_below(relative, time)
        within = tl.maximum(now - squares, 0.0) / length
        between = tl.maximum(squares - now * now, 0.0) / SAMPLE
        margin = 4.5 * tl.sqrt(within + between) + 2.0 / length
        missing = share - now
        time += missing / slope
        steps += 1
        sound = (slope > 0.0) & (time > 0.0) & (time < LAST_TIME)
        close = tl.abs(missing) <= 0.5 * margin
        found = (sound & close).to(tl.int32)
        searching = (sound & (found == 0) & (steps < 24)).to(tl.int32)
    early = tl.maximum(time - margin / slope, 0.0)
    guess = time + margin / slope
    then, _, slope_then = expected_below(relative, guess)
    late = guess + tl.maximum(share + margin - then, 0.0) / slope_then
    known = (found != 0) & (late > early) & (late < LAST_TIME)
    return known, scale, early, late, tl.maximum(1.0 - part, 0.05)


@triton.jit
def four_words(group, seed, sample_id, step, STREAM: tl.constexpr):
    """The four words of each counter (group, sample id, step, stream)."""
    group = group.to(tl.uint32)
    zero = group * 0
    return tl.philox(
        seed, group, sample_id.to(tl.uint32) + zero, step.to(tl.uint32) + zero, zero + STREAM
    )


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
    scale,
    early,
    late,
    typical,
    HAS_ELIGIBLE: tl.constexpr,
):
    """Marks the positions whose keys are below `early` for sure, and flags those whose keys may be
    below `late`: bit 8 j + i of word chunk * LANES + lane stands for position j of the quad that
    the lane has in turn i of the chunk. Returns how many were marked, and a sum that is not finite
    if a weight is not.
    """
    lane = tl.arange(0, LANES)
    within = tl.arange(0, 4)
    exponent = late * scale * -LOG2E
    at_eps = tl.exp2(exponent * eps)
    # exp(-early r) = q^g with q = exp(-late r): its tangent at `typical` lies above it
    g = early / late
    power = tl.exp2(g * tl.log2(typical))
    early_at_zero = (1.0 - (1.0 - g) * power) - ROOM
    early_slope = at_eps * g * power / typical
    # phase: pass
    marked = tl.zeros([LANES], dtype=tl.int32)
    total = tl.zeros([LANES], dtype=tl.float32)
    for chunk in range(tl.cdiv(length, 32 * LANES)):  # trips: L / (32 * LANES)
        word = tl.zeros([LANES], dtype=tl.int32)
        for turn in tl.static_range(TURNS):
            quad = lane + (chunk * TURNS + turn) * LANES
            position = quad[:, None] * 4 + within[None, :]  # [LANES, 4]
            in_row = position < length
            offset = position.to(tl.int64)
            x = tl.load(weights_ptr + offset * weights_stride, mask=in_row, other=-1.0)
            x = x.to(tl.float32)
            if HAS_ELIGIBLE:
                eligible = tl.load(eligible_ptr + offset * eligible_stride, mask=in_row, other=0)
                x = tl.where(eligible != 0, x, -1.0)
            word0, word1, word2, word3 = four_words(quad, seed, sample_id, step, STREAM_POSITIONS)
            bits = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [LANES, 4])
            v = (bits >> 9).to(tl.int32).to(tl.float32) * 1.1920928955078125e-07
            q = tl.exp2(exponent * x)
            # v lacks what is cut off, less than the room; NaN compares false
            surely = v < early_at_zero - early_slope * q
            perhaps = (v < (1.0 - at_eps * q) + ROOM) & in_row & (surely == 0)
            tl.store(mask_ptr + position, surely, mask=in_row)
            marked += tl.sum((surely & in_row).to(tl.int32), 1)
            total += tl.sum(tl.where(in_row, x, 0.0), 1)
            word |= tl.sum(perhaps.to(tl.int32) << (8 * within + turn)[None, :], 1)
        tl.store(flags_ptr + chunk * LANES + lane, word)
    return tl.sum(marked, 0), tl.sum(total, 0)


@triton.jit
def list_flagged(flags_ptr, list_ptr, length, most):
    """Lists the flagged positions; how many there are. Beyond `most` none is written."""
    # phase: list of candidates
    lane = tl.arange(0, LANES)
    count = 0
    for chunk in range(tl.cdiv(length, 32 * LANES)):  # trips: L / (32 * LANES)
        word = tl.load(flags_ptr + chunk * LANES + lane).to(tl.uint32, bitcast=True)
        pairs = word - ((word >> 1) & 0x55555555)
        fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
        bits = ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)
        slot = count + tl.cumsum(bits, 0) - bits
        count += tl.sum(bits, 0)
        for _ in range(tl.max(bits, 0)):  # trips: most_flagged
            lowest = word & (0 - word)
            bit = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            position = (((bit & 7) + chunk * TURNS) * LANES + lane) * 4 + (bit >> 3)
            tl.store(list_ptr + slot, position, mask=(word != 0) & (slot < most))
            slot += 1
            word = word & (word - 1)
    return count


@triton.jit
def bucket_of(key, early, per_bucket):
    return tl.minimum(((key - early) * per_bucket).to(tl.int32), BUCKETS - 1)


@triton.jit
def mark_smallest(
    weights_ptr,
    weights_stride,
    list_ptr,
    keys_ptr,
    mask_ptr,
    count,
    wanted,
    seed,
    step,
    sample_id,
    eps,
    scale,
    early,
    late,
):
    """Marks those `wanted` of the listed positions whose keys are smallest, the lower position
    first among equals. 0 where the last of them is not in [early, late): then the mask means
    nothing.
    """
    # phase: keys of the candidates
    per_bucket = (late * 0.0 + BUCKETS) / (late - early)
    histogram = tl.zeros([BUCKETS], dtype=tl.int32)
    below = tl.zeros([BLOCK_C], dtype=tl.int32)
    for start in range(0, count, BLOCK_C):  # trips: ceil(candidates / BLOCK_C)
        item = start + tl.arange(0, BLOCK_C)
        there = item < count
        position = tl.load(list_ptr + item, mask=there, other=0)
        weight = tl.load(
            weights_ptr + position.to(tl.int64) * weights_stride, mask=there, other=-1.0
        ).to(tl.float32)
        word0, word1, word2, word3 = four_words(
            position >> 2, seed, sample_id, step, STREAM_POSITIONS
        )
        odd = (position & 1) != 0
        word = tl.where(
            (position & 2) != 0, tl.where(odd, word3, word2), tl.where(odd, word1, word0)
        )
        key = exponential(uniform(word)) / ((weight + eps) * scale)
        key = tl.where(is_drawable(weight, eps), key, float("inf"))
        tl.store(keys_ptr + item, key, mask=there)
        below += (there & (key < early)).to(tl.int32)
        inside = there & (key >= early) & (key < late)
        bucket = bucket_of(tl.where(inside, key, early), early, per_bucket)
        histogram += tl.histogram(bucket, BUCKETS, mask=inside)
    tl.debug_barrier()
    before = tl.sum(below, 0)
    upto = before + tl.cumsum(histogram, 0)
    holds = (wanted > before) & (wanted <= before + tl.sum(histogram, 0))
    if holds:
        last = tl.sum((upto < wanted).to(tl.int32), 0)  # the bucket of the last of the wanted
        rank = wanted - before - tl.sum(tl.where(tl.arange(0, BUCKETS) < last, histogram, 0), 0)
        # its keys are few: the next one after the one before, so many times
        border = early * 0.0 - 1.0
        place = wanted * 0 - 1
        for _ in range(rank):  # trips: 1.5
            next_key = border * 0.0 + float("inf")
            next_place = place * 0 + 2147483647
            for start in range(0, count, BLOCK_C):  # trips: ceil(candidates / BLOCK_C)
                item = start + tl.arange(0, BLOCK_C)
                key = tl.load(keys_ptr + item, mask=item < count, other=float("inf"))
                position = tl.load(list_ptr + item, mask=item < count, other=2147483647)
                inside = (key >= early) & (key < late)
                bucket = bucket_of(tl.where(inside, key, early), early, per_bucket)
                after = (key > border) | ((key == border) & (position > place))
                key = tl.where(inside & after & (bucket == last), key, float("inf"))
                least = tl.min(key, 0)
                where = tl.min(tl.where(key == least, position, 2147483647), 0)
                closer = (least < next_key) | ((least == next_key) & (where < next_place))
                next_place = tl.where(closer, where, next_place)
                next_key = tl.minimum(next_key, least)
            border = next_key
            place = next_place
        for start in range(0, count, BLOCK_C):  # trips: ceil(candidates / BLOCK_C)
            item = start + tl.arange(0, BLOCK_C)
            key = tl.load(keys_ptr + item, mask=item < count, other=float("inf"))
            position = tl.load(list_ptr + item, mask=item < count, other=0)
            chosen = (key < border) | ((key == border) & (position <= place))
            tl.store(mask_ptr + position, chosen, mask=chosen)
    return holds.to(tl.int32)


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
    HAS_ELIGIBLE: tl.constexpr,
):
    """The draw of `draw_row`, nearly always, for weights that are not sharpened and a length of
    1024 at least; 0 where the row has to be drawn by all keys. `scratch_ptr`: `length` int32.
    """
    # phase: sample and interval
    item = tl.arange(0, SAMPLE)
    quads = length // 4
    position = (quads * (item // 4)) // (SAMPLE // 4) * 4 + item % 4
    weight = load_weights(
        weights_ptr,
        weights_stride,
        eligible_ptr,
        eligible_stride,
        position,
        length,
        eps,
        HAS_ELIGIBLE,
    )
    known, scale, early, late, typical = likely_interval(weight, eps, length, num_samples)
    drawn = num_samples * 0
    if known & (num_samples > 0):
        words = tl.cdiv(length, 32 * LANES) * LANES
        most = length // 4
        marked, total = sift_row(
            weights_ptr,
            weights_stride,
            eligible_ptr,
            eligible_stride,
            scratch_ptr,
            mask_ptr,
            length,
            seed,
            step,
            sample_id,
            eps,
            scale,
            early,
            late,
            typical,
            HAS_ELIGIBLE,
        )
        tl.debug_barrier()
        count = list_flagged(scratch_ptr, scratch_ptr + words, length, most)
        tl.debug_barrier()
        # an infinite weight would be taken for a heavy one, and NaN would hide it
        if (count <= most) & (tl.abs(total) < float("inf")):
            drawn = mark_smallest(
                weights_ptr,
                weights_stride,
                scratch_ptr + words,
                (scratch_ptr + words + most).to(tl.pointer_type(tl.float32), bitcast=True),
                mask_ptr,
                count,
                num_samples - marked,
                seed,
                step,
                sample_id,
                eps,
                scale,
                early,
                late,
            )
        tl.debug_barrier()
    return drawn
