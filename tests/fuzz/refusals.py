"""What an error has to be like to count as a refusal."""

import re
from collections.abc import Iterable

from .source import Wrong


def refused(error: Exception, names: Iterable[str], *, may_refuse: bool) -> str:
    """That an error is a documented one and says which argument was wrong.

    Raises:
        Wrong: another class, another message, or a call that had to succeed. The error itself, if
            it comes from the oracle.
    """
    if isinstance(error, Wrong):
        raise error
    said = f"{type(error).__name__}: {error}"
    if not may_refuse:
        raise Wrong(f"what is allowed was refused by {said}") from error
    if not isinstance(error, (ValueError, TypeError)) or isinstance(error, UnicodeError):
        raise Wrong(f"refused by {said}") from error
    if not named(str(error), names):
        raise Wrong(f"the message names none of {', '.join(names)}: {said}") from error
    return "refused"


def named(message: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands in a message as a word."""
    return any(re.search(rf"\b{re.escape(name)}\b", message) for name in names)
