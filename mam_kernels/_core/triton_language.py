"""What the Triton kernels share: random bits, weights and keys of the exponential race.

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


@triton.jit
def wide(x):
    """An index in 64 bits, in which no address overflows; the interpreter's loops count in plain
    numbers, which have no ``to``.
    """
    return tl.zeros([], dtype=tl.int64) + x


@triton.jit
def read_word(value, pointer, ON_DEVICE: tl.constexpr):
    """A seed or step, int64: what the launch was given, or what lies on the device."""
    if ON_DEVICE:
        return tl.load(pointer)
    else:
        return value.to(tl.int64)


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Philox4x32-10 of each counter. As ``tl.philox``, but both halves of a product come from one
    multiplication.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in range(10):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = second.to(tl.uint32)
        c3 = first.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def four_words(group, seed, sample_id, step, STREAM: tl.constexpr):
    """The four words of each counter (group, sample id, step, stream); of `sample_id` and `step`
    the low 32 bits count.
    """
    group = group.to(tl.uint32)
    zero = group * 0
    return philox(
        seed, group, sample_id.to(tl.uint32) + zero, step.to(tl.uint32) + zero, zero + STREAM
    )


@triton.jit
def positional_bits(first, seed, sample_id, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Philox4x32-10 at positions first .. first + BLOCK - 1: word l & 3 of counter (l >> 2, sample
    id, step, stream).

    `first` is divisible by 4.
    """
    group = (first >> 2) + tl.arange(0, BLOCK // 4)  # [BLOCK // 4]
    word0, word1, word2, word3 = four_words(group, seed, sample_id, step, STREAM)
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
