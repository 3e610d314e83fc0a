"""Confidence intervals of means over seeds or folds, and of paired differences, by Student's t."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray
Verdict = Literal["ahead", "behind", "not shown", "one seed"]


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Both bounds are NaN for a single value, which says nothing about its spread.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)


class PairedDifference(NamedTuple):
    """The mean of paired differences, its confidence interval, and the two-sided p-value of the
    paired t test.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)

    @property
    def verdict(self) -> Verdict:
        """By the interval: none for one seed, no difference where it holds 0."""
        if not self.has_interval:
            return "one seed"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "not shown"

    def reversed(self) -> "PairedDifference":
        """How much higher b is than a."""
        return self._replace(mean=-self.mean, low=-self.high, high=-self.low)


def interval(values: Values) -> Interval:
    """The mean of values and its 95 % Student t interval. Equal values have no spread: there the
    interval is the point.

    Args:
        values: at least one finite number.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    from scipy import stats

    array = _checked(values)
    number, mean = len(array), float(array.mean())
    if number == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if array.min() == array.max():
        point = float(array[0])  # the mean may be rounded
        return Interval(point, point, point, number)
    low, high = stats.t.interval(0.95, number - 1, loc=mean, scale=stats.sem(array))
    return Interval(mean, float(low), float(high), number)


def paired_difference(a: Values, b: Values) -> PairedDifference:
    """How much higher a is than b, pair by pair: ``a[i]`` and ``b[i]`` are scores of the same seed.

    Differences that are all the same have no spread: the interval is the point, and the p-value 0
    (1 where they are all zero).

    Args:
        a, b: as many values each, at least one; the p-value of a single pair is NaN.

    Raises:
        ValueError: different lengths, or as in `interval`.
    """
    from scipy import stats

    if len(a) != len(b):
        raise ValueError(f"b: expected as many values as a, {len(a)}; got {len(b)}")
    differences = _checked(a) - _checked(b)
    mean, low, high, number = interval(differences)
    if number == 1:
        p_value = math.nan
    elif low == high:
        p_value = 1.0 if mean == 0 else 0.0
    else:
        p_value = 2 * float(stats.t.sf(abs(mean) / stats.sem(differences), number - 1))
    return PairedDifference(mean, low, high, p_value, number)


def _checked(values: Values) -> np.ndarray:

    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise ValueError("values: expected at least one number; got none")
    if not np.isfinite(array).all():
        raise ValueError(f"values: expected finite numbers; got {array.tolist()}")
    return array
