"""Where a case takes its choices from: a seed, a list to replay, or hypothesis.

Every choice is an index below a bound, and 0 is the simplest: a shorter or smaller list of choices
is a simpler case.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Wrong(AssertionError):
    """An answer that the oracle does not allow."""


class Source:
    """Choices for one case.

    Attributes:
        choices: those made so far.
        told: what the case passed to the code under test, by name; for the report of a failure.
    """

    def __init__(self, pick: Callable[[int], int]) -> None:
        self._pick = pick
        self._numbers: np.random.Generator | None = None
        self.choices: list[int] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.watch: Callable[[Source], None] | None = None

    def below(self, bound: int) -> int:
        """An index in [0, bound)."""
        chosen = self._pick(bound)
        self.choices.append(chosen)
        return chosen

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]; ``low`` is the simplest."""
        return low + self.below(high - low + 1)

    def one_of(self, options: Sequence[Any]) -> Any:
        """One of the options; the first is the simplest."""
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        """True in so many of 100 cases; False is the simplest."""
        return self.below(100) >= 100 - percent

    @property
    def numbers(self) -> np.random.Generator:
        """A generator for the contents of arrays, seeded by one choice."""
        if self._numbers is None:
            self._numbers = np.random.Generator(np.random.SFC64(self.below(2**20)))
        return self._numbers

    def calling(self, name: str, **arguments: Any) -> None:
        """Note a call that is about to be made."""
        self.told.append((name, arguments))
        if self.watch is not None:
            self.watch(self)


def seeded(family: str, seed: int) -> Source:
    """The case of a family with this number."""
    pick = random.Random(f"{family} {seed}").random
    return Source(lambda bound: int(pick() * bound))


def replayed(choices: Sequence[int]) -> Source:
    """The case made of these choices: too large ones are cut, missing ones are 0."""
    left = iter(choices)
    return Source(lambda bound: min(next(left, 0), bound - 1))
