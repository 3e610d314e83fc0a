"""Moments and importance of a row whose slopes are out of reach of the series, by Triton: an
exponential for each value and slope. See README.md one folder up.
"""

import triton
import triton.language as tl

BLOCK_S = tl.constexpr(32)  # slopes by BLOCK_X values: 8 exponentials a thread
BLOCK_X = tl.constexpr(32)


@triton.jit
def tile_weights(compact_ptr, start, count, alpha, shift):
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
            x, weight = tile_weights(compact_ptr, start, count, alpha, shift)
            partition += weight
            moment += weight * x
        total = zero_total + tl.sum(partition, 0)  # M e^{-shift}, at least 1 but for rounding
        total = tl.where(empty, 1.0, total)
        mean = tl.sum(moment, 0) / total

        drift = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        spread = tl.zeros([BLOCK_X, BLOCK_S], dtype=tl.float32)
        for start in range(0, count, BLOCK_X):  # trips: 0
            x, weight = tile_weights(compact_ptr, start, count, alpha, shift)
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
    slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads
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
                slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads
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
    slope_ptr, log_partition_ptr, latents_ptr, num_chosen, num_heads
):
    """The importance that all zeros of the row share: the sum over the chosen slopes of 1 / M."""
    share = tl.zeros([BLOCK_S], dtype=tl.float32)
    for first in range(0, num_chosen * num_heads, BLOCK_S):  # trips: 0
        _, log_partition = chosen_slopes(
            slope_ptr, log_partition_ptr, latents_ptr, first, num_chosen, num_heads
        )
        share += tl.exp(-log_partition)
    return tl.sum(share, 0)
