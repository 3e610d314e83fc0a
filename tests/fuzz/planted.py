"""Faults that are known, for the tests of the attack itself."""

import os
import signal

from .source import Source, Wrong


def crash(source: Source) -> str:
    """Ends its process where the third of nine choices is 7 or more."""
    choices = [source.below(10) for _ in range(9)]
    source.calling("planted", choices=choices)
    if choices[2] >= 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "right"


def wrong(source: Source) -> str:
    """Gives a wrong answer where a number is above 900."""
    number = source.below(1000)
    source.calling("planted", number=number)
    if number > 900:
        raise Wrong(f"{number} is too much")
    return "right"
