"""Where measurements go: a JSON file with everything, and a short table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mam_kernels.testing.side_by_side import Row

COMMITTED = Path(__file__).parent / "results"


def folder(named: Path | None) -> Path:
    """The folder named on the command line, or in OUT, or that of the committed results."""
    return named or Path(os.environ.get("OUT") or COMMITTED)


def save(target: Path, name: str, sections: dict[str, Sequence[Row]], **more: object) -> Path:
    """Write `name`.json: the rows of each section, and further entries."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{name}.json"
    unfinished = path.with_suffix(".partial")
    content = {
        **more,
        "sections": {title: [row.record() for row in rows] for title, rows in sections.items()},
    }
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)
    return path


def table(sections: dict[str, Sequence[Row]]) -> str:
    """The rows in short: time of a call and of a cell, ratio to the baseline, memory."""
    head = f"{'':46}{'a call':>12}{'a cell':>12}{'spread':>8}{'ratio':>10}{'first':>8}{'memory':>9}"
    lines = [
        head
        + "  (first: ratio of a call right after other work; memory beyond inputs and outputs, in "
        "units of the inputs)"
    ]
    for title, rows in sections.items():
        lines += ["", title]
        lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    ratio, first = (_ratio(x) for x in (row.ratio, row.ratio_of_first_call))
    memory = "?" if row.memory_ratio is None else f"{row.memory_ratio:,.1f}"
    name = f"  {row.what}: {row.contender}"
    call = _time(row.timing.median * 1e6)
    times = f"{call:>12}{_time(row.us_a_cell):>12}{row.timing.spread:>8.0%}"
    return f"{name:<46}{times}{ratio:>10}{first:>8}{memory:>9}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:,.1f}" if ratio < 10 else f"{ratio:,.0f}"


def _time(microseconds: float) -> str:
    if microseconds >= 1e5:
        return f"{microseconds / 1e3:,.0f} ms"
    return f"{microseconds:,.0f} us" if microseconds >= 100 else f"{microseconds:.2f} us"
