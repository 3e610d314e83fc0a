"""How a command ends when it does not end well: a user's error in one line, an interruption with
the way to go on.
"""

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import typer

from ..errors import ScmamError

Command = TypeVar("Command", bound=Callable[..., None])

WRONG_INPUT = 2
INTERRUPTED = 130


def ends_tidily(resume: str) -> Callable[[Command], Command]:
    """A decorator of commands.

    `resume` says, after an interruption, what is kept and how to go on.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*arguments: object, **options: object) -> None:
            try:
                command(*arguments, **options)
            except ScmamError as error:
                print(f"error: {error}", file=sys.stderr)
                raise typer.Exit(WRONG_INPUT) from None
            except KeyboardInterrupt:
                print(f"\ninterrupted: {resume}", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None

        return wrapped

    return decorate
