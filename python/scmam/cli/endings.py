"""The end of a command that fails or is interrupted: a line on the error, or on how to continue."""

import functools
import sys
from collections.abc import Callable
from typing import cast

import typer

from ..errors import WRONG_INPUT, ScmamError, missing_package
from ..storage import CANNOT_WRITE
from .options import Command

FAILED, INTERRUPTED = 1, 130  # exit statuses
GOES_ON = (
    "runs that were finished are kept, others go on from their last checkpoint, by the same command"
)


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
                raise _said(str(error)) from None
            except ModuleNotFoundError as error:
                if (missing := missing_package(error)) is None:
                    raise
                raise _said(missing) from None
            except OSError as error:
                if error.errno not in CANNOT_WRITE or error.filename is None:
                    raise
                raise _said(f"{error.filename}: {error.strerror}") from None
            except KeyboardInterrupt:
                print(f"\ninterrupted: {resume}", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None

        return cast(Command, wrapped)  # of the same signature: typer reads it from __wrapped__

    return decorate


def _said(error: str) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(WRONG_INPUT)
