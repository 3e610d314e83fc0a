"""The draw of a row in one pass over its weights, by Triton: the counterpart of csrc/cuda/draw.cuh.
See README.md one folder up.
"""

import triton
import triton.language as tl

from ...._core.triton_language import (
    LARGEST_FLOAT32,
    STREAM_POSITIONS,
    four_words,
    is_drawable,
    load_weights,
    relative_weight,
    wide,
)
from .candidates import BLOCK_K, keys_of_listed, mark_smallest
from .interval import (
    LOG2E,
    ROOM,
    SAMPLE,
    WIDE_SAMPLE,
    likely_interval,
    tangent_of,
    wide_interval,
)
from .words import (
    AT_ONCE,
    CHUNK,
    LANES,
    TURNS,
    bytes_of_bit_23,
    columns,
    list_flagged,
    store_mask,
    sum_of_bytes,
)


def draw_scratch(length: int) -> int:
    """Words of scratch that the draw of a row takes, a multiple of 16: its keys, or its flags and
    then positions and keys of its candidates, a quarter of the row each at most.
    """
    flags = triton.cdiv(length, CHUNK.value) * LANES.value
    listed = triton.cdiv(length, 16) * 4 + BLOCK_K.value
    return triton.cdiv(max(length, flags + 2 * listed), 16) * 16


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
    passed = 0  # quads; the pointers are those of the positions after them
    left = length
    # phase: pass
    # trips: steep * L / (32 * LANES) | (1 - steep) * L / (32 * LANES)
    for chunk in range(tl.cdiv(length, CHUNK)):
        word = tl.zeros([LANES], dtype=tl.int32)
        found = tl.zeros([LANES], dtype=tl.int32)
        turns = tl.minimum(tl.cdiv(left, 4 * LANES), TURNS)  # fewer where the row ends before
        for first in range(0, turns, AT_ONCE):  # trips: 4
            flagged = tl.zeros([LANES], dtype=tl.int32)
            for turn in tl.static_range(AT_ONCE):
                quad = lane + turn * LANES
                if WHOLE:
                    in_row = tl.broadcast_to((quad < left // 4)[:, None], [LANES, 4])
                else:
                    in_row = quad[:, None] * 4 + within[None, :] < left
                # no curve of a probability is above 0 at -1 or NaN: what cannot be drawn is
                # neither marked nor flagged
                at = weights_ptr + (offset + turn * 4 * LANES) * weights_stride
                x = tl.load(at, mask=in_row, other=-1.0).to(tl.float32)
                if HAS_ELIGIBLE:
                    at = eligible_ptr + (offset + turn * 4 * LANES) * eligible_stride
                    x = tl.where(tl.load(at, mask=in_row, other=0) != 0, x, -1.0)
                word0, word1, word2, word3 = four_words(
                    passed + quad, seed, sample_id, step, STREAM_POSITIONS
                )
                bits = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [LANES, 4])
                # 2 - v, less what is cut off: with a probability added it reaches 2 where v is
                # below that, and bit 23 says so; NaN counts as 0
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
                store_mask(mask_ptr, quad, surely_bytes, left, WHOLE)
                found += surely_bytes
                flagged |= (not_surely & ~not_perhaps) << turn
            word |= flagged << first
            passed += AT_ONCE * LANES
            left -= AT_ONCE * 4 * LANES
            mask_ptr += AT_ONCE * 4 * LANES
            weights_ptr += wide(AT_ONCE * 4 * LANES) * weights_stride
            if HAS_ELIGIBLE:
                eligible_ptr += wide(AT_ONCE * 4 * LANES) * eligible_stride
        tl.store(flags_ptr + chunk * LANES + lane, word)
        marked += sum_of_bytes(found)
    return tl.sum(marked, 0), tl.max(largest, 0)


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
def mark_all(
    weights_ptr, weights_stride, eligible_ptr, eligible_stride, mask_ptr, length, eps,
    HAS_ELIGIBLE: tl.constexpr,
):  # fmt: skip
    """Marks all that can be drawn; how many these are."""
    # phase: all that can be drawn
    number = tl.zeros([BLOCK_K], dtype=tl.int32)
    for start in range(0, length, BLOCK_K):  # trips: 0
        position = start + tl.arange(0, BLOCK_K)
        weight = load_weights(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride, position, length, eps,
            HAS_ELIGIBLE,
        )  # fmt: skip
        tl.store(mask_ptr + position, weight >= 0.0, mask=position < length)
        number += (weight >= 0.0).to(tl.int32)
    return tl.sum(number, 0)


@triton.jit
def take_back_infinite(
    weights_ptr, weights_stride, eligible_ptr, eligible_stride, mask_ptr, length,
    HAS_ELIGIBLE: tl.constexpr,
):  # fmt: skip
    """Unmarks what the pass took infinite weights for; how many these were."""
    # phase: infinite weights
    number = tl.zeros([BLOCK_K], dtype=tl.int32)
    for start in range(0, length, BLOCK_K):  # trips: infinite * L / BLOCK_K
        position = start + tl.arange(0, BLOCK_K)
        offset = position.to(tl.int64)
        in_row = position < length
        weight = tl.load(weights_ptr + offset * weights_stride, mask=in_row, other=0.0)
        infinite = weight.to(tl.float32) > LARGEST_FLOAT32
        if HAS_ELIGIBLE:
            at = eligible_ptr + offset * eligible_stride
            infinite &= tl.load(at, mask=in_row, other=0) != 0
        number += tl.load(mask_ptr + position, mask=infinite, other=0).to(tl.int32)
        tl.store(mask_ptr + position, False, mask=infinite)
    return tl.sum(number, 0)


@triton.jit
def sample_of_row(
    weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps, top,
    inverse_temperature, SIZE: tl.constexpr, HAS_ELIGIBLE: tl.constexpr, SHARPEN: tl.constexpr,
):  # fmt: skip
    """SIZE weights in fours, from all over the row, -1 where they cannot be drawn."""
    item = tl.arange(0, SIZE)
    four = (item // 4).to(tl.int64)
    position = ((length // 4) * four // (SIZE // 4) * 4 + item % 4).to(tl.int32)
    weight = load_weights(
        weights_ptr, weights_stride, eligible_ptr, eligible_stride, position, length, eps,
        HAS_ELIGIBLE,
    )  # fmt: skip
    if SHARPEN:
        relative = relative_weight(weight, top, eps, inverse_temperature, SHARPEN)
        weight = tl.where(weight >= 0.0, relative, -1.0)
    return weight


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
    top = eps * 0.0
    raced_eps = eps
    if SHARPEN:
        top = largest_weight(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps, HAS_ELIGIBLE
        )
        top = tl.where(top + eps > 0.0, top, 1.0)
        raced_eps = eps * 0.0
    weight = sample_of_row(
        weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps, top,
        inverse_temperature, SAMPLE, HAS_ELIGIBLE, SHARPEN,
    )  # fmt: skip
    none = eps * 0.0
    positions = length.to(tl.float32)
    known, everything, steep, scale, early, late, typical, time, reach = likely_interval(
        weight, none, none, positions, raced_eps, num_samples
    )
    if steep & (time > 0.0):  # share: steep
        larger = sample_of_row(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride, length, eps, top,
            inverse_temperature, WIDE_SAMPLE, HAS_ELIGIBLE, SHARPEN,
        )  # fmt: skip
        everything, early, late = wide_interval(
            larger, positions, raced_eps, num_samples, scale, time, reach
        )
        known = late > early
    number = num_samples + 1
    if everything:  # share: 0
        # perhaps no more can be drawn than are wanted
        number = mark_all(
            weights_ptr, weights_stride, eligible_ptr, eligible_stride, mask_ptr, length, eps,
            HAS_ELIGIBLE,
        )  # fmt: skip
    drawn = (number <= num_samples).to(tl.int32)
    if known & (num_samples > 0) & (drawn == 0):
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
        if largest > LARGEST_FLOAT32:  # taken for a heavy one
            marked -= take_back_infinite(
                weights_ptr, weights_stride, eligible_ptr, eligible_stride, mask_ptr, length,
                HAS_ELIGIBLE,
            )  # fmt: skip
            tl.debug_barrier()
        if count <= most:
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
