"""Machine code as nvdisasm prints it: instructions with the source lines they come from, and the
loops of their control flow.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z]\S*)"
    r"\s*(?P<operands>[^;]*);"
)
PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
OUTSIDE = re.compile(r"^(\}|def |@)")  # a line that is in no function
LABEL = re.compile(r"^(\.L_x_\d+):")


class Place(NamedTuple):
    """A line of a source file."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    """One instruction, and where it comes from: the innermost line first, then its callers."""

    address: int
    guard: str | None
    opcode: str
    operands: str
    frames: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]


@dataclass
class Loop:
    """A natural loop: the indices of its blocks, from its header to the one that goes back."""

    header: int
    last: int
    blocks: set[int] = field(default_factory=set)


@dataclass
class Function:
    """One kernel: instructions in their order, in basic blocks, and its loops."""

    name: str
    instructions: list[Instruction]
    blocks: list[list[int]]  # indices into instructions
    loops: list[Loop]  # outer ones before those inside them
    reached: set[int]  # blocks that are reached without a call of a subroutine


def parse(text: str) -> list[Function]:
    """The kernels of a listing by ``nvdisasm -c -gi``."""
    functions = []
    for section in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        name = section.split(",", 1)[0].strip('"')
        functions.append(_function(name, section.splitlines()))
    return functions


def _function(name: str, lines: list[str]) -> Function:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    places: list[Place] = []  # of the comment lines that are being read
    frames: tuple[Place, ...] = ()
    seen: dict[Place, tuple[Place, ...]] = {}
    for line in lines:
        if "//## File" in line:
            places.append(_place(line))
            continue
        if label := LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
            continue
        found = INSTRUCTION.match(line)
        if not found:
            continue
        if places:
            frames = tuple(places)
            # A line without its callers is printed where only the line changed: they are those of
            # the last time.
            if len(frames) == 1:
                frames = seen.get(frames[0], frames)
            else:
                for depth in range(len(frames)):
                    seen[frames[depth]] = frames[depth:]
            places = []
        instructions.append(
            Instruction(
                int(found["address"], 16),
                found["guard"],
                found["opcode"],
                found["operands"],
                frames,
            )
        )
    return _with_loops(name, _rooted(instructions), labels)


def _rooted(instructions: list[Instruction]) -> list[Instruction]:
    """Instructions whose callers are not told take the lines of the one before them."""
    entry = next((x.frames[-1] for x in instructions if x.frames), None)
    if entry is None or not Path(entry.file).is_file():
        return instructions
    if not any(len(x.frames) > 1 for x in instructions):
        return _of_package(instructions, entry)  # Triton tells the innermost line alone
    lines = Path(entry.file).read_text().splitlines()
    start = entry.line
    while start < min(len(lines), entry.line + 4) and lines[start].startswith(("@", "def ")):
        start += 1  # the decorators of a Triton kernel
    ends = (n for n in range(start + 1, len(lines) + 1) if OUTSIDE.match(lines[n - 1]))
    last = next(ends, len(lines))
    rooted: list[Instruction] = []
    for x in instructions:
        root = x.frames[-1] if x.frames else None
        known = root and root.file == entry.file and entry.line - 4 <= root.line <= last
        rooted.append(x if known or not rooted else replace(x, frames=rooted[-1].frames))
    return rooted


def _of_package(instructions: list[Instruction], entry: Place) -> list[Instruction]:
    """Instructions of Triton's own library, and those whose line it lost, which it says are the
    kernel's first one, take the lines of the one before them.
    """
    owned: list[Instruction] = []
    for x in instructions:
        foreign = not x.frames or "site-packages" in x.frames[0].file or x.frames[0] == entry
        owned.append(replace(x, frames=owned[-1].frames) if foreign and owned else x)
    return owned


def _place(line: str) -> Place:
    found = PLACE.search(line)
    return Place(found["file"], int(found["line"]))


def _ends_block(instruction: Instruction) -> bool:
    return instruction.name in ("BRA", "BRX", "EXIT", "RET", "JMP") or _jumps_far(instruction)


def _jumps_far(instruction: Instruction) -> bool:
    """Whether it is a call of a label of the kernel itself, which never returns: sm_80 goes far
    that way. Subroutines have names.
    """
    return instruction.name == "CALL" and "`(.L_x_" in instruction.operands


def _with_loops(name: str, instructions: list[Instruction], labels: dict[str, int]) -> Function:
    starts = {0, *labels.values()}
    ends = [i for i, x in enumerate(instructions) if _ends_block(x)]
    starts |= {i + 1 for i in ends}
    order = sorted(i for i in starts if i < len(instructions))
    blocks = [
        list(range(a, b)) for a, b in zip(order, [*order[1:], len(instructions)], strict=True)
    ]
    block_of = {block[0]: n for n, block in enumerate(blocks)}
    following: list[list[int]] = []
    for n, block in enumerate(blocks):
        last = instructions[block[-1]]
        goes_on = not _ends_block(last) or last.guard is not None
        # a branch may depend on a predicate among its operands: BRA P0, target
        if last.name == "BRA" and re.search(r"U?P\d", last.operands.split("`")[0]):
            goes_on = True
        # BRA.DIV leads to what lanes do that come to a shuffle or a vote apart: none here do.
        apart = last.opcode == "BRA.DIV"
        to = [n + 1] if (goes_on or apart) and n + 1 < len(blocks) else []
        if (last.name in ("BRA", "BRX") or _jumps_far(last)) and not apart:
            to += [block_of[labels[x]] for x in re.findall(r"`\((\.L_x_\d+)\)", last.operands)]
        following.append(to)
    reached = _reachable(following)
    return Function(name, instructions, blocks, _loops(following, reached), reached)


def _reachable(following: list[list[int]]) -> set[int]:
    reached, todo = set(), [0]
    while todo:
        n = todo.pop()
        if n not in reached:
            reached.add(n)
            todo += following[n]
    return reached


def _loops(following: list[list[int]], reached: set[int]) -> list[Loop]:
    """The natural loops: an edge to a block that dominates its origin closes one."""
    before: dict[int, list[int]] = {n: [] for n in reached}
    for n in reached:
        for to in following[n]:
            before[to].append(n)
    everything = sum(1 << n for n in reached)
    dominators = dict.fromkeys(reached, everything)
    dominators[0] = 1
    changed = True
    while changed:
        changed = False
        for n in sorted(reached):
            if n == 0:
                continue
            common = everything
            for previous in before[n]:
                common &= dominators[previous]
            common |= 1 << n
            if common != dominators[n]:
                dominators[n], changed = common, True
    loops: dict[tuple[int, frozenset], Loop] = {}
    for n in sorted(reached):
        for header in following[n]:
            if not dominators[n] >> header & 1:
                continue
            # Edges to one header are a loop each: nested loops that share it, or one that goes on
            # early, of which count.py tells by their notes.
            loop = Loop(header, n, {header})
            todo = [n]
            while todo:
                block = todo.pop()
                if block not in loop.blocks:
                    loop.blocks.add(block)
                    todo += before[block]
            loops[header, frozenset(loop.blocks)] = loop
    return sorted(loops.values(), key=lambda loop: (-len(loop.blocks), loop.header))
