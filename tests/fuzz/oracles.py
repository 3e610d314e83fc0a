"""The mathematics in numpy and float64, written from the paper and the documented contract alone.

Nothing here comes from the package under test: Philox, the race, the moments of a cell and the
whole attention are computed anew, from arrays.
"""

from typing import NamedTuple

import numpy as np

from .source import Wrong

WORD = np.uint64(0xFFFFFFFF)
LARGEST_UNIFORM = np.float32(1) - np.float32(2.0**-24)
SMALLEST_RELATIVE_WEIGHT = 1e-37  # documented: lighter positions count as this much of the heaviest
KEY_MARGIN = 4e-6  # documented: how near the threshold a key may be decided either way
EXPONENT_MARGIN = 2.5e-7  # documented: the same for each unit of |log(relative weight)|
FLOOR = 2e-6  # documented: relative error allowed to any float32 result
FLOOR_OF_FLOAT64 = 1e-12  # documented: and to any float64 one
LARGEST_FLOAT32 = 3.4028234e38
SMALLEST = 1.2e-38  # the smallest normal float32: below it a thread may flush to zero


def floor_of(unit: float) -> float:
    """The relative error that is allowed to results of this rounding unit."""
    return FLOOR if unit > 1e-10 else FLOOR_OF_FLOAT64


def philox(seed: int, c0: np.ndarray, c1: np.ndarray, step: int, stream: int) -> list[np.ndarray]:
    """Philox4x32-10: four arrays of 32-bit words for the counters (c0, c1, step, stream)."""
    words = list(
        np.broadcast_arrays(
            c0.astype(np.uint64) & WORD,
            c1.astype(np.uint64) & WORD,
            np.uint64(step & 0xFFFFFFFF),
            np.uint64(stream),
        )
    )
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        left, right = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (right >> np.uint64(32)) ^ words[1] ^ np.uint64(low),
            right & WORD,
            (left >> np.uint64(32)) ^ words[3] ^ np.uint64(high),
            left & WORD,
        ]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return words


def uniforms(positions: int, ids: np.ndarray, step: int, seed: int, stream: int) -> np.ndarray:
    """``(r + 1/2) / 2**32`` of every position, in float32 and below 1; (B, L)."""
    blocks = np.arange((positions + 3) // 4)
    words = np.stack(philox(seed, blocks[None, :], ids[:, None], step, stream), axis=-1)
    bits = words.reshape(len(ids), -1)[:, :positions].astype(np.uint32)
    return np.minimum(
        (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32), LARGEST_UNIFORM
    )


class Random(NamedTuple):
    """The words that a draw is a function of."""

    seed: int
    step: int
    ids: np.ndarray  # (B,) integers


def check_draw(
    mask: np.ndarray,
    weights: np.ndarray,
    drawable: np.ndarray,
    counts: np.ndarray,
    random: Random,
    inverse_temperature: float = 1.0,
    *,
    decided: bool = True,
) -> None:
    """Hold a draw against the race of its weights: the ``k`` smallest of ``E / w``.

    Args:
        mask: (B, L) bool, what was drawn.
        weights: (B, L) float64 > 0 where drawable.
        drawable: (B, L) bool.
        counts: (B,), ``k``.
        decided: whether rounding leaves the keys apart; else only the numbers drawn are looked at.

    Raises:
        Wrong: a position on the wrong side of the threshold by more than the documented margin, a
            wrong number of positions, or a tie that goes to the higher index.
    """
    if mask.shape != weights.shape:
        raise Wrong(f"mask of shape {mask.shape} for weights of shape {weights.shape}")
    if mask.size == 0:
        return
    if (mask & ~drawable).any():
        raise Wrong(f"drawn where nothing may be drawn: {np.argwhere(mask & ~drawable)[0]}")
    wanted = np.minimum(counts, drawable.sum(axis=1))
    if (mask.sum(axis=1) != wanted).any():
        raise Wrong(f"drawn {mask.sum(axis=1).tolist()} positions of {wanted.tolist()}")
    undecided = (wanted > 0) & (wanted < drawable.sum(axis=1))
    if not decided or not undecided.any():
        return
    uniform = uniforms(mask.shape[1], random.ids, random.step, random.seed, 0)
    heaviest = np.where(drawable, weights, 0.0).max(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        relative = np.where(drawable, weights / np.where(heaviest > 0, heaviest, 1.0), 1.0)
        relative = np.maximum(relative**inverse_temperature, SMALLEST_RELATIVE_WEIGHT)
        keys = np.where(drawable, -np.log1p(-uniform.astype(np.float64)) / relative, np.inf)
    order = np.sort(keys, axis=1)
    for b in np.flatnonzero(undecided):
        threshold = order[b, wanted[b] - 1]
        margin = KEY_MARGIN + EXPONENT_MARGIN * np.abs(np.log(relative[b]))
        late = mask[b] & (keys[b] > threshold * (1 + margin))
        early = ~mask[b] & (keys[b] < threshold * (1 - margin))
        if late.any() or early.any():
            raise Wrong(
                f"row {b}: drawn too late {np.flatnonzero(late)[:5].tolist()}, left out too early "
                f"{np.flatnonzero(early)[:5].tolist()}; k = {wanted[b]}"
            )
        _check_ties(b, mask[b], weights[b], uniform[b], drawable[b] & (keys[b] == threshold))


def _check_ties(
    row: int, mask: np.ndarray, weight: np.ndarray, uniform: np.ndarray, tied: np.ndarray
) -> None:
    """Positions of the same weight and the same uniform have the same key in any arithmetic."""
    places = np.flatnonzero(tied)
    if len(places) < 2:
        return
    first = places[0]
    same = places[(weight[places] == weight[first]) & (uniform[places] == uniform[first])]
    if (np.diff(mask[same].astype(int)) > 0).any():
        raise Wrong(f"row {row}: a tie went to the higher index among {same.tolist()}")


def drawn_latents(num_latents: int, size: int, seed: int, step: int) -> np.ndarray:
    """``size`` of ``num_latents`` indices, ascending."""
    uniform = uniforms(num_latents, np.zeros(1, dtype=np.int64), step, seed, 1)[0]
    return np.sort(np.argsort(uniform, kind="stable")[:size])


# Attention over scalar values


class Moments(NamedTuple):
    """log M, mean and variance, each (B, N, H), and how far from them an answer may be."""

    values: tuple[np.ndarray, np.ndarray, np.ndarray]
    allowed: tuple[np.ndarray, np.ndarray, np.ndarray]
    undefined: np.ndarray  # (B, N, H) bool: NaN is allowed, float32 cannot hold what is summed


def moments(values: np.ndarray, exists: np.ndarray, slope: np.ndarray, unit: float) -> Moments:
    """Softmax attention over the values of a cell that exist.

    Args:
        values: (B, L) float64; exists: (B, L) bool; slope: (N, H) float64.
        unit: rounding unit of the precision that is computed in, such as 2**-24.
    """
    with np.errstate(all="ignore"):
        kept = np.where(exists, values, 0.0)[:, None, None, :]  # (B, 1, 1, L)
        there = exists[:, None, None, :]
        score = np.where(there, slope[None, :, :, None] * kept, -np.inf)
        empty = ~exists.any(axis=1)[:, None, None]
        shift = np.where(empty, 0.0, score.max(axis=-1, initial=-np.inf))
        weight = np.where(there, np.exp(score - shift[..., None]), 0.0)
        partition = weight.sum(axis=-1)
        attention = weight / np.where(empty, 1.0, partition)[..., None]
        mean = (attention * kept).sum(axis=-1)
        spread = np.where(there, kept - mean[..., None], 0.0)
        variance = (attention * spread**2).sum(axis=-1)
        log_partition = np.where(empty, -np.inf, shift + np.log(partition))

        steep = np.abs(np.where(there, score, 0.0)).max(axis=-1, initial=0.0)
        large = np.abs(kept).max(axis=-1, initial=0.0)  # (B, 1, 1)
        width = np.where(there, kept, -np.inf).max(axis=-1, initial=-np.inf)
        width = width - np.where(there, kept, np.inf).min(axis=-1, initial=np.inf)
        width = np.where(empty, 0.0, width)
        noise = 8 * unit * (4 + steep)
        floor = floor_of(unit)
        rounded = 8 * unit * large  # what is lost of a value, or of a mean
        allowed = (
            noise * 2 + floor * _largest(log_partition),
            noise * width + floor * large + SMALLEST,
            noise * width**2
            + floor * _largest(variance)
            + rounded * (2 * width + rounded)
            + SMALLEST,
        )
        largest = LARGEST_FLOAT32 if unit > 1e-10 else 1e308
        undefined = ~np.isfinite(score).all(axis=-1, where=there | np.zeros_like(score, dtype=bool))
        undefined |= ~np.isfinite(slope)[None] | (steep > largest / 16)
        undefined |= (large > largest**0.5 / 16) | (large * width > largest / 16)
    return Moments((log_partition, mean, variance), allowed, undefined)


def _largest(moment: np.ndarray) -> np.ndarray:
    """The largest magnitude of a cell's, of those that are finite; (B, 1, 1)."""
    finite = np.where(np.isfinite(moment), np.abs(moment), 0.0)
    return finite.max(axis=(1, 2), keepdims=True, initial=0.0)


def check_near(
    what: str, got: np.ndarray, truth: np.ndarray, allowed: np.ndarray, undefined: np.ndarray
) -> None:
    """Hold an array against the truth; NaN is an answer only where it is undefined.

    Raises:
        Wrong: an element further away than allowed, or the shape is another.
    """
    if got.shape != truth.shape:
        raise Wrong(f"{what}: shape {got.shape}, not {truth.shape}")
    with np.errstate(all="ignore"):
        good = (np.abs(got - truth) <= allowed) | (got == truth)
        good |= undefined & ~np.isfinite(got)
        # beyond what can be told apart, a finite answer is one of many
        good |= undefined & (~np.isfinite(truth) | (allowed > np.abs(truth)))
    if not good.all():
        at = tuple(np.argwhere(~good)[0].tolist())
        raise Wrong(
            f"{what}: {got[at]!r} at {at}, not {truth[at]!r} within "
            f"{np.broadcast_to(allowed, got.shape)[at]:.1e}"
        )


class Importance(NamedTuple):
    """What each position receives, (B, L), and how far from it an answer may be."""

    values: np.ndarray
    allowed: np.ndarray
    undefined: np.ndarray


def importance_of_scores(
    score: np.ndarray, log_partition: np.ndarray, exists: np.ndarray, unit: float
) -> Importance:
    """``sum exp(S - log M)`` over latents and heads, of scores (B, N, H, L)."""
    with np.errstate(all="ignore"):
        exponent = score - np.where(np.isfinite(log_partition), log_partition, 0.0)[..., None]
        there = exists[:, None, None, :] & (log_partition != -np.inf)[..., None]
        attention = np.where(there, np.exp(exponent), 0.0)
        size = (
            np.abs(np.where(attention > 0, score, 0.0))
            + np.abs(np.where(np.isfinite(log_partition), log_partition, 0.0))[..., None]
        )
        off = np.minimum(8 * unit * (4 + size), 1.0)
        total = attention.sum(axis=(1, 2))
        allowed = (attention * off).sum(axis=(1, 2)) + floor_of(unit) * total
        allowed += 2e-37 * attention.shape[1] * attention.shape[2]
    largest = LARGEST_FLOAT32 if unit > 1e-10 else 1e308
    return Importance(total, allowed, ~(total < largest / 2))


# Attention over tokens


class Attended(NamedTuple):
    """Output (B, N, H, d), log-sum-exp (B, N, H), scores (B, N, H, L), and what is allowed."""

    output: np.ndarray
    logsumexp: np.ndarray
    score: np.ndarray
    output_allowed: np.ndarray
    logsumexp_allowed: np.ndarray
    undefined: np.ndarray  # (B, N, H)


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    exists: np.ndarray,
    scale: float,
    unit: float,
    narrow: float,
) -> Attended:
    """``softmax(scale Q K^T) V`` of one query (N, H, d) for all cells (B, L, H, d), in float64.

    Args:
        unit: rounding unit of what is accumulated; narrow: of inputs and outputs.
    """
    with np.errstate(all="ignore"):
        there = exists[:, None, None, :]
        key = np.where(exists[:, :, None, None], key, 0.0)
        value = np.where(exists[:, :, None, None], value, 0.0)
        score = scale * np.einsum("nhd,blhd->bnhl", query, key)
        products = np.einsum("nhd,blhd->bnhl", np.abs(query), np.abs(key))
        size = abs(scale) * products
        score = np.where(there, score, -np.inf)
        empty = ~exists.any(axis=1)[:, None, None]
        shift = np.where(empty, 0.0, score.max(axis=-1, initial=-np.inf))
        weight = np.where(there, np.exp(score - shift[..., None]), 0.0)
        partition = weight.sum(axis=-1)
        share = weight / np.where(empty, 1.0, partition)[..., None]
        output = np.einsum("bnhl,blhd->bnhd", share, value)
        logsumexp = np.where(empty, -np.inf, shift + np.log(partition))
        noise = 4 * unit * (8 + query.shape[-1]) * (1 + size.max(axis=-1, initial=0.0))
        large = np.abs(value).max(axis=1, initial=0.0)[:, None]  # (B, 1, H, d)
        output_allowed = large * (noise[..., None] + 4 * narrow + floor_of(unit))
        if narrow == 2.0**-11:
            output_allowed = output_allowed + 6e-8  # the smallest float16
        # scores may be scaled before or after they are summed
        largest = np.maximum(size, products).max(axis=-1, initial=0.0)
        undefined = ~(largest < 1e37)
        undefined |= ~np.isfinite(large).all(axis=-1) | (large > 1e37).any(axis=-1)
    logsumexp_allowed = 2 * noise + floor_of(unit) * np.where(empty, 0.0, np.abs(logsumexp))
    allowed = output_allowed + SMALLEST, logsumexp_allowed
    return Attended(output, logsumexp, score, *allowed, undefined)
