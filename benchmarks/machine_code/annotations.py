"""What the sources say of their loops: comments beside the statements of a kernel.

``trips: FORMULA`` on a loop
    How often a warp goes round it. A loop that the compiler makes several of has a formula for
    each, in the order of their addresses: ``trips: n / 4 | 0``.
``share: FORMULA`` on any statement or block
    The part of the warps or of the times that it is executed: 0 for what is rare.
``phase: NAME`` in the body of a kernel
    What follows, up to the next one, is counted under this name.

A comment belongs to the statement on its line, or where it stands alone to the next line's. A
statement reaches to the end of its block. The names in a formula are the sizes of the table.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

COMMENT = re.compile(r"(?://|#)\s*(?P<kind>trips|share|phase): (?P<text>[^#]+?)\s*$")


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
        found.append(Note(comment["kind"], comment["text"], first, end(lines, first)))
    return tuple(found)


def _code(line: str) -> str:
    return re.split(r"//|#(?!include)", line, maxsplit=1)[0]


def _end_of_braces(lines: list[str], first: int) -> int:
    """The last line of a statement of C++."""
    braces = parentheses = 0
    opened = False
    for number in range(first, len(lines) + 1):
        for character in _code(lines[number - 1]):
            parentheses += {"(": 1, ")": -1}.get(character, 0)
            braces += {"{": 1, "}": -1}.get(character, 0)
            opened |= character == "{"
            ends = character == "}" and opened or character == ";" and parentheses == 0
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
