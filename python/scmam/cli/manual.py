"""Docstrings as pages of the manual: prose takes the width of the terminal, examples stay as they
are written.
"""

import inspect
from collections.abc import Callable

import typer


def add_command(app: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Add a command whose docstring is its page."""
    app.command(name=name, help=reflowed(inspect.getdoc(command) or ""))(command)


def reflowed(text: str) -> str:
    """Join the lines of every paragraph but those that are indented."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else " ".join(paragraph.split("\n"))
        for paragraph in paragraphs
    )
