"""Where the k-th key of a row lies, told from a sample of its weights, by Triton: the counterpart
of csrc/cuda/interval.cuh. See README.md one folder up.
"""

import triton
import triton.language as tl

from ...._core.triton_language import exponential

SAMPLE = tl.constexpr(512)
FEWEST_SAMPLED = tl.constexpr(1024)
LOG2E = tl.constexpr(1.4426950408889634)
ROOM = tl.constexpr(4e-6)  # more than everything that rounds comes to, as a part of 1
LAST_TIME = tl.constexpr(1e30)
MOST_SLOP = tl.constexpr(0.004)  # part of the row that a tangent may leave in doubt


@triton.jit
def tangent_of(early, late, typical):
    """(a, b) with a + b q >= q^(early / late) for all q, and equal at `typical`: concave in q."""
    g = early / late
    power = tl.exp2(g * tl.log2(typical))
    return (1.0 - g) * power, g * power / typical


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
