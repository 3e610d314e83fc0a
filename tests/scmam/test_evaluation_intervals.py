"""Intervals and paired differences, against numbers worked out by hand with a table of t."""

import math

import pytest

pytest.importorskip("scipy", reason="the single-cell layer is not installed")

from scmam.evaluation.intervals import Interval, interval, paired_difference


def test_interval_of_three_values():
    # mean 2, s = 1, s / sqrt(3) = 0.577350, t(0.975; 2) = 4.302653
    found = interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138, 3), abs=1e-5)
    assert isinstance(found, Interval)


def test_interval_of_five_values():
    # mean 0.62, s^2 = 0.001 / 4, s / sqrt(5) = 0.00707107, t(0.975; 4) = 2.776445
    found = interval((0.60, 0.61, 0.62, 0.63, 0.64))
    assert found == pytest.approx((0.62, 0.62 - 0.019632, 0.62 + 0.019632, 5), abs=1e-6)


def test_equal_values_have_no_spread():
    assert interval([0.1, 0.1, 0.1]) == (0.1, 0.1, 0.1, 3)


def test_a_single_value_has_no_interval():
    found = interval([0.7])
    assert (found.mean, found.n) == (0.7, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "values: expected at least one number; got none"),
        ([0.5, math.nan], r"values: expected finite numbers; got \[0.5, nan\]"),
    ],
)
def test_interval_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


def test_paired_difference_by_hand():
    # differences 2, 3, 1: mean 2, standard error 0.577350, t = 3.464102; P(|T| > 3.464102) with 2
    # degrees of freedom is 1 - t / sqrt(2 + t^2) = 1 - 3.464102 / 3.741657 = 0.074180
    found = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, -0.484138, 4.484138, 0.074180, 3), abs=1e-5)


def test_paired_difference_uses_the_pairs():
    a, b = [0.1, 0.5, 0.9], [0.09, 0.48, 0.87]  # seeds differ far more than the methods
    found = paired_difference(a, b)
    assert found.low < 0.02 < found.high
    assert found.high - found.low < 0.1
    reverse = paired_difference(b, a)
    assert (reverse.mean, reverse.p_value) == pytest.approx((-found.mean, found.p_value))


def test_paired_difference_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = [0.61, 0.64, 0.60, 0.66, 0.63], [0.60, 0.61, 0.61, 0.62, 0.62]
    assert paired_difference(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_paired_difference_without_spread():
    assert paired_difference([2.0, 3.0], [1.0, 2.0]) == (1.0, 1.0, 1.0, 0.0, 2)
    assert paired_difference([2.0, 3.0], [2.0, 3.0]) == (0.0, 0.0, 0.0, 1.0, 2)
    assert math.isnan(paired_difference([2.0], [1.0]).p_value)


def test_paired_difference_refuses_other_lengths():
    with pytest.raises(ValueError, match="b: expected as many values as a, 2; got 1"):
        paired_difference([1.0, 2.0], [1.0])
