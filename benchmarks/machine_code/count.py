"""Instructions of a kernel times how often they are executed."""

import math
import re
from dataclasses import dataclass, field

from . import annotations
from .device import Count
from .sass import Function, Instruction, Loop

WAITING = re.compile(r"NANOSLEEP|SYNCS\.PHASECHK\.\S*TRYWAIT")
NAMES = {"min": min, "max": max, "ceil": math.ceil, "__builtins__": {}}


def value(formula: str, sizes: dict[str, float]) -> float:
    """What a formula of the sizes comes to."""
    try:
        return float(eval(formula, NAMES, sizes))
    except Exception as error:
        raise ValueError(f"the formula {formula!r} of a kernel: {error}") from error


@dataclass
class Counted:
    """A warp's instructions, in all and by phase, and the loops whose trips nobody states."""

    total: Count = field(default_factory=Count)
    phases: dict[str, Count] = field(default_factory=dict)
    loops: list[str] = field(default_factory=list)
    unstated: list[str] = field(default_factory=list)


def count(function: Function, sizes: dict[str, float]) -> Counted:
    """The instructions that a warp of a kernel executes, on the average over the warps."""
    counted = Counted()
    trips = _trips(function, sizes, counted)
    for n, block in enumerate(function.blocks):
        if n not in function.reached:
            continue  # the slow path of a division, or another subroutine
        times = 1.0
        for loop, often in trips:
            if n in loop.blocks:
                times *= often
        shares = {i: _share(function.instructions[i], sizes) for i in block}
        if 2 * sum(share == 0.0 for share in shares.values()) > len(block):
            continue  # of the rest the compiler lost the lines
        for i in block:
            instruction = function.instructions[i]
            if instruction.name == "NOP":
                continue
            often = times * shares[i]
            counted.total.add(instruction, often)
            phase = counted.phases.setdefault(_phase(instruction), Count())
            phase.add(instruction, often)
    return counted


def _trips(
    function: Function, sizes: dict[str, float], counted: Counted
) -> list[tuple[Loop, float]]:
    """How often each loop is gone round, whenever it is entered."""
    stated: list[tuple[Loop, float, tuple]] = []
    used: dict[tuple, int] = {}
    working = (x for x in function.loops if not _waits(function, x))
    ordered = sorted(working, key=lambda x: (-len(x.blocks), x.header))
    own_of = [_own(function, loop) for loop in ordered]
    innermost = [_best_note(own, set(), innermost=True) for own in own_of]
    for loop, own in zip(ordered, own_of, strict=True):
        taken = {note for other, _, note in stated if other.blocks > loop.blocks}
        often_run = [x for x in own if _share(x, sizes) > 0.0]
        # what the compiler left of the loops inside, before or after them, does not tell
        inside = {
            best[:2]
            for other, best in zip(ordered, innermost, strict=True)
            if best is not None and other.blocks < loop.blocks
        }
        best = (
            _best_note(own, taken)
            or _best_note(often_run, taken | inside, 0.2)
            or _best_note([function.instructions[function.blocks[loop.last][-1]]], taken)
        )
        title = _title(function, loop, own)
        if best is None:
            if any(other.header == loop.header for other, _, _ in stated):
                continue  # an edge by which a loop that is stated goes on early
            if 2 * sum(_share(x, sizes) == 0.0 for x in own) > len(own):
                continue
            counted.unstated.append(title)
            continue
        file, note, stack = best
        formulas = [x.strip() for x in note.text.split("|")]
        key = (file, note, stack)
        formula = formulas[min(used.get(key, 0), len(formulas) - 1)]
        used[key] = used.get(key, 0) + 1
        often = value(formula, sizes | _where(stack, sizes))
        stated.append((loop, often, (file, note)))
        counted.loops.append(f"{title}: {formula} = {often:.1f}")
    return [(loop, often) for loop, often, _ in stated]


def _waits(function: Function, loop: Loop) -> bool:
    """Whether a loop only waits until a barrier in shared memory is passed, or tensor memory is
    free: it is counted once.
    """
    if len(loop.blocks) > 1:
        return False
    return any(WAITING.match(function.instructions[i].opcode) for i in function.blocks[loop.header])


def _own(function: Function, loop: Loop) -> list[Instruction]:
    """The instructions of a loop that are in no loop inside it."""
    inside = set().union(*(x.blocks for x in function.loops if x.blocks < loop.blocks))
    return [
        function.instructions[i]
        for n in loop.blocks - inside
        for i in function.blocks[n]
        if function.instructions[i].frames
    ]


def _best_note(
    own: list[Instruction], taken: set, part: float = 0.5, innermost: bool = False
) -> tuple | None:
    """The outermost source loop that most of a loop's own instructions lie in; or such a part of
    them, and most of those that lie in any.
    """
    inside: dict[tuple, int] = {}
    noted = 0
    depth: dict[tuple, tuple[int, int]] = {}
    for instruction in own:
        found = set()
        for level, place in enumerate(reversed(instruction.frames)):
            for note in annotations.notes(place.file):
                if note.kind == "trips" and note.first <= place.line <= note.last:
                    stack = instruction.frames[len(instruction.frames) - level :]
                    key = (place.file, note, stack)
                    if (place.file, note) not in taken:
                        found.add(key)
                        depth[key] = (level, note.first - note.last)
        noted += bool(found)
        for key in found:
            inside[key] = inside.get(key, 0) + 1
    least = max(part * len(own), 0.5 * noted)
    candidates = [key for key, n in inside.items() if n > least]
    choose = max if innermost else min
    return choose(candidates, key=depth.__getitem__, default=None)


def _where(stack: tuple, sizes: dict[str, float]) -> dict[str, float]:
    """The names that the callers of a loop give another meaning."""
    given = {}
    for place in stack:
        for note in annotations.notes(place.file):
            if note.kind == "where" and note.first <= place.line <= note.last:
                name, formula = note.text.split("=")
                given[name.strip()] = value(formula.strip(), sizes)
    return given


def _share(instruction: Instruction, sizes: dict[str, float]) -> float:
    share = 1.0
    for place in instruction.frames:
        for note in annotations.notes(place.file):
            if note.kind == "share" and note.first <= place.line <= note.last:
                share *= value(note.text, sizes)
    return share


def _phase(instruction: Instruction) -> str:
    phase = ""
    for place in reversed(instruction.frames):
        phase = annotations.phase(place.file, place.line) or phase
    return phase


def _title(function: Function, loop: Loop, own: list[Instruction]) -> str:
    first = function.instructions[function.blocks[loop.header][0]].address
    size = sum(len(function.blocks[n]) for n in loop.blocks)
    lines: dict[str, int] = {}
    for instruction in own:
        place = instruction.frames[0]
        where = f"{place.file.rsplit('/', 1)[-1]}:{place.line}"
        lines[where] = lines.get(where, 0) + 1
    most = sorted(lines, key=lines.__getitem__, reverse=True)[:3]
    return f"loop at {first:#06x}, {size} instructions, {' '.join(most)}"
