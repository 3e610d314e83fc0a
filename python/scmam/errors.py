"""Errors that a user can fix: one line that names the problem, the requirement and the remedy.

The command line prints them after ``error:`` and ends with status 2; anything else is a defect and
keeps its traceback.
"""

from collections.abc import Sequence

WRONG_INPUT = 2  # exit status


class ScmamError(ValueError):
    """Base of all of them. Messages are one line of printable characters, whatever names and files
    hold.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class CellsError(ScmamError):
    """The data cannot be used as it is."""


class ConfigError(ScmamError):
    """A setting is unknown, out of range or contradicts another."""


class RunError(ScmamError):
    """A run folder is missing, incomplete, corrupt, or belongs to another configuration."""


class ReportError(ScmamError):
    """A report cannot be written to its place, or there is nothing to report."""


def one_line(error: BaseException, longest: int = 160) -> str:
    """The message of an error, cut to a line; its type where it has none."""
    # As in mam_kernels.weights.files, which loads torch; a line of error must not wait for that.
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + " ..."


def listing(names: Sequence[object], most: int) -> str:
    """Names separated by commas; of a long list the first ones, and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Advice on a missing package; None for a module of this project, which is a defect."""
    if error.name is None or error.name.partition(".")[0] in ("scmam", "mam_kernels"):
        return None
    return f'scmam needs the package {error.name}; pip install "mam-kernels[scmam]"'
