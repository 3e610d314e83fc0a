"""Inclusion probabilities by Triton kernels, one program a row. See README.md beside this file."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core import triton_launch as launch
from ..._core.triton_language import SMALLEST_RELATIVE_WEIGHT, load_weights
from ..selection.triton.interval import SAMPLE, likely_interval
from ..selection.triton.one_pass import sample_of_row

BLOCK = 512
WARPS = 4
REGISTERS = 128
"""A thread of the probabilities may have so many, for four programs a multiprocessor; left alone
the assembler spills two for a fifth.
"""

MOST_PASSES = tl.constexpr(100)
EARLY = tl.constexpr(1e-6)
"""Of the heaviest: so early that a step leads to where weights alike would be."""

FURTHEST = tl.constexpr(87.0)
"""Beyond it exp(-u) counts as 0."""


@triton.jit
def decay(u):
    """(power, less_one) with exp(-u) = power + power less_one to 2e-7, for u >= 0; where u is below
    log(2) / 2, power is 1 and exp(-u) - 1 = less_one to 2e-7.
    """
    u = tl.minimum(u, FURTHEST)
    # exp(-u) = 2^n e^r; the last bits of the sum are the integer n
    shifted = u * -1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = (-u - n * 0.693145752) - n * 1.42860677e-6
    # (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, error 1.4e-9
    tail = 0.00139336669 + 0.000198910096 * r
    tail = 0.5000000013 + r * (0.1666666668 + r * (0.04166646477 + r * (0.008333310909 + r * tail)))
    bits = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return bits.to(tl.float32, bitcast=True), r + r * r * tail


@triton.jit
def series_step(missing, s1, s2, s3, s4, s5):
    """The relative change of the time with which the series of what arrives adds `missing`, and
    whether it is exact enough.
    """
    x = missing / s1
    near = (x > -0.25) & (x < 0.25)
    # added = x (a - x (b - x (c - x (d - x e))))
    b = s2 * (1 / 2)
    c = s3 * (1 / 6)
    d = s4 * (1 / 24)
    e = s5 * (1 / 120)
    for _ in tl.static_range(4):
        added = x * (s1 - x * (b - x * (c - x * (d - x * e))))
        x += (missing - added) / (s1 - x * (2 * b - x * (3 * c - x * (4 * d - x * (5 * e)))))
    near &= (x > -0.25) & (x < 0.25)
    square = x * x
    left_out = square * square * square * (1 / 720) * s5 * (s5 / tl.maximum(s4, 1e-300))
    return x, near & (left_out < 1e-8 * s1)


@triton.jit
def far_step(time, count, arrived, missing, drawable, rate, low, high):
    """Another time, inside of (low, high): by Newton's method on log(arrived) by log(time), or on
    log(left) by the time, whichever is later.
    """
    power = tl.log(count / arrived) * arrived / rate
    further = time * tl.exp(tl.minimum(power, 60.0))
    left = (drawable - count) + missing
    alike = time * (1.0 + tl.log(left / (drawable - count)) * left / rate)
    further = tl.where((missing > 0.0) & (alike > further), alike, further)
    bounded = tl.where(low > 0.0, tl.sqrt(low) * tl.sqrt(high), high / 16.0)
    bounded = tl.where(high == float("inf"), 16.0 * time, bounded)
    return tl.where((further > low) & (further < high), further, bounded)


@triton.jit
def time_factors(time):
    """Two float32 factors of a time that may be beyond float32; the first is 0 of one that is 0 or
    infinite, whose row has no gradient.
    """
    some = (time > 0.0) & (time < float("inf"))
    time = tl.where(some, time, 1.0)
    first = tl.sqrt(time).to(tl.float32)
    second = (time / first.to(tl.float64)).to(tl.float32)
    return tl.where(some, first, 0.0), second


@triton.jit
def probabilities_kernel(
    weights_ptr,
    valid_ptr,
    num_samples_ptr,
    probability_ptr,
    time_ptr,
    num_positions,
    weights_stride_row,
    weights_stride_position,
    valid_stride_row,
    valid_stride_position,
    HAS_VALID: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """probability[b, l] = 1 - exp(-w[b, l] t[b]), whose sum over l is num_samples[b]."""
    row = tl.program_id(0).to(tl.int64)
    weights_ptr += row * weights_stride_row
    if HAS_VALID:
        valid_ptr += row * valid_stride_row
    probability_ptr += row * num_positions
    count = tl.maximum(tl.load(num_samples_ptr + row), 0)
    k = count.to(tl.float64)

    # About the time that is looked for, as the draw's sample tells it; 0 where it does not.
    none = (count * 0).to(tl.float32)
    sample = sample_of_row(
        weights_ptr, weights_stride_position, valid_ptr, valid_stride_position, num_positions, none,
        none, none, SAMPLE, HAS_VALID, False,
    )  # fmt: skip
    _, _, _, scale, _, _, _, time, _ = likely_interval(
        sample, none, none, none + num_positions, none, count
    )
    time = time.to(tl.float64) * scale.to(tl.float64)

    # phase: pass
    n = k * 0.0
    low = k * 0.0
    high = low + float("inf")
    smallest = k * 0.0  # that a weight counts as
    going = (count >= 0).to(tl.int32)
    passes = 0
    while (going > 0) & (passes < MOST_PASSES):  # trips: passes
        first, second = time_factors(time)
        least = (smallest * time).to(tl.float32)
        largest = tl.zeros([BLOCK_L], dtype=tl.float32)
        drawable = tl.zeros([BLOCK_L], dtype=tl.int32)
        late = tl.zeros([BLOCK_L], dtype=tl.int32)
        sum0 = tl.zeros([BLOCK_L], dtype=tl.float32)
        sum1 = tl.zeros([BLOCK_L], dtype=tl.float32)
        sum2 = tl.zeros([BLOCK_L], dtype=tl.float32)
        sum3 = tl.zeros([BLOCK_L], dtype=tl.float32)
        sum4 = tl.zeros([BLOCK_L], dtype=tl.float32)
        sum5 = tl.zeros([BLOCK_L], dtype=tl.float32)
        for start in range(0, num_positions, BLOCK_L):  # trips: L / BLOCK_L
            position = start + tl.arange(0, BLOCK_L)
            weight = load_weights(
                weights_ptr, weights_stride_position, valid_ptr, valid_stride_position,
                position, num_positions, 0.0, HAS_VALID,
            )  # fmt: skip
            largest = tl.maximum(largest, weight)
            drawable += (weight >= 0.0).to(tl.int32)
            u = tl.where(weight >= 0.0, tl.maximum(weight * first * second, least), 0.0)
            u = tl.minimum(u, FURTHEST)
            power, less_one = decay(u)
            left = power + power * less_one
            # What has arrived: ones, less exp(-u), where u is large; else 1 - exp(-u). So sums in
            # float32 are exact to the rounding of sum u exp(-u), however many have arrived.
            is_late = power < 1.0
            late += is_late.to(tl.int32)
            sum0 += tl.where(is_late, left, less_one)
            term = u * left
            sum1 += term
            term *= u
            sum2 += term
            term *= u
            sum3 += term
            term *= u
            sum4 += term
            term *= u
            sum5 += term
        # phase: sums of the pass
        ones = tl.sum(late, 0).to(tl.float64)
        rest = tl.sum(sum0.to(tl.float64), 0)
        # What is small is added to what is small, where nearly as many have arrived.
        missing = (k - ones) + rest
        rate = tl.sum(sum1.to(tl.float64), 0)
        change, exact = series_step(
            missing,
            rate,
            tl.sum(sum2.to(tl.float64), 0),
            tl.sum(sum3.to(tl.float64), 0),
            tl.sum(sum4.to(tl.float64), 0),
            tl.sum(sum5.to(tl.float64), 0),
        )
        n = tl.sum(drawable, 0).to(tl.float64)
        top = tl.maximum(tl.max(largest, 0).to(tl.float64), 1e-300)
        known = time > 0.0
        time = tl.where(known, time, EARLY / top)
        # The first pass did not know the smallest.
        known &= (smallest > 0.0) | (SMALLEST_RELATIVE_WEIGHT * top * time * n <= 1e-9 * rate)
        smallest = SMALLEST_RELATIVE_WEIGHT * top
        if known:
            low = tl.where(missing > 0.0, time, low)
            high = tl.where(missing > 0.0, high, time)
            further = far_step(time, k, ones - rest, missing, n, rate, low, high)
            going = tl.where(exact | (further == time), 0, 1)
            time = tl.where(exact, time * (1.0 + change), further)
        time = tl.where(k >= n, float("inf"), tl.where(count > 0, time, 0.0))
        going = tl.where((k >= n) | (count == 0), 0, going)

    # phase: probabilities
    tl.store(time_ptr + row, time)
    whole = time == float("inf")
    first, second = time_factors(time)
    least = tl.where(whole, 2.0 * FURTHEST, (smallest * tl.where(whole, 0.0, time))).to(tl.float32)
    for start in range(0, num_positions, BLOCK_L):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK_L)
        weight = load_weights(
            weights_ptr, weights_stride_position, valid_ptr, valid_stride_position,
            position, num_positions, 0.0, HAS_VALID,
        )  # fmt: skip
        u = tl.where(weight >= 0.0, tl.maximum(weight * first * second, least), 0.0)
        power, less_one = decay(u)
        arrived = (1.0 - power) - power * less_one
        tl.store(probability_ptr + position, arrived, mask=position < num_positions)


@triton.jit
def inclusion_gradient_kernel(
    grad_ptr,
    weights_ptr,
    probability_ptr,
    time_ptr,
    grad_weights_ptr,
    num_positions,
    weights_stride_row,
    weights_stride_position,
    BLOCK_L: tl.constexpr,
):
    """grad_weights = t exp(-u) (G - sum G g / sum g), u = w t, g = u exp(-u), where p > 0."""
    row = tl.program_id(0).to(tl.int64)
    weights_ptr += row * weights_stride_row
    grad_ptr += row * num_positions
    probability_ptr += row * num_positions
    grad_weights_ptr += row * num_positions
    first, second = time_factors(tl.load(time_ptr + row))
    products = tl.zeros([BLOCK_L], dtype=tl.float32)
    totals = tl.zeros([BLOCK_L], dtype=tl.float32)
    for start in range(0, num_positions, BLOCK_L):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK_L)
        in_row = position < num_positions
        offset = position.to(tl.int64) * weights_stride_position
        weight = tl.load(weights_ptr + offset, mask=in_row, other=0.0).to(tl.float32)
        probability = tl.load(probability_ptr + position, mask=in_row, other=0.0)
        drawn = (probability > 0.0) & (weight > 0.0)
        grad = tl.load(grad_ptr + position, mask=in_row, other=0.0)
        u = tl.where(drawn, weight * first * second, 0.0)
        power, less_one = decay(u)
        g = tl.where(u < FURTHEST, u * (power + power * less_one), 0.0)
        products += tl.where(g > 0.0, g * grad, 0.0)
        totals += g
    total = tl.sum(totals.to(tl.float64), 0)
    average = tl.where(
        total > 0.0, tl.sum(products.to(tl.float64), 0) / tl.maximum(total, 1e-300), 0.0
    ).to(tl.float32)
    for start in range(0, num_positions, BLOCK_L):  # trips: L / BLOCK_L
        position = start + tl.arange(0, BLOCK_L)
        in_row = position < num_positions
        offset = position.to(tl.int64) * weights_stride_position
        weight = tl.load(weights_ptr + offset, mask=in_row, other=0.0).to(tl.float32)
        probability = tl.load(probability_ptr + position, mask=in_row, other=0.0)
        drawn = (probability > 0.0) & (weight > 0.0)
        grad = tl.load(grad_ptr + position, mask=in_row, other=0.0)
        u = tl.where(drawn, weight * first * second, 2.0 * FURTHEST)
        power, less_one = decay(0.5 * u)
        half = power + power * less_one  # its square may be beyond float32, as the time
        found = (half * first * (grad - average)) * (half * second)
        found = tl.where(0.5 * u < FURTHEST, found, 0.0)
        found = tl.where(first > 0.0, found, 0.0)
        tl.store(
            grad_weights_ptr + position,
            found.to(grad_weights_ptr.dtype.element_ty),
            mask=in_row,
        )


def probabilities(
    weights: Tensor, num_samples: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pi_l = 1 - exp(-w_l t)`` with ``sum_l pi_l = k``, (B, L) float32, and ``t``, (B,) float64;
    infinite where every position is drawn.
    """
    rows, positions = weights.shape
    probability = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    time = torch.empty(rows, dtype=torch.float64, device=weights.device)
    with launch.on(weights.device):
        probabilities_kernel[(rows,)](
            weights,
            valid,
            num_samples,
            probability,
            time,
            positions,
            *weights.stride(),
            *launch.strides(valid, 2),
            HAS_VALID=valid is not None,
            BLOCK_L=BLOCK,
            num_warps=WARPS,
            **launch.register_limit(None if launch.INTERPRETED else REGISTERS),
        )
    return probability, time


def backward(grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor) -> Tensor:
    """``t exp(-u) (G - sum G g / sum g)`` with ``u = w t`` and ``g = u exp(-u)``; (B, L), 0 where a
    position is never drawn, and in rows that are drawn whole.
    """
    rows, positions = weights.shape
    found = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    with launch.on(weights.device):
        inclusion_gradient_kernel[(rows,)](
            grad.float().contiguous(),
            weights,
            probability.float().contiguous(),
            time.contiguous(),
            found,
            positions,
            *weights.stride(),
            BLOCK_L=BLOCK,
            num_warps=WARPS,
        )
    return found
