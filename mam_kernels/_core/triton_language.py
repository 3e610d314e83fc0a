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
SMALLEST_FLOAT32 = tl.constexpr(1.1754943508222875e-38)  # the smallest normal one

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
    """A weight can be drawn when it is finite, not negative, and a normal number after eps; NaN
    compares false.
    """
    normal = weight + eps >= SMALLEST_FLOAT32
    return (weight >= 0.0) & normal & (weight <= LARGEST_FLOAT32)


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
def kth_smallest(keys_ptr, length, k, BLOCK: tl.constexpr):
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
def draw_row(
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
    for start in range(0, length, BLOCK):
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

    for start in range(0, length, BLOCK):
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
    for start in range(0, length, BLOCK):
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
