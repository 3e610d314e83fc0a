"""The tables of README.md, made from the committed measurements: python -m benchmarks.readme writes
them, --check only compares.
"""

import csv
import json
import sys
from pathlib import Path

from . import results

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- measured:begin -->\n", "<!-- measured:end -->\n"
STUDY_BEGIN, STUDY_END = "<!-- study:begin -->\n", "<!-- study:end -->\n"
MASKING = (
    results.COMMITTED / "masking"
)  # a folder for each set of cells, with files of a study folder


def table(study: dict, sweeps: dict | None = None, share: dict | None = None) -> str:
    """The measurements of study.json, and where they are there of sweeps.json and share.json, in
    Markdown.
    """
    machine, versions = study["environment"], study["environment"]["versions"]
    lines = [
        "| on two CPU cores | baseline | ours | ratio | first call | memory |",
        "|---|---|---|---|---|---|",
    ]
    for title, rows in study["sections"].items():
        lines += _section(title, rows)
    lines += [
        "",
        *_batches(study["batches"], next(iter(study["sections"].values()))),
        *_rivals(study["sections"]),
    ]
    lines += [*_curves(sweeps), *_shares(share)]
    lines += [
        "",
        f"Medians of {study['sizes']['samples']} interleaved measurements in one process, each of calls in a row for 20 ms or more, with "
        f"inputs that take turns; on the value path {study['sizes']['cells']} cells a call, the paper computation "
        f"{study['sizes']['paper_cells']}. First call: the ratio of the first of each row of calls, which finds the caches full of another",
        "contender's data and torch's threads still spinning on the other core.",
        "Memory is the peak beyond inputs and outputs, in units of the inputs.",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}, torch {versions['torch']}, {machine['date'][:10]}.",
        "All rows, with their spread, are in [benchmarks/results/study.json](benchmarks/results/study.json). No GPU figure has been",
        "measured yet: what `benchmarks/NOTES.md` says of GPUs is predicted from bytes and operations.",
    ]
    return "\n".join(lines) + "\n"


def _batches(records: list[dict], value_path: list[dict]) -> list[str]:
    """How the ratio grows with the cells of a call."""
    baseline = {row["what"]: row["median_us"] for row in value_path if row["ratio"] is None}
    ratios: dict[str, list[str]] = {what: [] for what in baseline}
    for record in records:
        ratios[record["what"]].append(
            f"{baseline[record['what']] / record['median_us']:,.0f} × at {record['cells_per_call']}"
        )
    parts = [f"{what} {', '.join(some)}" for what, some in ratios.items()]
    return [
        f"A call has a fixed cost, so the ratio grows with its cells; dense values, inputs in cache: {'; '.join(parts)}."
    ]


def _rivals(sections: dict[str, list[dict]]) -> list[str]:
    """What else was measured on the same cells, for scale."""
    found: dict[str, list[str]] = {}
    for title, rows in sections.items():
        for row in rows:
            if row["ratio"] is not None and not row["contender"].startswith(("cpu", "reference")):
                where = (
                    f"{_time(row['median_us'])} ({title.partition(':')[0].lower()}, {row['what']})"
                )
                found.setdefault(row["contender"], []).append(where)
    parts = [f"{name}: {', '.join(some)}" for name, some in found.items()]
    return ["", f"On the same cells, a cell: {'; '.join(parts)}."] if parts else []


def _curves(sweeps: dict | None) -> list[str]:
    """How the cost grows, and what the machine reaches on the simplest programs."""
    if sweeps is None:
        return []
    by_positions, by_cells = (
        sweeps["lines"][axis]["dense, forward"] for axis in ("positions", "cells")
    )
    copied, products = sweeps["ceilings"]["copied_bytes"], sweeps["ceilings"]["multiply_adds"]
    point = next(row for row in sweeps["rows"] if row["axis"] == "positions")
    floor = 9 * 19264 / copied * 1e6
    return [
        "",
        "![Cost of a masking step by positions, cells, density, latents and ratio](benchmarks/results/sweeps.svg)",
        "",
        f"The cost is a line in the positions ({1e3 * by_positions['us_each'] / point['cells']:.2f} ns each, forward, dense, "
        f"{point['cells']} cells a call, beside {by_positions['fixed_us']:,.0f} µs a call) and in the cells "
        f"({by_cells['us_each']:,.0f} µs each). "
        f"This machine copies {copied / 1e9:.1f} GB/s and multiplies and adds {products / 1e9:,.0f} G/s: moving a dense cell's "
        f"{9 * 19264 / 1e3:.0f} KB in and out takes it {floor:.0f} µs.",
    ]


def _shares(share: dict | None) -> list[str]:
    """Masking's share of a pretraining step, by size of the model."""
    if share is None:
        return []
    parts = []
    for record in share["shares"]:
        of = f"{record['size']}, {record['genes']} genes × {record['cells']}"
        parts.append(
            f"{100 * record['masking_share']:.2g} % of {_time(1e3 * record['step_ms'])} ({of})"
        )
    return [
        "",
        f"Masking's share of a pretraining step of `scmam`, forward and backward: {'; '.join(parts)}.",
    ]


def _section(title: str, rows: list[dict]) -> list[str]:
    baselines = {row["what"]: row for row in rows if row["ratio"] is None}
    lines = []
    for row in rows:
        if row["ratio"] is None or not row["contender"].startswith("cpu"):
            continue
        kind = row["contender"].partition(", ")[2]
        name = f"{title}, {row['what']}" + (f", {kind}" if kind else "")
        before, after = (_time(each["median_us"]) for each in (baselines[row["what"]], row))
        memory = row["peak_bytes_beyond_inputs_and_outputs"] / row["input_bytes"]
        ratio, first = (_ratio(row[key]) for key in ("ratio", "ratio_of_first_call"))
        lines.append(
            f"| {name} | {row['baseline']}, {before} a cell | {after} a cell | **{ratio} ×** | {first} × | {memory:.1f} × |"
        )
    return lines


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:,.1f} ms" if microseconds >= 1000 else f"{microseconds:,.0f} µs"


def comparison(folder: Path) -> str:
    """A comparison of maskings in Markdown: macro-F1 of each arm, and its difference to the
    reference arm.
    """
    study = json.loads((folder / "study.json").read_text())
    with open(folder / "summary.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "macro_f1"]
    cells, reference = study["cells"], study["reference"]
    seeds = len(study["seeds"])
    title = f"**{folder.name}**: {cells['num_cells']:,} cells, {cells['num_genes']:,} genes, {len(cells['classes'])} cell types, {seeds} seeds"
    baselines = [f"{row['arm']} {_points(row['mean'])}" for row in rows if not int(row["seeds"])]
    lines = [
        f"{title}; {_scored(folder)}on the data itself: {', '.join(baselines)}.",
        "",
        f"| arm | linear probe | minus {reference} | fine-tuning | minus {reference} |",
        "|---|---|---|---|---|",
    ]
    for arm in study["arms"]:
        methods = {row["method"]: row for row in rows if row["arm"] == arm}
        scores = [
            text
            for method in ("linear-probe", "fine-tuning")
            for text in _score(methods.get(method))
        ]
        lines.append(f"| `{arm}` | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def _scored(folder: Path) -> str:
    """Which of the cells the scores are of."""
    import yaml  # comes with the study layer

    evaluation = yaml.safe_load((folder / "config.yaml").read_text())["evaluation"]
    parts = [f"{evaluation['folds']} folds"]
    if evaluation.get("development"):
        parts[0] += f" of the {1 - evaluation['development']:.0%} that no setting was chosen on"
    if evaluation.get("train_cells"):
        parts.append(f"at most {evaluation['train_cells']} labelled cells to train on")
    return f"{', '.join(parts)}; "


def comparisons() -> str:
    """All committed comparisons, one after the other."""
    folders = sorted(path.parent for path in MASKING.glob("*/study.json"))
    return "\n".join(comparison(folder) for folder in folders)


def _score(row: dict[str, str] | None) -> tuple[str, str]:
    """Mean with the half width of its interval, and the difference with its interval; in points of
    100.
    """
    if row is None:
        return "–", "–"
    half = f" ± {_points(float(row['high']) - float(row['mean']))}" if row["low"] else ""
    if not row["difference"]:
        return _points(row["mean"]) + half, "–"
    interval = (
        f" [{_points(row['difference_low'], '+')}, {_points(row['difference_high'], '+')}]"
        if row["difference_low"]
        else ""
    )
    return _points(row["mean"]) + half, _points(row["difference"], "+") + interval


def _points(share: str | float, sign: str = "") -> str:
    text = f"{100 * float(share):{sign}.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def with_table(readme: str, study: dict) -> str:
    """The README with both tables between their marks."""
    measured = table(study, _committed("sweeps"), _committed("share"))
    return _between(_between(readme, BEGIN, END, measured), STUDY_BEGIN, STUDY_END, comparisons())


def _committed(name: str) -> dict | None:
    path = results.COMMITTED / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _between(text: str, begin: str, end: str, content: str) -> str:
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + content + end + after


def main(arguments: list[str] | None = None) -> int:
    """Write the tables, or with --check compare; returns the exit status."""
    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    study = json.loads((results.COMMITTED / "study.json").read_text())
    current = README.read_text()
    wanted = with_table(current, study)
    if check:
        if wanted != current:
            print(
                "README.md does not show the committed measurements: python -m benchmarks.readme",
                file=sys.stderr,
            )
        return int(wanted != current)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
