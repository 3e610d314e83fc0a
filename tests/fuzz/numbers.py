"""Contents: weights and values as cells hold them, and as nobody should."""

import numpy as np

from .source import Source


def shape(source: Source, rows: int = 4) -> tuple[int, int]:
    """(B, L), mostly small: every case of a kernel's loops, and now and then a long row."""
    kind = source.below(200)
    if kind < 120:
        positions = source.between(0, 20)
    elif kind < 180:
        positions = source.between(0, 80)
    elif kind < 199:
        positions = source.one_of([31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1025])
    else:
        positions = source.one_of([2048, 2049, 4096, 5000, 9001])
    return source.between(0, rows), positions


def weights(source: Source, size: tuple[int, ...]) -> np.ndarray:
    """Weights, of which some may be zero, negative, infinite or NaN, over any range."""
    numbers = source.numbers
    kind = source.below(10)
    if kind == 0:
        out = np.ones(size)
    elif kind == 1:
        out = numbers.random(size)
    elif kind == 2:
        out = 1.0 + 0.01 * numbers.random(size)
    elif kind == 3:
        out = 10.0 ** numbers.uniform(-8, 8, size)
    elif kind == 4:
        out = 10.0 ** numbers.uniform(-45, 38.4, size)
    elif kind == 5:
        out = 10.0 ** numbers.uniform(-45, -37, size)
    elif kind == 6:
        out = 10.0 ** numbers.uniform(36, 38.5, size)
    elif kind == 7:
        out = np.where(numbers.random(size) < 0.1, 10.0 ** numbers.uniform(-3, 3, size), 0.0)
    elif kind == 8:
        out = np.full(size, 10.0 ** numbers.uniform(-44, 38))
    else:
        out = numbers.standard_normal(size)
    return spoiled(source, out)


SPOILERS = (
    0.0, -0.0, np.nan, np.inf, -np.inf, -1.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, 1e300,
    6e-8, 65504.0
)  # fmt: skip


def spoiled(source: Source, x: np.ndarray) -> np.ndarray:
    """With some elements replaced by extreme ones, in one case of four."""
    if not source.chance(25) or x.size == 0:
        return x
    share = source.one_of([0.1, 0.5, 1.0])
    few = [source.one_of(SPOILERS) for _ in range(source.between(1, 2))]
    return np.where(source.numbers.random(x.shape) < share, source.numbers.choice(few, x.shape), x)


def values(source: Source, size: tuple[int, ...]) -> np.ndarray:
    """Expression values: mostly zeros and positive numbers, at times of any sign and size."""
    numbers = source.numbers
    density = source.one_of([0.1, 0.5, 1.0, 0.02])
    kind = source.below(8)
    if kind == 0:
        out = np.log1p(numbers.integers(1, 20, size).astype(np.float64))
    elif kind == 1:
        out = numbers.exponential(1.0, size)
    elif kind == 2:
        out = numbers.standard_normal(size)
    elif kind == 3:
        out = 100 * numbers.standard_normal(size)
    elif kind == 4:
        out = np.full(size, numbers.standard_normal())
    elif kind == 5:
        out = numbers.integers(0, 5, size).astype(np.float64)
    elif kind == 6:
        out = 10.0 ** numbers.uniform(-45, 5, size)
    else:
        out = 50 + 0.01 * numbers.standard_normal(size)
    return spoiled(source, np.where(numbers.random(size) < density, out, 0.0))


def slopes(source: Source, size: tuple[int, int]) -> np.ndarray:
    """Slopes of latents and heads: near 0 as after initialisation, or steeper."""
    numbers = source.numbers
    size_of = source.one_of([0.1, 1.0, 0.0, 5.0, 50.0, 1e-6])
    out = size_of * numbers.standard_normal(size)
    if source.chance(10):
        out = spoiled(source, out)
    return out
