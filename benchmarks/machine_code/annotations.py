"""What the sources say of their loops: comments beside the statements of a kernel.

``trips: FORMULA`` on a loop
    How often a warp goes round it. A loop that the compiler makes several of has a formula for
    each, in the order of their addresses: ``trips: n / 4 | 0``.
``share: FORMULA`` on any statement or block
    The part of the warps or of the times that it is executed: 0 for what is rare.
``where: NAME = FORMULA`` on a call
    What a name of the sizes stands for in the loops of the function that is called.
``phase: NAME`` in the body of a function
    What follows in this function, up to the next one, is counted under this name, unless what it
    calls has phases of its own.

A comment belongs to the statement on its line, or where it stands alone to the next line's. A
statement reaches to the end of its block. The names in a formula are the sizes of the table.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from .sass import OUTSIDE

COMMENT = re.compile(r"(?://|#)\s*(?P<kind>trips|share|where|phase): (?P<text>[^#]+?)\s*$")


class Note(NamedTuple):
    """One comment, and the lines of the statement that it belongs to."""

    kind: str
    text: str
    first: int
    last: int


@functools.cache
def notes(file: str) -> tuple[Note, ...]:
    """The comments of a source file; none where it cannot be read."""
    path = Path(file)
    if not path.is_file() or path.suffix not in (".cu", ".cuh", ".h", ".py"):
        return ()
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        comment = COMMENT.search(line)
        if comment is None:
            continue
        first = number
        while first <= len(lines) and lines[first - 1].lstrip().startswith(("//", "#")):
            first += 1
        end = _end_of_block if path.suffix == ".py" else _end_of_braces
        if path.suffix != ".py":
            first = _start_of_statement(lines, first)
        found.append(Note(comment["kind"], comment["text"], first, end(lines, first)))
    return tuple(found)


@functools.cache
def phase(file: str, line: int) -> str:
    """The phase that a line of a function is in, or nothing."""
    marks = [note for note in notes(file) if note.kind == "phase" and note.first <= line]
    if not marks:
        return ""
    lines = Path(file).read_text().splitlines()
    mark = marks[-1]
    if any(OUTSIDE.match(x) for x in lines[mark.first - 1 : line - 1]):
        return ""
    return mark.text


def _code(line: str) -> str:
    return re.split(r"//|#(?!include)", line, maxsplit=1)[0]


def _start_of_statement(lines: list[str], first: int) -> int:
    """The first line of a statement of C++ that goes on for several."""
    while first > 1:
        before = lines[first - 2].strip()
        if not before or before.startswith(("//", "#")) or _code(before).rstrip()[-1:] in "{};:":
            ends = _code(before).count("(") <= _code(before).count(")")
            if ends or not before or before.startswith(("//", "#")):
                return first
        first -= 1
    return first


def _end_of_braces(lines: list[str], first: int) -> int:
    """The last line of a statement of C++."""
    braces = parentheses = 0
    opened = False
    for number in range(first, len(lines) + 1):
        for character in _code(lines[number - 1]):
            parentheses += {"(": 1, ")": -1}.get(character, 0)
            braces += {"{": 1, "}": -1}.get(character, 0)
            opened |= character == "{"
            ends = (character == "}" and opened) or (character == ";" and parentheses == 0)
            if ends and braces <= 0:
                return number
    return len(lines)


def _end_of_block(lines: list[str], first: int) -> int:
    """The last line of a statement of Python: of its parentheses, and of the block under it."""
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    open_parentheses, number = 0, first
    for number in range(first, len(lines) + 1):
        code = _code(lines[number - 1])
        open_parentheses += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        if open_parentheses <= 0:
            break
    if not _code(lines[number - 1]).rstrip().endswith(":"):
        return number
    last = number
    for following in range(number + 1, len(lines) + 1):
        text = lines[following - 1]
        if text.strip() and len(text) - len(text.lstrip()) <= indent:
            break
        last = following
    return last
