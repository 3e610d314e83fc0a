"""The few positions of a row whose keys decide, by Triton: the counterpart of
csrc/cuda/candidates.cuh.
"""

import triton
import triton.language as tl

from ...._core.triton_language import exponential, is_drawable, relative_weight, uniform
from .words import word_of

BLOCK_C = tl.constexpr(256)
BLOCK_K = tl.constexpr(1024)


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
    """Writes the keys of the listed positions, and BLOCK_K infinities after them; returns how many
    are below `early`, and below `late`.
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
