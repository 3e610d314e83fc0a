"""Importance and mask of one cell, whose zeros share one weight, by Triton: zeros are decided by
their random words, the others one by one. The counterpart of csrc/cuda/cell_draw.cuh.
"""

import triton
import triton.language as tl

from ...._core.triton_language import STREAM_POSITIONS, four_words, is_drawable, uniform, wide
from ...selection.triton.candidates import BLOCK_K, keys_of_listed, mark_smallest
from ...selection.triton.interval import FEWEST_SAMPLED, LOG2E, ROOM, SAMPLE, likely_interval
from ...selection.triton.words import (
    AT_ONCE,
    CHUNK,
    LANES,
    TURNS,
    bits_of,
    bytes_of_bit_23,
    list_flagged,
    lowest_bit_of,
    store_mask,
    sum_of_bytes,
    word_of,
)
from .row import flags_of, in_row_of

WORDS = tl.constexpr(1 << 23)  # what is left of a random word's range after 9 bits are cut off


@triton.jit
def count_flags(flags_ptr, stride, length):
    """How many flags of a row are set."""
    # phase: counts
    total = tl.zeros([BLOCK_K], dtype=tl.int32)
    for start in range(0, length, BLOCK_K):  # trips: 0
        position = start + tl.arange(0, BLOCK_K)
        flag = tl.load(flags_ptr + position.to(tl.int64) * stride, mask=position < length, other=0)
        total += (flag != 0).to(tl.int32)
    return tl.sum(total, 0)


@triton.jit
def count_listed(flags_ptr, stride, list_ptr, count):
    """How many listed positions have their flag set."""
    # phase: counts
    total = tl.zeros([BLOCK_K], dtype=tl.int32)
    for start in range(0, count, BLOCK_K):  # trips: 0
        item = start + tl.arange(0, BLOCK_K)
        position = tl.load(list_ptr + item, mask=item < count, other=0).to(tl.int64)
        flag = tl.load(flags_ptr + position * stride, mask=item < count, other=0)
        total += (flag != 0).to(tl.int32)
    return tl.sum(total, 0)


@triton.jit
def probability(weight, eps, exponent):
    """1 - exp(-t (weight + eps)), where `exponent` is -t log2(e)."""
    return 1.0 - tl.exp2(exponent * (weight + eps))


@triton.jit
def pass_over_zeros(
    flags_ptr,
    attended_ptr,
    maskable_ptr,
    maskable_stride,
    importance_ptr,
    mask_ptr,
    length,
    of_zero,
    surely_below,
    perhaps_below,
    seed,
    step,
    sample_id,
    ALL_ATTENDED: tl.constexpr,
    HAS_MASKABLE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Writes the importance of a zero everywhere, marks the zeros whose cut words are below
    `surely_below`, and flags in place of the nonzeros those others that are below `perhaps_below`;
    how many were marked.
    """
    # phase: pass over the zeros
    lane = tl.arange(0, LANES)
    within = tl.arange(0, 4)
    marked = tl.zeros([LANES], dtype=tl.int32)
    offset = lane.to(tl.int64)[:, None] * 4 + within[None, :]
    passed = 0  # quads; the pointers are those of the positions after them
    left = length
    for chunk in range(tl.cdiv(length, CHUNK)):  # trips: L / (32 * LANES)
        attended = tl.load(attended_ptr + chunk * LANES + lane)
        zeros = attended & ~tl.load(flags_ptr + chunk * LANES + lane)
        flags = tl.zeros([LANES], dtype=tl.int32)
        found = tl.zeros([LANES], dtype=tl.int32)
        turns = tl.minimum(tl.cdiv(left, 4 * LANES), TURNS)  # fewer where the row ends before
        for first in range(0, turns, AT_ONCE):  # trips: 4
            flagged = tl.zeros([LANES], dtype=tl.int32)
            for turn in tl.static_range(AT_ONCE):
                quad = lane + turn * LANES
                word0, word1, word2, word3 = four_words(
                    passed + quad, seed, sample_id, step, STREAM_POSITIONS
                )
                # bit 23 of what is left of a word, plus the rest to 2^23, says that it is not below
                early = -surely_below + WORDS
                late = -perhaps_below + WORDS
                not_surely = bytes_of_bit_23(
                    (word0 >> 9) + early, (word1 >> 9) + early, (word2 >> 9) + early,
                    (word3 >> 9) + early,
                ).to(tl.int32, bitcast=True)  # fmt: skip
                not_perhaps = bytes_of_bit_23(
                    (word0 >> 9) + late, (word1 >> 9) + late, (word2 >> 9) + late,
                    (word3 >> 9) + late,
                ).to(tl.int32, bitcast=True)  # fmt: skip
                here = (zeros >> (first + turn)) & 0x01010101
                in_row = in_row_of(quad, left, WHOLE)
                if HAS_MASKABLE:
                    at = maskable_ptr + (offset + turn * 4 * LANES) * maskable_stride
                    here &= flags_of(tl.load(at, mask=in_row, other=0))
                surely = ~not_surely & here
                store_mask(mask_ptr, quad, surely, left, WHOLE)
                importance = tl.full([LANES, 4], 0.0, dtype=tl.float32) + of_zero
                if not ALL_ATTENDED:
                    bits = ((attended >> (first + turn))[:, None] >> (8 * within)[None, :]) & 1
                    importance = tl.where(bits != 0, importance, 0.0)
                tl.store(importance_ptr + offset + turn * 4 * LANES, importance, mask=in_row)
                found += surely
                flagged |= (not_surely & ~not_perhaps & here) << turn
            flags |= flagged << first
            passed += AT_ONCE * LANES
            left -= AT_ONCE * 4 * LANES
            mask_ptr += AT_ONCE * 4 * LANES
            importance_ptr += AT_ONCE * 4 * LANES
            if HAS_MASKABLE:
                maskable_ptr += wide(AT_ONCE * 4 * LANES) * maskable_stride
        tl.store(flags_ptr + chunk * LANES + lane, flags)
        marked += sum_of_bytes(found)
    return tl.sum(marked, 0)


@triton.jit
def race_nonzeros(
    list_ptr,
    weights_ptr,
    count,
    maskable_ptr,
    maskable_stride,
    importance_ptr,
    mask_ptr,
    out_ptr,
    room,
    seed,
    step,
    sample_id,
    eps,
    scale,
    early,
    late,
    known,
    HAS_MASKABLE: tl.constexpr,
):
    """Writes the importance of the nonzeros, marks those whose keys are below `early` for sure, and
    lists at `out_ptr`, which has `room`, those others that may be below `late`; how many of each.
    """
    # phase: race of the nonzeros
    lane = tl.arange(0, LANES)
    marked = tl.zeros([LANES], dtype=tl.int32)
    exponent = late * scale * -LOG2E
    early_exponent = early * scale * -LOG2E
    listed = 0
    for first in range(0, count, 32 * LANES):  # trips: ceil(nonzeros / (32 * LANES))
        word = tl.zeros([LANES], dtype=tl.int32)
        last = tl.minimum(first + 32 * LANES, count)
        bit = count * 0 + 1
        for start in range(first, last, LANES):  # trips: ceil(nonzeros / LANES)
            item = start + lane
            there = item < count
            position = tl.load(list_ptr + item, mask=there, other=0)
            weight = tl.load(weights_ptr + item, mask=there, other=0.0)
            tl.store(importance_ptr + position, weight, mask=there)
            v = uniform(word_of(position, seed, sample_id, step))
            if HAS_MASKABLE:
                at = maskable_ptr + position.to(tl.int64) * maskable_stride
                there &= tl.load(at, mask=there, other=0) != 0
            there &= known
            surely = there & (v < probability(weight, eps, early_exponent) - ROOM)
            perhaps = there & (v < probability(weight, eps, exponent) + ROOM)
            tl.store(mask_ptr + position, surely, mask=surely)
            marked += surely.to(tl.int32)
            word |= tl.where(perhaps & (surely == 0), bit, 0)
            bit = bit << 1
        bits = bits_of(word)
        slot = listed + tl.cumsum(bits, 0) - bits
        for _ in range(tl.max(bits, 0)):  # trips: 3
            there = (word != 0) & (slot < room)
            item = first + lowest_bit_of(word) * LANES + lane
            tl.store(out_ptr + slot, tl.load(list_ptr + item, mask=there, other=0), mask=there)
            slot += 1
            word = word & (word - 1)
        listed += tl.sum(bits, 0)
    return tl.sum(marked, 0), listed


@triton.jit
def draw_cell(
    list_ptr,
    weights_ptr,
    count,
    num_zeros,
    of_zero,
    flags_ptr,
    attended_ptr,
    capacity,
    maskable_ptr,
    maskable_stride,
    importance_ptr,
    mask_ptr,
    length,
    to_hide,
    num_maskable,
    seed,
    step,
    sample_id,
    eps,
    ALL_ATTENDED: tl.constexpr,
    HAS_MASKABLE: tl.constexpr,
    SHARPEN: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Importance and mask of a cell whose `count` nonzeros are listed with their weights; 0 where
    the mask has to be drawn from the importance. Both lists have room for `capacity`.
    """
    # phase: interval
    zeros = num_zeros
    if HAS_MASKABLE:
        listed = count_listed(maskable_ptr, maskable_stride, list_ptr, count)
        zeros = num_maskable - listed
    item = tl.arange(0, SAMPLE)
    index = (item.to(tl.int64) * count // SAMPLE).to(tl.int32)
    sample = tl.load(weights_ptr + index, mask=index < count, other=-1.0)
    can = is_drawable(sample, eps)
    if HAS_MASKABLE:
        position = tl.load(list_ptr + index, mask=index < count, other=0).to(tl.int64)
        can &= tl.load(maskable_ptr + position * maskable_stride, mask=index < count, other=0) != 0
    sample = tl.where(can, sample, -1.0)
    known, everything, _, scale, early, late, _, _, _ = likely_interval(
        sample, zeros.to(tl.float32), of_zero, count.to(tl.float32), eps, to_hide
    )
    known &= (to_hide > 0) & (to_hide < num_maskable) & (length >= FEWEST_SAMPLED)
    known &= ((zeros == 0) | is_drawable(of_zero, eps)) & (everything == 0)
    if SHARPEN:
        known &= False
    early_exponent = early * scale * -LOG2E
    late_exponent = late * scale * -LOG2E
    surely = tl.maximum(probability(of_zero, eps, early_exponent) - ROOM, 0.0) * WORDS
    perhaps = tl.minimum(probability(of_zero, eps, late_exponent) + ROOM, 1.0) * WORDS
    surely_below = tl.where(known, surely, 0.0).to(tl.int32)
    perhaps_below = tl.minimum(tl.where(known, perhaps, -2.0).to(tl.int32) + 2, WORDS)
    marked = pass_over_zeros(
        flags_ptr, attended_ptr, maskable_ptr, maskable_stride, importance_ptr, mask_ptr, length,
        of_zero, surely_below, perhaps_below, seed, step, sample_id, ALL_ATTENDED, HAS_MASKABLE,
        WHOLE,
    )  # fmt: skip
    tl.debug_barrier()
    # behind the nonzeros
    first = tl.cdiv(count, 16) * 16
    candidates_ptr = tl.multiple_of(list_ptr + first, 16)
    keys_ptr = tl.multiple_of(weights_ptr + first, 16)
    room = capacity - first
    others, _, _, _ = list_flagged(
        flags_ptr, candidates_ptr, importance_ptr, 1, keys_ptr, length, room, False
    )
    marked_too, listed = race_nonzeros(
        list_ptr, weights_ptr, count, maskable_ptr, maskable_stride, importance_ptr, mask_ptr,
        candidates_ptr + others, room - others, seed, step, sample_id, eps, scale, early, late,
        known, HAS_MASKABLE,
    )  # fmt: skip
    tl.debug_barrier()
    drawn = (to_hide <= 0).to(tl.int32)  # nothing was marked
    if known & (others + listed <= room):
        none = eps * 0.0
        below, upto = keys_of_listed(
            importance_ptr, 1, candidates_ptr, keys_ptr, others + listed, seed, step, sample_id,
            eps, none, none, scale, early, late, False,
        )  # fmt: skip
        tl.debug_barrier()
        drawn = mark_smallest(
            candidates_ptr, keys_ptr, mask_ptr, others + listed, to_hide - marked - marked_too,
            below, upto, early, late,
        )  # fmt: skip
    tl.debug_barrier()
    return drawn
