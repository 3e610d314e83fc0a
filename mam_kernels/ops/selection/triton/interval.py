"""Where the k-th key of a row lies, told from a sample of its weights, by Triton: the counterpart
of csrc/cuda/interval.cuh. See README.md one folder up.
"""

import triton
import triton.language as tl

from ...._core.triton_language import exponential

SAMPLE = tl.constexpr(512)
WIDE_SAMPLE = tl.constexpr(2048)  # of a steep row
NEARLY_ALL = tl.constexpr(0.998)
FEWEST_SAMPLED = tl.constexpr(1024)
LOG2E = tl.constexpr(1.4426950408889634)
ROOM = tl.constexpr(4e-6)  # more than everything that rounds comes to, as a part of 1
LAST_TIME = tl.constexpr(1e30)
MOST_SLOP = tl.constexpr(0.004)  # part of the row that a tangent may leave in doubt
FURTHEST = tl.constexpr(90.0)  # powers of two from the k-th key that an end may lie at


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
    """(known, everything, steep, scale, early, late, typical, time, reach) such that the k-th of
    the keys E / (scale (weight + eps)) is nearly always in [early, late).

    `common` positions have the weight `of_common`, the `others` weigh as a sample of them does,
    whose weights are -1 where they cannot be drawn. `everything`: no time is late enough, all that
    can be drawn has to be looked at. `steep`: a tangent at `typical` is no good, or a sample this
    small does not tell the interval. The k-th key is about at `time`, 0 where that is not known,
    and an end `reach` times as far from it.
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
    part = (k.to(tl.float32) - 0.5) / tl.maximum(drawable, 1.0)
    of_all = part >= 1.0  # of all of them the last key may be at any time
    part = tl.where(of_all, NEARLY_ALL, part)
    share = part * drawable / length
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
    reach = margin / (slope * time)
    bent = (slope_then < 0.75 * slope) | ((early == 0.0) & (share > margin))
    everything = ((share + 1.5 * margin) * length > drawable) | ~(late < LAST_TIME)
    late = tl.where(everything, LAST_TIME, late)
    known = (found != 0) & (late > early) & ~of_all
    typical = tl.maximum(1.0 - part, 0.05)
    tangent, chord = tangent_of(early, late, typical)
    q = tl.exp2(late * -LOG2E * relative)
    slop = tl.sum(tangent + chord * q - tl.exp2(early * -LOG2E * relative), 0) / SAMPLE
    steep = everything | bent | (slop > MOST_SLOP) | of_all
    time = tl.where(found != 0, time, 0.0)
    return known, everything, steep, scale, early, late, typical, time, reach


@triton.jit
def end_of_interval(relative, share, margin, middle, reach, sign):
    """How many powers of two before (sign = -1) or after (1) `middle` the share of keys between has
    grown to the margin, or a little more; infinity where it never does.
    """
    # phase: sample of a steep row
    close = share * 0.0
    far = close + float("inf")
    distance = tl.minimum(tl.maximum(reach, 1e-3), 8.0)
    steps = 0
    searching = (distance > 0.0).to(tl.int32)
    while searching != 0:  # trips: widenings
        time = tl.exp2(middle + sign * distance)
        left = tl.sum(tl.exp2(time * -LOG2E * relative), 0) / WIDE_SAMPLE
        between = sign * ((1.0 - left) - share)
        enough = between >= margin
        far = tl.where(enough, distance, far)
        close = tl.where(enough, close, distance)
        distance = tl.where(far < float("inf"), 0.5 * (close + far), 2.0 * distance)
        steps += 1
        done = (enough & (between < 1.3 * margin)) | (distance >= FURTHEST) | (steps >= 20)
        searching = (~done).to(tl.int32)
    return far


@triton.jit
def wide_interval(weight, length, eps, k, scale, time, reach):
    """(everything, early, late) of a steep row, from WIDE_SAMPLE of its weights, -1 where they
    cannot be drawn, and what `likely_interval` told of the smaller sample.

    As wide as weights of any spread need: a share s of keys below a time, which a sample of n
    weights tells, has a variance of s (1 - s) / n at most.
    """
    # phase: sample of a steep row
    can = weight >= 0.0
    relative = tl.where(can, (weight + eps) * scale, 0.0)
    drawable = tl.sum(can.to(tl.float32), 0) / WIDE_SAMPLE
    share = (k.to(tl.float32) - 0.5) / length
    each = tl.maximum(1.0 / WIDE_SAMPLE, 1.0 / length)
    margin = share * 0.0
    worst = share
    for _ in tl.static_range(2):  # the variance is that at the ends
        margin = 4.5 * tl.sqrt(worst * (1.0 - worst) * each) + 2.0 / length
        worst = tl.minimum(tl.maximum(0.5, share - margin), share + margin)
    middle = tl.log2(time)
    before = end_of_interval(relative, share, margin, middle, reach, -1.0)
    after = end_of_interval(relative, share, margin, middle, reach, 1.0)
    early = tl.where(before < FURTHEST, tl.exp2(middle - before), 0.0)
    late = tl.where(after < FURTHEST, tl.exp2(middle + after), LAST_TIME)
    everything = (share + margin > drawable) | ~(late < LAST_TIME)
    return everything, early, tl.where(everything, LAST_TIME, late)
