"""The report of a study or a run: one HTML file that opens without a network, drawn from the files
of the folder alone.

`material` reads the folder; `scores` and `findings` say what its numbers allow to say; the
`*_figures`, `maps` and `tables` show them; `overview`, `sections` and `page` put it together.
"""

from typing import Any

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    # Drawing is loaded when a report is written: a command that only prints its help needs none of
    # it.
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .page import write_report

    return write_report
