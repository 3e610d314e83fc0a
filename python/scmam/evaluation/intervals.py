"""Confidence intervals of means over seeds or folds, and of paired differences (Student's t
distribution).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean with its confidence interval; both bounds are NaN for a single value, which says
    nothing about its spread.
    """

    mean: float
    low: float
    high: float
    n: int


class PairedDifference(NamedTuple):
    """The mean of paired differences, its confidence interval, and the two-sided p-value of the
    paired t test.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of values and its confidence interval: ``mean ± t s / sqrt(n)``, s the sample
    deviation, t of n - 1 degrees of freedom.

    Args:
        values: at least one finite number.
        confidence: between 0 and 1.

    Raises:
        ValueError: no values, one that is not finite, or a confidence out of range.
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1; got {confidence}")
    mean, error = _mean_and_error(values)
    reach = (
        math.nan
        if math.isnan(error)
        else float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    )
    return Interval(mean, mean - reach, mean + reach, len(values))


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """How much higher a is than b, pair by pair: ``a[i]`` and ``b[i]`` are scores of the same seed.

    Differences that are all the same have no spread: the interval is the point, and the p-value 0
        (1 where they are all zero).

    Args:
        a, b: as many values each, at least one; the p-value of a single pair is NaN.
        confidence: of the interval.

    Raises:
        ValueError: different lengths, or as in `interval`.
    """
    from scipy.special import stdtr

    if len(a) != len(b):
        raise ValueError(f"b: expected as many values as a, {len(a)}; got {len(b)}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    found = interval(differences, confidence)
    mean, error = _mean_and_error(differences)
    if math.isnan(error):
        p_value = math.nan
    elif error == 0:
        p_value = 1.0 if mean == 0 else 0.0
    else:
        p_value = 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))
    return PairedDifference(found.mean, found.low, found.high, p_value, found.n)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the latter NaN for a single value."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError("values: expected at least one number; got none")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values: expected finite numbers; got {values}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    if len(set(values)) == 1:  # exactly, where a rounded mean would leave a spread of 1e-17
        return values[0], 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
