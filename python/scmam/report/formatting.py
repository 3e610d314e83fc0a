"""Numbers as the report writes them: scores in points of a hundred, times and counts in words."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

MINUS = "−"
NOTHING = "–"
Writers = dict[str, Callable[[float], str]]
"""How numbers are written, by their names."""


def _known(write: Callable[..., str]) -> Callable[..., str]:
    """A dash for a number that is not known, None or nan; the true sign for a minus."""

    @functools.wraps(write)
    def written(number: float | None, *arguments: Any) -> str:
        if number is None or math.isnan(number):
            return NOTHING
        return write(number, *arguments).replace("-", MINUS)

    return written


@_known
def points(share: float, digits: int = 1) -> str:
    """A share of 1 in points of 100: 0.6531 is ``65.3``."""
    return f"{100 * share:.{digits}f}"


@_known
def signed_points(share: float, digits: int = 2) -> str:
    """A difference of shares in points, with its sign: 0.0142 is ``+1.42``."""
    return f"{100 * share:+.{digits}f}"


@_known
def percent(share: float, digits: int = 1) -> str:
    """A share in per cent; small ones keep a second significant digit."""
    if 0 < share < 0.01:
        digits = max(digits, 2)
    return f"{100 * share:.{digits}f} %"


@_known
def decimal(number: float, digits: int) -> str:
    """A number with so many digits after the point."""
    return f"{number:.{digits}f}"


@_known
def count(number: float) -> str:
    """A count with its thousands set apart."""
    return f"{number:,.0f}"


@_known
def milliseconds(time: float) -> str:
    """Three significant digits, in ms."""
    digits = 0 if time >= 100 else 1 if time >= 10 else 2 if time >= 0.1 else 3
    return f"{time:,.{digits}f}"


@_known
def duration(seconds: float) -> str:
    """``42 s``, ``7 min 40 s``, ``3 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(value: float) -> str:
    """Three digits; nan is a dash."""
    return "< 0.001" if value < 0.001 else decimal(value, 3)


def amount(number: int, singular: str, plural: str | None = None) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
