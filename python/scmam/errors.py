"""Errors that a user can do something about: one line that names what was wrong, what is required
and what to do.

The command line prints them after ``error:`` and ends with status 2; anything else is a defect and
keeps its traceback.
"""


class ScmamError(ValueError):
    """Base of all of them."""


class CellsError(ScmamError):
    """The data cannot be used as it is."""


class ConfigError(ScmamError):
    """A setting is unknown, out of range or contradicts another."""


class RunError(ScmamError):
    """A run folder is missing, incomplete, corrupt, or belongs to another configuration."""


class ReportError(ScmamError):
    """A report cannot be written where it was asked for, or there is nothing to report."""
