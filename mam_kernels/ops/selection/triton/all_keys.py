"""The draw of a row by all of its keys, by Triton: of rows that one pass does not decide."""

import triton
import triton.language as tl

from ...._core.triton_language import (
    STREAM_POSITIONS,
    exponential,
    load_weights,
    positional_bits,
    relative_weight,
    uniform,
)

RADIX_BITS = tl.constexpr(8)
RADIX_BINS = tl.constexpr(256)


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
    for digit in range(4):  # trips: all_keys * 4
        shift = 24 - RADIX_BITS * digit
        histogram = tl.zeros([RADIX_BINS], dtype=tl.int32)
        for start in range(0, length, BLOCK):  # trips: all_keys * L / 1024
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
