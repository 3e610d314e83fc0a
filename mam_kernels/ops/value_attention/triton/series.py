"""Moments and importance of a row by power series, by Triton: the counterpart of
csrc/cuda/panel_series.cuh. See README.md one folder up.

A lane sums the powers of its own values in registers, and the lanes are added once a row. A
polynomial has 1, 8, 15, 22 or 29 terms: seven at a time, as the steepest slope asks for.
"""

import triton
import triton.language as tl

from ...selection.triton.words import LANES

BABIES = tl.constexpr(7)
GIANTS = tl.constexpr(4)
TERMS = tl.constexpr(1 + 7 * 4)
ROOM = tl.constexpr(32)  # TERMS, rounded up
MAX_PANELS = tl.constexpr(22)
SERIES_SCRATCH = 2 * 22 * 32
"""float64 numbers a row: its power sums, and the series of its importance."""

LARGEST_BETA = tl.constexpr(3.7074885)
SERIES_BLOCK = tl.constexpr(512)
RECIPROCAL_FACTORIALS = tl.constexpr(
    (
        1.0, 1.0, 0.5, 0.16666666666666666, 0.041666666666666664, 0.008333333333333333,
        0.001388888888888889, 0.0001984126984126984, 2.48015873015873e-05, 2.7557319223985893e-06,
        2.755731922398589e-07, 2.505210838544172e-08, 2.08767569878681e-09, 1.6059043836821613e-10,
        1.1470745597729725e-11, 7.647163731819816e-13, 4.779477332387385e-14,
        2.8114572543455206e-15, 1.5619206968586225e-16, 8.22063524662433e-18, 4.110317623312165e-19,
        1.9572941063391263e-20, 8.896791392450574e-22, 3.868170170630684e-23,
        1.6117375710961184e-24, 6.446950284384474e-26, 2.4795962632247976e-27,
        9.183689863795546e-29, 3.279889237069838e-30,
    )
)  # fmt: skip


@triton.jit
def plan_series(low, high, finite, slope_ptr, num_slopes):
    """(panels, giants, half) of a row: its interval in `panels` panels, each twice `half` wide,
    whose series have 7 `giants` + 1 terms; 0 panels where they do not reach.

    Of so many terms the error is 1e-11 at most; csrc/cuda/panel_series.cuh has the same bounds.
    """
    # phase: plan
    steepest = tl.zeros([SERIES_BLOCK], dtype=tl.float32)
    for first in range(0, num_slopes, SERIES_BLOCK):  # trips: ceil(N * H / 512)
        slope = first + tl.arange(0, SERIES_BLOCK)
        size = tl.abs(tl.load(slope_ptr + slope, mask=slope < num_slopes, other=0.0))
        steepest = tl.maximum(steepest, tl.where(size < float("inf"), size, 0.0))
    width = high.to(tl.float64) - low.to(tl.float64)
    beta = 0.5000005 * tl.max(steepest, 0).to(tl.float64) * width
    reaches = finite & (beta <= LARGEST_BETA * MAX_PANELS)
    panels = tl.where(reaches, tl.maximum(tl.ceil(beta / LARGEST_BETA), 1.0), 0.0).to(tl.int32)
    each = tl.where(reaches, beta / tl.maximum(panels, 1), 0.0)
    giants = 1 + (each > 0.0435795).to(tl.int32) + (each > 0.7586586).to(tl.int32)
    giants += (each > 2.0965113).to(tl.int32)
    return panels, giants, 0.5 * width / tl.maximum(panels, 1)


@triton.jit
def reciprocal_of(half):
    """1 / half, 0 where all values of a row are one."""
    return tl.where(half > 0.0, 1.0 / tl.where(half > 0.0, half, 1.0), 0.0)


@triton.jit
def fast_reciprocal(x):
    """1 / x in float64, to a rounding or two, for x in the range of float32."""
    y = (1.0 / x.to(tl.float32)).to(tl.float64)
    y = y + y * (1.0 - x * y)
    return y + y * (1.0 - x * y)


@triton.jit
def panel_of(x, low, half, panels):
    """The panel that a value lies in; rounding at the ends loses none."""
    place = (x - low) * (0.5 * reciprocal_of(half))
    return tl.minimum(tl.maximum(place, 0.0).to(tl.int32), panels - 1)


@triton.jit
def no_powers():
    """A sum of nothing for each power and lane."""
    sums = ()
    for _ in tl.static_range(TERMS):
        sums += (tl.zeros([LANES], dtype=tl.float64),)
    return sums


@triton.jit
def add_powers(sums, weight, t):
    """sums[j] + weight t^j, each [LANES]; t^(7 g + b) = t^(7 g) t^b."""
    t2 = t * t
    t3 = t2 * t
    t4 = t2 * t2
    babies = (t, t2, t3, t4, t2 * t3, t3 * t3, t3 * t4)
    added = (sums[0] + weight,)
    giant = weight
    for g in tl.static_range(GIANTS):
        for b in tl.static_range(BABIES):
            added += (sums[1 + BABIES * g + b] + giant * babies[b],)
        giant = giant * babies[6]
    return added


@triton.jit
def store_series(sums, series_ptr):
    """series[j] = sums[j] / j!, the sum over the lanes."""
    parts = ()
    for j in tl.static_range(ROOM):
        if j < TERMS:
            parts += (sums[j] * RECIPROCAL_FACTORIALS[j],)
        else:
            parts += (sums[0] * 0.0,)
    for level in tl.static_range(5):
        pairs = ()
        for j in tl.static_range(16 >> level):
            pairs += (tl.join(parts[j], parts[j + (16 >> level)]),)
        parts = pairs
    total = tl.sum(tl.reshape(parts[0], [LANES, ROOM]), 0)
    tl.store(series_ptr + tl.arange(0, ROOM), total)


@triton.jit
def write_power_sums(values_ptr, count, num_zeros, low, half, panels, series_ptr):
    """series[panel, j] = sum over the panel's values, zeros too, of t^j / j!, t = (x - middle) /
    half.
    """
    # phase: power sums
    scale = reciprocal_of(half)
    lane = tl.arange(0, LANES)
    for panel in range(panels):  # trips: 1
        middle = low + (2 * panel + 1) * half
        sums = no_powers()
        # the zeros come in as one value more
        for start in range(0, count + 1, LANES):  # trips: ceil((nonzeros + 1) / LANES)
            value = start + lane
            x = tl.load(values_ptr + value, mask=value < count, other=0.0).to(tl.float64)
            weight = tl.where(value < count, 1, tl.where(value == count, num_zeros, 0))
            if panels > 1:  # share: 0
                weight = tl.where(panel_of(x, low, half, panels) == panel, weight, 0)
            sums = add_powers(sums, weight.to(tl.float64), (x - middle) * scale)
        store_series(sums, series_ptr + panel * ROOM)


@triton.jit
def jets(series_ptr, giants, y):
    """A polynomial, its first derivative and half its second at y, by Horner's rule."""
    p = y * 0.0 + tl.load(series_ptr + BABIES * giants)
    first = y * 0.0
    second = y * 0.0
    for g in range(giants):  # trips: giants
        at = series_ptr + BABIES * (giants - 1 - g)
        for b in tl.static_range(BABIES):
            second = second * y + first
            first = first * y + p
            p = p * y + tl.load(at + BABIES - 1 - b)
    return p, first, second


@triton.jit
def polynomial(series_ptr, giants, y):
    """A polynomial at y, by Horner's rule."""
    p = y * 0.0 + tl.load(series_ptr + BABIES * giants)
    for g in range(giants):  # trips: giants // 4 | giants % 4 | giants
        at = series_ptr + BABIES * (giants - 1 - g)
        for b in tl.static_range(BABIES):
            p = p * y + tl.load(at + BABIES - 1 - b)
    return p


@triton.jit
def far_polynomial(series_ptr, giants, y):  # share: 0
    """As `polynomial`, of rows of several panels; the series may differ from y to y."""
    p = y * 0.0
    for i in range(TERMS):  # trips: 0
        term = BABIES * giants - i
        if term >= 0:
            p = p * y + tl.load(series_ptr + term)
    return p


@triton.jit
def far_jets(series_ptr, panels, giants, y):  # share: 0
    """M, M', M'' of the distances from the middle of the row, and 1 / M, of a row of several
    panels.
    """
    total = y * 0.0
    moment = y * 0.0
    square = y * 0.0
    for panel in range(panels):  # trips: 0
        p = y * 0.0
        first = y * 0.0
        second = y * 0.0
        for i in range(TERMS):  # trips: 0
            term = BABIES * giants - i
            if term >= 0:
                second = second * y + first
                first = first * y + p
                p = p * y + tl.load(series_ptr + panel * ROOM + term)
        distance = distance_of(panel, panels)
        scale = tl.exp(y * distance)
        total += scale * p
        moment += scale * (first + distance * p)
        square += scale * (2.0 * (second + distance * first) + distance * distance * p)
    return total, moment, square, 1.0 / total


@triton.jit
def far_share(series_ptr, panel, panels, giants, y):  # share: 0
    """e^{y d} / M with the distance d of a panel, of a row of several."""
    total = y * 0.0
    for other in range(panels):  # trips: 0
        scale = tl.exp(y * distance_of(other, panels))
        total += scale * far_polynomial(series_ptr + other * ROOM, giants, y)
    return tl.exp(y * distance_of(panel, panels)) / total


@triton.jit
def far_importance(x, shares_ptr, low, half, panels, giants):  # share: 0
    """As `importance_of`, of a row of several panels."""
    panel = panel_of(x, low, half, panels)
    t = (x - (low + (2 * panel + 1) * half)) * reciprocal_of(half)
    return far_polynomial(shares_ptr + panel * ROOM, giants, t)


@triton.jit
def distance_of(panel, panels):
    """From the middle of the row to that of the panel, in halves of a panel."""
    return 1.0 * (2 * panel + 1 - panels)


@triton.jit
def write_moments_by_series(
    series_ptr,
    low,
    half,
    panels,
    giants,
    slope_ptr,
    log_partition_ptr,
    mean_ptr,
    variance_ptr,
    num_slopes,
    LOG: tl.constexpr,
):
    """Mean, variance, and where LOG log M of every slope from the power sums."""
    # phase: moments of the slopes
    centre = low + panels * half
    for start in range(0, num_slopes, SERIES_BLOCK):  # trips: ceil(N * H / 512)
        slope = start + tl.arange(0, SERIES_BLOCK)
        alpha = tl.load(slope_ptr + slope, mask=slope < num_slopes, other=0.0).to(tl.float64)
        alpha += alpha * 0.0  # an infinite slope has no softmax
        y = alpha * half
        if panels == 1:
            total, moment, square = jets(series_ptr, giants, y)
            square = 2.0 * square
            inverse = fast_reciprocal(total)
        else:
            total, moment, square, inverse = far_jets(series_ptr, panels, giants, y)
        mean = moment * inverse
        variance = square * inverse - mean * mean
        variance = tl.where(variance < 0.0, 0.0, variance) * (half * half)
        live = slope < num_slopes
        if LOG:
            log_partition = (alpha * centre + tl.log(total)).to(tl.float32)
            tl.store(log_partition_ptr + slope, log_partition, mask=live)
        tl.store(mean_ptr + slope, (mean * half + centre).to(tl.float32), mask=live)
        tl.store(variance_ptr + slope, variance.to(tl.float32), mask=live)


@triton.jit
def write_importance_series(
    series_ptr,
    shares_ptr,
    half,
    panels,
    giants,
    slope_ptr,
    latents_ptr,
    num_chosen,
    num_heads,
):
    """shares[panel, j] such that a value of the panel has the importance sum_j shares[panel, j]
    t^j.
    """
    # phase: series of the importance
    lane = tl.arange(0, LANES)
    for panel in range(panels):  # trips: 1
        sums = no_powers()
        for start in range(0, num_chosen * num_heads, LANES):  # trips: ceil(chosen * H / LANES)
            index = start + lane
            live = index < num_chosen * num_heads
            latent = tl.load(latents_ptr + index // num_heads, mask=live, other=0)
            slope = slope_ptr + latent * num_heads + index % num_heads
            alpha = tl.load(slope, mask=live, other=0.0).to(tl.float64)
            alpha += alpha * 0.0
            y = alpha * half
            if panels == 1:
                share = fast_reciprocal(polynomial(series_ptr, giants, y))
            else:
                share = far_share(series_ptr, panel, panels, giants, y)
            sums = add_powers(sums, tl.where(live, share, 0.0), y)
        store_series(sums, shares_ptr + panel * ROOM)


@triton.jit
def importance_of(x, shares_ptr, low, half, panels, giants):
    """The importance of each value of the row's interval."""
    if panels == 1:
        t = (x - (low + half)) * reciprocal_of(half)
        importance = polynomial(shares_ptr, giants, t)
    else:
        importance = far_importance(x, shares_ptr, low, half, panels, giants)
    return importance.to(tl.float32)


@triton.jit
def importance_by_series(values_ptr, count, shares_ptr, low, half, panels, giants):
    """Replaces each listed value by its importance; returns that of a zero."""
    # phase: importance of the nonzeros
    of_zero = tl.zeros([SERIES_BLOCK], dtype=tl.float32)
    # the zeros come in as one value more
    for start in range(0, count + 1, SERIES_BLOCK):  # trips: ceil((nonzeros + 1) / 512)
        value = start + tl.arange(0, SERIES_BLOCK)
        x = tl.load(values_ptr + value, mask=value < count, other=0.0).to(tl.float64)
        importance = importance_of(x, shares_ptr, low, half, panels, giants)
        tl.store(values_ptr + value, importance, mask=value < count)
        of_zero = tl.where(value == count, importance, of_zero)
    return tl.sum(of_zero, 0)
