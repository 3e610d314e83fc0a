"""Attention over scalar values by Triton kernels: a program a row from values to importance, and
the draw of ``selection``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core import triton_launch as launch
from ..._core.call import Cells, Choice, Draw, Weighting
from ..selection.triton import select

BLOCK_S = 32  # slopes by BLOCK_X values: 8 exponentials a thread
BLOCK_X = 32

LARGEST_BETA = tl.constexpr(5.0)  # as in csrc/cpu/panels.cpp
TRUNCATION = tl.constexpr(1e-11)
MAX_ORDER = tl.constexpr(40)
MAX_PANELS = tl.constexpr(16)
LANES = tl.constexpr(64)  # MAX_ORDER rounded up to a power of 2
SERIES_SCRATCH = (
    2 * MAX_PANELS.value * MAX_ORDER.value
)  # float64 numbers a row: its power sums, and the series of its importance


@triton.jit
def compact_dense(
    values_ptr,
    values_stride,
    valid_ptr,
    valid_stride,
    compact_ptr,
    length,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes a dense row's nonzeros one after the other.

    Returns how many, how many zeros, the least and the greatest value, and whether all are finite.
    """
    count = 0
    bad = tl.zeros([BLOCK], dtype=tl.float32)
    valid_count = tl.zeros([BLOCK], dtype=tl.int32)
    low = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    high = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for start in range(0, length, BLOCK):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK)
        exists = position < length
        offset = position.to(tl.int64)
        if HAS_VALID:
            exists &= tl.load(valid_ptr + offset * valid_stride, mask=exists, other=0) != 0
        x = tl.load(values_ptr + offset * values_stride, mask=exists, other=0.0).to(tl.float32)
        nonzero = exists & (x != 0.0)
        place = count + tl.cumsum(nonzero.to(tl.int32), 0) - 1
        tl.store(compact_ptr + place, x, mask=nonzero)
        count += tl.sum(nonzero.to(tl.int32), 0)
        valid_count += exists.to(tl.int32)
        low = tl.minimum(low, tl.where(exists, x, float("inf")))
        high = tl.maximum(high, tl.where(exists, x, float("-inf")))
        bad += tl.where(exists, x - x, 0.0)  # NaN where x is NaN or infinite
    return (
        count,
        tl.sum(valid_count, 0) - count,
        tl.min(low, 0),
        tl.max(high, 0),
        tl.sum(bad, 0) == 0.0,
    )


@triton.jit
def stored_entries(
    values_ptr,
    col_ptr,
    valid_ptr,
    valid_stride,
    entry,
    last,
    length,
    HAS_VALID: tl.constexpr,
):
    """Value and column of a CSR row's entries, and which of them are valid, in range and not
    zero.
    """
    exists = entry < last
    column = tl.load(col_ptr + entry, mask=exists, other=0).to(tl.int64)
    exists &= (column >= 0) & (column < length)
    if HAS_VALID:
        exists &= tl.load(valid_ptr + column * valid_stride, mask=exists, other=0) != 0
    x = tl.load(values_ptr + entry, mask=exists, other=0.0).to(tl.float32)
    return x, column, exists & (x != 0.0)


@triton.jit
def compact_csr(
    values_ptr,
    col_ptr,
    first,
    last,
    valid_ptr,
    valid_stride,
    compact_ptr,
    length,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `compact_dense` for the stored entries first .. last - 1; every other valid position is a
    zero.
    """
    count = 0
    bad = tl.zeros([BLOCK], dtype=tl.float32)
    low = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    high = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for start in range(first, last, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        x, _, nonzero = stored_entries(
            values_ptr, col_ptr, valid_ptr, valid_stride, entry, last, length, HAS_VALID
        )
        place = count + tl.cumsum(nonzero.to(tl.int32), 0) - 1
        tl.store(compact_ptr + place, x, mask=nonzero)
        count += tl.sum(nonzero.to(tl.int32), 0)
        low = tl.minimum(low, tl.where(nonzero, x, float("inf")))
        high = tl.maximum(high, tl.where(nonzero, x, float("-inf")))
        bad += tl.where(nonzero, x - x, 0.0)
    num_valid = length
    if HAS_VALID:
        valid_count = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, length, BLOCK):
            position = start + tl.arange(0, BLOCK)
            flag = tl.load(
                valid_ptr + position.to(tl.int64) * valid_stride, mask=position < length, other=0
            )
            valid_count += (flag != 0).to(tl.int32)
        num_valid = tl.sum(valid_count, 0)
    num_zeros = tl.maximum(num_valid - count, 0)  # a column may stand twice in a row
    zero_low = tl.where(num_zeros > 0, 0.0, float("inf"))
    low = tl.minimum(tl.min(low, 0), zero_low)
    return count, num_zeros, low, tl.maximum(tl.max(high, 0), -zero_low), tl.sum(bad, 0) == 0.0


@triton.jit
def plan_series(low, high, finite, slope_ptr, num_slopes, BLOCK: tl.constexpr):
    """Panels and terms of a row's power series, and half the width of a panel; 0 panels where they
    do not reach.

    The counterpart of csrc/cpu/panels.cpp: terms until exp(beta) beta^n / n! / (1 - beta / (n + 1))
    is below the truncation.
    """
    steepest = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, num_slopes, BLOCK):  # trips: N * H / SERIES_BLOCK
        slope = first + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(slope_ptr + slope, mask=slope < num_slopes, other=0.0))
        steepest = tl.maximum(steepest, tl.where(size < float("inf"), size, 0.0))
    width = high.to(tl.float64) - low.to(tl.float64)
    beta = 0.5 * tl.max(steepest, 0).to(tl.float64) * width
    reaches = finite & (beta <= LARGEST_BETA * MAX_PANELS)
    panels = tl.where(reaches, tl.maximum(tl.ceil(beta / LARGEST_BETA), 1.0), 0.0).to(tl.int32)
    beta = tl.where(reaches, beta / tl.maximum(panels, 1), 0.0)
    term = tl.exp(beta)
    terms = panels * 0
    cut_off = term
    while (terms + 2 < MAX_ORDER) & (cut_off > TRUNCATION):  # trips: order
        terms += 1
        term *= beta / terms
        cut_off = tl.where(beta < terms + 1, term / (1.0 - beta / (terms + 1)), 1.0)
    return panels, terms + 2, 0.5 * width / tl.maximum(panels, 1)


@triton.jit
def reciprocal_of(half):
    """1 / half, 0 where all values of a row are one."""
    return tl.where(half > 0.0, 1.0 / tl.where(half > 0.0, half, 1.0), 0.0)


@triton.jit
def panel_of(x, low, half, panels):
    """The panel that a value lies in; rounding at the ends loses none."""
    place = (x - low) * (0.5 * reciprocal_of(half))
    return tl.minimum(tl.maximum(place, 0.0).to(tl.int32), panels - 1)


@triton.jit
def write_power_sums(
    compact_ptr, count, num_zeros, low, half, panels, order, series_ptr, BLOCK: tl.constexpr
):
    """series[panel, j] = sum over the panel's values, zeros too, of t^j / j!, t = (x - middle) /
    half.
    """
    scale = reciprocal_of(half)
    lane = tl.arange(0, LANES)
    zero_panel = panel_of(low * 0.0, low, half, panels)
    for panel in range(panels):  # trips: 1
        middle = low + (2 * panel + 1) * half
        sums = tl.zeros([LANES], dtype=tl.float64)
        # the zeros come in with the first values
        zero_power = tl.where(panel == zero_panel, num_zeros, 0).to(tl.float64)
        for start in range(0, tl.maximum(count, 1), BLOCK):  # trips: ceil(nonzeros / SERIES_BLOCK)
            value = start + tl.arange(0, BLOCK)
            x = tl.load(compact_ptr + value, mask=value < count, other=0.0).to(tl.float64)
            t = (x - middle) * scale
            power = ((value < count) & (panel_of(x, low, half, panels) == panel)).to(tl.float64)
            weight = zero_power * 0.0 + 1.0  # 1 / j!
            for j in range(order):  # trips: order
                sums += tl.where(lane == j, (tl.sum(power, 0) + zero_power) * weight, 0.0)
                power *= t
                zero_power *= -middle * scale
                weight /= j + 1
            zero_power *= 0.0
        tl.store(series_ptr + panel * MAX_ORDER + lane, sums, mask=lane < order)


@triton.jit
def series_of_panel(series_ptr, order, y):
    """A polynomial, its first derivative and half its second at y [BLOCK], by Horner's rule."""
    p = y * 0.0 + tl.load(series_ptr + order - 1)
    first = y * 0.0
    second = y * 0.0
    for i in range(1, order):  # trips: order / 4 | order % 4
        second = second * y + first
        first = first * y + p
        p = p * y + tl.load(series_ptr + order - 1 - i)
    return p, first, second


@triton.jit
def write_moments_by_series(
    series_ptr,
    low,
    half,
    panels,
    order,
    slope_ptr,
    log_partition_ptr,
    mean_ptr,
    variance_ptr,
    num_slopes,
    BLOCK: tl.constexpr,
):
    """log M, mean and variance of every slope from the power sums; distances are from the middle of
    the row, in halves of a panel.
    """
    centre = low + panels * half
    for start in range(0, num_slopes, BLOCK):  # trips: N * H / SERIES_BLOCK
        slope = start + tl.arange(0, BLOCK)
        alpha = tl.load(slope_ptr + slope, mask=slope < num_slopes, other=0.0).to(tl.float64)
        alpha += alpha * 0.0  # an infinite slope has no softmax
        y = alpha * half
        total = y * 0.0
        moment = y * 0.0
        square = y * 0.0
        for panel in range(panels):  # trips: 1
            p, first, second = series_of_panel(series_ptr + panel * MAX_ORDER, order, y)
            distance = 1.0 * (2 * panel + 1 - panels)
            scale = tl.exp(y * distance)
            total += scale * p
            moment += scale * (first + distance * p)
            square += scale * (2.0 * (second + distance * first) + distance * distance * p)
        mean = moment / total
        variance = square / total - mean * mean
        variance = tl.where(variance < 0.0, 0.0, variance) * half * half
        live = slope < num_slopes
        tl.store(
            log_partition_ptr + slope, (alpha * centre + tl.log(total)).to(tl.float32), mask=live
        )
        tl.store(mean_ptr + slope, (mean * half + centre).to(tl.float32), mask=live)
        tl.store(variance_ptr + slope, variance.to(tl.float32), mask=live)


@triton.jit
def write_importance_series(
    series_ptr,
    shares_ptr,
    half,
    panels,
    order,
    slope_ptr,
    latents_ptr,
    num_chosen,
    num_heads,
    BLOCK: tl.constexpr,
):
    """shares[panel, j] such that a value of the panel has the importance sum_j shares[panel, j]
    t^j.
    """
    lane = tl.arange(0, LANES)
    for start in range(0, num_chosen * num_heads, BLOCK):  # trips: ceil(chosen * H / SERIES_BLOCK)
        index = start + tl.arange(0, BLOCK)
        live = index < num_chosen * num_heads
        latent = tl.load(latents_ptr + index // num_heads, mask=live, other=0)
        alpha = tl.load(
            slope_ptr + latent * num_heads + index % num_heads, mask=live, other=0.0
        ).to(tl.float64)
        alpha += alpha * 0.0
        y = alpha * half
        total = y * 0.0
        for panel in range(panels):  # trips: 1
            p = y * 0.0
            for i in range(order):  # trips: order / 4 | order % 4
                p = p * y + tl.load(series_ptr + panel * MAX_ORDER + order - 1 - i)
            total += tl.exp(y * (1.0 * (2 * panel + 1 - panels))) * p
        for panel in range(panels):  # trips: 1
            share = tl.where(live, tl.exp(y * (1.0 * (2 * panel + 1 - panels))) / total, 0.0)
            # of the slopes before; a number is held by several threads, and none may still have to
            # read it when it is overwritten
            sums = tl.load(
                shares_ptr + panel * MAX_ORDER + lane, mask=(lane < order) & (start > 0), other=0.0
            )
            tl.debug_barrier()
            weight = half * 0.0 + 1.0  # 1 / j!
            for j in range(order):  # trips: order
                sums += tl.where(lane == j, tl.sum(share, 0) * weight, 0.0)
                share *= y
                weight /= j + 1
            tl.store(shares_ptr + panel * MAX_ORDER + lane, sums, mask=lane < order)
        tl.debug_barrier()


@triton.jit
def importance_of_zero_by_series(shares_ptr, low, half, panels, order):
    """The importance that all zeros of the row share; 0 lies in the row's interval."""
    panel = panel_of(low * 0.0, low, half, panels)
    t = -(low + (2 * panel + 1) * half) * reciprocal_of(half)
    importance = t * 0.0
    for i in range(order):  # trips: order / 4 | order % 4
        importance = importance * t + tl.load(shares_ptr + panel * MAX_ORDER + order - 1 - i)
    return importance.to(tl.float32)


@triton.jit
def importance_by_series(
    shares_ptr, compact_ptr, count, low, half, panels, order, BLOCK: tl.constexpr
):
    """Replaces each compacted value by its importance."""
    scale = reciprocal_of(half)
    for start in range(0, count, BLOCK):  # trips: ceil(nonzeros / SERIES_BLOCK)
        value = start + tl.arange(0, BLOCK)
        x = tl.load(compact_ptr + value, mask=value < count, other=0.0).to(tl.float64)
        panel = panel_of(x, low, half, panels)
        t = (x - (low + (2 * panel + 1) * half)) * scale
        importance = t * 0.0
        for i in range(order):  # trips: order / 4 | order % 4
            importance = importance * t + tl.load(shares_ptr + panel * MAX_ORDER + order - 1 - i)
        tl.debug_barrier()
        tl.store(compact_ptr + value, importance.to(tl.float32), mask=value < count)


@triton.jit
def tile_weights(compact_ptr, start, count, alpha, shift, BLOCK_X: tl.constexpr):
    """Compacted values [BLOCK_X, 1] and e^{a x - shift}, 0 past the last of them [BLOCK_X,
    BLOCK_S].
    """
    value = start + tl.arange(0, BLOCK_X)
    x = tl.load(compact_ptr + value, mask=value < count, other=0.0)[:, None]
    weight = tl.exp(alpha[None, :] * x - shift[None, :])
    return x, tl.where((value < count)[:, None], weight, 0.0)


@triton.jit
def write_moments(  # share: 0
    compact_ptr,
    count,
    num_zeros,
    low,
    high,
    slope_ptr,
    log_partition_ptr,
    mean_ptr,
    variance_ptr,
    num_slopes,
    BLOCK_S: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """log M(a), m = M'/M and the mean of (x - m)^2 of one row, for M(a) = n0 + sum over nonzeros of
    e^{a x}.

    Two passes over the values: M''/M - m^2 in one would lose the digits by which the mean exceeds
    the deviation. The second also says how far the first one's mean is off by rounding.
    """
    empty = count + num_zeros == 0
    low = tl.where(empty, 0.0, low)
    high = tl.where(empty, 0.0, high)
    for first in range(0, num_slopes, BLOCK_S):  # trips: 0
        slope = first + tl.arange(0, BLOCK_S)
        live = slope < num_slopes
        alpha = tl.load(slope_ptr + slope, mask=live, other=0.0)  # [BLOCK_S]
        alpha = tl.where(empty, 0.0, alpha)  # an infinite slope would be NaN
        shift = tl.maximum(alpha * low, alpha * high)
        # Where there are zeros the shift is not negative; where there are none, e^{-shift} could
        # overflow.
        zero_total = num_zeros * tl.exp(-tl.maximum(shift, 0.0))

        partition = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        moment = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        for start in range(0, count, BLOCK_X):  # trips: 0
            x, weight = tile_weights(compact_ptr, start, count, alpha, shift, BLOCK_X)
            partition += weight
            moment += weight * x
        total = zero_total + tl.sum(partition, 0)  # M e^{-shift}, at least 1 but for rounding
        total = tl.where(empty, 1.0, total)
        mean = tl.sum(moment, 0) / total

        drift = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        spread = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        for start in range(0, count, BLOCK_X):  # trips: 0
            x, weight = tile_weights(compact_ptr, start, count, alpha, shift, BLOCK_X)
            deviation = x - mean[None, :]
            weighted = weight * deviation
            drift += weighted
            spread += weighted * deviation
        variance = (zero_total * mean * mean + tl.sum(spread, 0)) / total
        mean += (tl.sum(drift, 0) - zero_total * mean) / total

        tl.store(
            log_partition_ptr + slope,
            tl.where(empty, float("-inf"), shift + tl.log(total)),
            mask=live,
        )
        tl.store(mean_ptr + slope, mean, mask=live)
        tl.store(variance_ptr + slope, variance, mask=live)


@triton.jit
def chosen_slopes(  # share: 0
    slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads, BLOCK_S: tl.constexpr
):
    """Slope and log-partition of the chosen latents' heads; past the last, a log-partition of inf,
    whose share is 0.
    """
    index = first + tl.arange(0, BLOCK_S)
    live = index < num_chosen * num_heads
    latent = tl.load(latents_ptr + index // num_heads, mask=live, other=0)
    slope = latent * num_heads + index % num_heads
    alpha = tl.load(slope_ptr + slope, mask=live, other=0.0)
    return alpha, tl.load(log_partition_ptr + slope, mask=live, other=float("inf"))


@triton.jit
def importance_of_nonzeros(  # share: 0
    compact_ptr,
    count,
    slope_ptr,
    log_partition_ptr,
    latents_ptr,
    num_chosen,
    num_heads,
    BLOCK_S: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Replaces each compacted value by its importance, the sum over the chosen slopes of e^{a x} /
    M(a).
    """
    for start in range(0, count, BLOCK_X):  # trips: 0
        value = start + tl.arange(0, BLOCK_X)
        x = tl.load(compact_ptr + value, mask=value < count, other=0.0)
        share = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        for first in range(0, num_chosen * num_heads, BLOCK_S):  # trips: 0
            alpha, log_partition = chosen_slopes(
                slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads, BLOCK_S
            )
            share += tl.exp(
                alpha[None, :] * x[:, None] - log_partition[None, :]
            )  # [BLOCK_X, BLOCK_S]
        importance = tl.sum(share, 1)
        # Several warps hold the same value: none may still have to read it when it is overwritten.
        tl.debug_barrier()
        tl.store(compact_ptr + value, importance, mask=value < count)


@triton.jit
def importance_of_zeros(  # share: 0
    slope_ptr, log_partition_ptr, latents_ptr, num_chosen, num_heads, BLOCK_S: tl.constexpr
):
    """The importance that all zeros of the row share: the sum over the chosen slopes of 1 / M."""
    share = tl.zeros([BLOCK_S], dtype=tl.float32)
    for first in range(0, num_chosen * num_heads, BLOCK_S):  # trips: 0
        _, log_partition = chosen_slopes(
            slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads, BLOCK_S
        )
        share += tl.exp(-log_partition)
    return tl.sum(share, 0)


@triton.jit
def expand_dense(
    values_ptr,
    values_stride,
    valid_ptr,
    valid_stride,
    compact_ptr,
    zero_importance,
    importance_ptr,
    length,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Importance at every position of a dense row: counting the nonzeros again says where each
    one's was compacted to.
    """
    count = 0
    for start in range(0, length, BLOCK):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK)
        in_row = position < length
        exists = in_row
        offset = position.to(tl.int64)
        if HAS_VALID:
            exists &= tl.load(valid_ptr + offset * valid_stride, mask=in_row, other=0) != 0
        x = tl.load(values_ptr + offset * values_stride, mask=exists, other=0.0).to(tl.float32)
        nonzero = exists & (x != 0.0)
        place = count + tl.cumsum(nonzero.to(tl.int32), 0) - 1
        importance = tl.load(compact_ptr + place, mask=nonzero, other=0.0)
        importance = tl.where(exists & (x == 0.0), zero_importance, importance)
        tl.store(importance_ptr + position, importance, mask=in_row)
        count += tl.sum(nonzero.to(tl.int32), 0)


@triton.jit
def expand_csr(
    values_ptr,
    col_ptr,
    first,
    last,
    valid_ptr,
    valid_stride,
    compact_ptr,
    zero_importance,
    importance_ptr,
    length,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Importance at every position of a CSR row: that of the zeros at every valid one, then the
    nonzeros' at their columns.
    """
    for start in range(0, length, BLOCK):
        position = start + tl.arange(0, BLOCK)
        in_row = position < length
        exists = in_row
        if HAS_VALID:
            exists &= (
                tl.load(valid_ptr + position.to(tl.int64) * valid_stride, mask=in_row, other=0) != 0
            )
        tl.store(importance_ptr + position, tl.where(exists, zero_importance, 0.0), mask=in_row)
    tl.debug_barrier()
    count = 0
    for start in range(first, last, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        _, column, nonzero = stored_entries(
            values_ptr, col_ptr, valid_ptr, valid_stride, entry, last, length, HAS_VALID
        )
        place = count + tl.cumsum(nonzero.to(tl.int32), 0) - 1
        importance = tl.load(compact_ptr + place, mask=nonzero, other=0.0)
        tl.store(importance_ptr + column, importance, mask=nonzero)
        count += tl.sum(nonzero.to(tl.int32), 0)


@triton.jit(
    do_not_specialize=["num_positions", "num_stored", "num_slopes", "num_chosen", "num_heads"]
)
def value_kernel(
    values_ptr,
    crow_ptr,
    col_ptr,
    valid_ptr,
    slope_ptr,
    latents_ptr,
    compact_ptr,
    series_ptr,
    importance_ptr,
    log_partition_ptr,
    mean_ptr,
    variance_ptr,
    num_positions,
    num_stored,
    num_slopes,
    num_chosen,
    num_heads,
    values_stride_row,
    values_stride_position,
    valid_stride_row,
    valid_stride_position,
    IS_CSR: tl.constexpr,
    MASKING: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_X: tl.constexpr,
    SERIES_BLOCK: tl.constexpr,
):
    """One row: log M(a), M'/M and M''/M - (M'/M)^2 with M(a) = sum_l e^{a x_l} for every slope a.

    MASKING: then s_l = sum over the chosen slopes of e^{a x_l} / M(a). Scratch: the nonzeros in a
    row's span of `compact_ptr`, as long as the row's data.
    """
    row = tl.program_id(0).to(tl.int64)
    if HAS_VALID:
        valid_ptr += row * valid_stride_row
    if IS_CSR:
        # a matrix whose offsets are wrong is not read beyond what it stores
        first = tl.load(crow_ptr + row).to(tl.int64)
        last = tl.load(crow_ptr + row + 1).to(tl.int64)
        first = tl.minimum(tl.maximum(first, 0), num_stored)
        last = tl.minimum(tl.minimum(tl.maximum(last, first), num_stored), first + num_positions)
        compact_ptr += first
        count, num_zeros, low, high, finite = compact_csr(
            values_ptr,
            col_ptr,
            first,
            last,
            valid_ptr,
            valid_stride_position,
            compact_ptr,
            num_positions,
            HAS_VALID,
            BLOCK_L,
        )
    else:
        values_ptr += row * values_stride_row
        compact_ptr += row * num_positions
        count, num_zeros, low, high, finite = compact_dense(
            values_ptr,
            values_stride_position,
            valid_ptr,
            valid_stride_position,
            compact_ptr,
            num_positions,
            HAS_VALID,
            BLOCK_L,
        )
    tl.debug_barrier()

    log_partition_ptr += row * num_slopes
    mean_ptr += row * num_slopes
    variance_ptr += row * num_slopes
    series_ptr += row * (2 * MAX_PANELS * MAX_ORDER)
    shares_ptr = series_ptr + MAX_PANELS * MAX_ORDER
    panels, order, half = plan_series(
        low, high, finite & (count + num_zeros > 0), slope_ptr, num_slopes, SERIES_BLOCK
    )
    origin = low.to(tl.float64)
    if panels > 0:
        write_power_sums(
            compact_ptr, count, num_zeros, origin, half, panels, order, series_ptr, SERIES_BLOCK
        )
        tl.debug_barrier()
        write_moments_by_series(
            series_ptr,
            origin,
            half,
            panels,
            order,
            slope_ptr,
            log_partition_ptr,
            mean_ptr,
            variance_ptr,
            num_slopes,
            SERIES_BLOCK,
        )
    else:
        write_moments(
            compact_ptr,
            count,
            num_zeros,
            low,
            high,
            slope_ptr,
            log_partition_ptr,
            mean_ptr,
            variance_ptr,
            num_slopes,
            BLOCK_S,
            BLOCK_X,
        )

    if MASKING:
        tl.debug_barrier()
        if panels > 0:
            write_importance_series(
                series_ptr,
                shares_ptr,
                half,
                panels,
                order,
                slope_ptr,
                latents_ptr,
                num_chosen,
                num_heads,
                SERIES_BLOCK,
            )
            tl.debug_barrier()
            zero_importance = importance_of_zero_by_series(shares_ptr, origin, half, panels, order)
            importance_by_series(
                shares_ptr, compact_ptr, count, origin, half, panels, order, SERIES_BLOCK
            )
        else:
            zero_importance = importance_of_zeros(
                slope_ptr, log_partition_ptr, latents_ptr, num_chosen, num_heads, BLOCK_S
            )
            importance_of_nonzeros(
                compact_ptr,
                count,
                slope_ptr,
                log_partition_ptr,
                latents_ptr,
                num_chosen,
                num_heads,
                BLOCK_S,
                BLOCK_X,
            )
        tl.debug_barrier()
        importance_ptr += row * num_positions
        if IS_CSR:
            expand_csr(
                values_ptr, col_ptr, first, last, valid_ptr, valid_stride_position, compact_ptr,
                zero_importance, importance_ptr, num_positions, HAS_VALID, BLOCK_L,
            )  # fmt: skip
        else:
            expand_dense(
                values_ptr, values_stride_position, valid_ptr, valid_stride_position, compact_ptr,
                zero_importance, importance_ptr, num_positions, HAS_VALID, BLOCK_L,
            )  # fmt: skip


class _Rows:
    """What both launches of the value kernel share: sizes, scratch, the moments to fill, and the
    arguments that describe the values.
    """

    def __init__(
        self,
        values: Tensor,
        crow: Tensor | None,
        slope: Tensor,
        valid: Tensor | None,
        num_positions: int,
    ):
        self.is_csr = crow is not None
        self.number = crow.shape[0] - 1 if self.is_csr else values.shape[0]
        self.shape = (self.number, num_positions)
        self.new = {"dtype": torch.float32, "device": values.device}
        self.compact = torch.empty(values.shape, **self.new)
        self.series = torch.empty(
            (self.number, SERIES_SCRATCH), dtype=torch.float64, device=values.device
        )
        self.moments = tuple(torch.empty((self.number, *slope.shape), **self.new) for _ in range(3))
        self.strides = (*((0, 0) if self.is_csr else values.stride()), *launch.strides(valid, 2))

    def launch(
        self, cells: Cells, slope: Tensor, latents: Tensor | None, importance: Tensor | None
    ) -> None:
        """Fill the moments, and the importance where it is given."""
        values, crow, col, valid, num_positions = cells
        blocks, options = launch.row_options(num_positions)
        num_chosen, heads = (0, 1) if latents is None else (latents.numel(), slope.shape[1])
        with launch.on(values.device):
            value_kernel[(self.number,)](
                values, crow, col, valid, slope, latents, self.compact, self.series, importance,
                *self.moments,
                num_positions, values.shape[0], slope.numel(), num_chosen, heads, *self.strides,
                IS_CSR=self.is_csr, MASKING=importance is not None, HAS_VALID=valid is not None,
                BLOCK_L=blocks.block, BLOCK_S=BLOCK_S, BLOCK_X=BLOCK_X,
                SERIES_BLOCK=blocks.series_block, **options,
            )  # fmt: skip


def moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell; each (B, N, H)."""
    rows = _Rows(cells.values, cells.crow, slope, cells.valid, cells.num_positions)
    rows.launch(cells, slope, None, None)
    return rows.moments


def mask(
    cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The masking step in two launches: (mask, importance), each (B, L), then the moments, each
    (B, N, H).
    """
    rows = _Rows(cells.values, cells.crow, slope, cells.valid, cells.num_positions)
    importance = torch.empty(rows.shape, **rows.new)
    rows.launch(cells, slope, choice.latents, importance)
    maskable = cells.valid if choice.maskable is None else choice.maskable
    hidden = select(importance, choice.num_masked, maskable, draw, weighting)
    return hidden, importance, *rows.moments
