"""The tables of the documentation, made from the committed measurements.

``python -m benchmarks.tables`` writes them; ``--check`` only compares.
"""

import csv
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

from . import results

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- {}:begin -->\n", "<!-- {}:end -->\n"
MASKINGS = results.COMMITTED / "maskings"
RATES = {"0.002": "long_rate_0.002", "0.003": "long"}  # of learning: where its runs are
FEWEST_SEEDS = 2  # of a row that is shown: one seed has no interval
SHOWN_ARMS = (  # of the benchmark of maskings; all are in its summary.csv
    *("untrained", "uniform-token", "30-tenth", "50-tenth", "50-tenth-mixed", "50-same", "50-none"),
    *("70-tenth", "mam", "mam-mixed", "mam-published", "mam-sharp-50", "mam-reward-50"),
    *("expression-50", "random-ratio", "modules-50", "harder-50", "labels-50"),
)

HEADLINES = (  # the rows of the README: section, what, contender
    ("Value path", "forward", "cpu, dense"),
    ("Value path", "forward + backward", "cpu, dense"),
    ("Value path", "forward + backward", "cpu, sparse CSR"),
    ("Token path", "forward", "cpu"),
    ("Selection", "draw", "cpu"),
)


def headlines() -> str:
    """Five rows of measurements."""
    study = _committed("study")
    lines = [
        "| on two CPU cores, a cell | baseline | ours | ratio |",
        "|---|---|---|---|",
    ]
    rows = list(_rows(study))
    for section, what, contender in HEADLINES:
        title, baseline, row = next(
            found for found in rows
            if found[0].startswith(section)
            and (found[2]["what"], found[2]["contender"]) == (what, contender)
        )  # fmt: skip
        kind = contender.partition(", ")[2]
        name = f"{title}: {what}" + (f", {kind}" if kind else "")
        lines.append(
            f"| {name} | {row['baseline']}, {_time(baseline)} | {_time(row['median_us'])} "
            f"| **{_ratio(row['ratio'])} ×** |"
        )
    sizes = study["sizes"]
    return "\n".join(
        [
            *lines,
            "",
            f"L: genes of a cell. {sizes['cells']} cells a call on the value path. Medians; "
            f"{_machine(study)}. All rows: [docs/performance.md](docs/performance.md).",
        ]
    ) + "\n"  # fmt: skip


def measurements() -> str:
    """All measurements of study.json, and those of sweeps.json and share.json."""
    study, sweeps, share = _committed("study"), _committed("sweeps"), _committed("share")
    sizes = study["sizes"]
    lines = [
        "## Measured on a CPU",
        "",
        "| a cell | baseline | ours | ratio | first call | memory |",
        "|---|---|---|---|---|---|",
        *(_full_row(*found) for found in _rows(study)),
        "",
        f"Medians of {sizes['samples']} interleaved measurements in one process;",
        f"{_machine(study)}.",
        f"A measurement is of calls in a row for 20 ms or more, of {sizes['cells']} cells on the",
        f"value path ({sizes['paper_cells']} for the paper computation). *First call* is the ratio",
        "of the first of them, which finds the caches full of other data. *Memory* is the peak",
        "beyond inputs and outputs, in units of the inputs. Every row, with its spread:",
        "[study.json](../benchmarks/results/study.json).",
        *_batches(study["batches"], next(iter(study["sections"].values()))),
        *_rivals(study["sections"]),
        *_curves(sweeps),
        *_shares(share),
    ]
    return "\n".join(lines) + "\n"


def _machine(study: dict) -> str:
    machine = study["environment"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}, "
        f"torch {machine['versions']['torch']}, {machine['date'][:10]}"
    )


def _rows(study: dict) -> Iterator[tuple[str, float, dict]]:
    """Title, time of the baseline in µs, and the row, of every row of ours."""
    for title, rows in study["sections"].items():
        baselines = {row["what"]: row["median_us"] for row in rows if row["ratio"] is None}
        for row in rows:
            if row["ratio"] is not None and row["contender"].startswith("cpu"):
                yield title, baselines[row["what"]], row


def _full_row(title: str, baseline: float, row: dict) -> str:
    kind = row["contender"].partition(", ")[2]
    name = f"{title}, {row['what']}" + (f", {kind}" if kind else "")
    memory = row["peak_bytes_beyond_inputs_and_outputs"] / row["input_bytes"]
    ratio, first = _ratio(row["ratio"]), _ratio(row["ratio_of_first_call"])
    return (
        f"| {name} | {row['baseline']}, {_time(baseline)} | {_time(row['median_us'])} "
        f"| **{ratio} ×** | {first} × | {memory:.1f} × |"
    )


def _batches(records: list[dict], value_path: list[dict]) -> list[str]:
    """How the ratio grows with the cells of a call."""
    baseline = {row["what"]: row["median_us"] for row in value_path if row["ratio"] is None}
    counts = sorted({record["cells_per_call"] for record in records})
    lines = [
        "",
        "A call has a fixed cost, so the ratio grows with its cells (dense, inputs in cache):",
        "",
        "| cells a call | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for what in baseline:
        ratios = {
            record["cells_per_call"]: baseline[what] / record["median_us"]
            for record in records
            if record["what"] == what
        }
        lines.append(f"| {what} | " + " | ".join(f"{_ratio(ratios[n])} ×" for n in counts) + " |")
    return lines


def _rivals(sections: dict[str, list[dict]]) -> list[str]:
    """What else was measured on the same cells, for scale."""
    lines = [
        "",
        "Other ways to compute on the same cells:",
        "",
        "| a cell | | time |",
        "|---|---|---|",
    ]
    for title, rows in sections.items():
        for row in rows:
            if row["ratio"] is not None and not row["contender"].startswith(("cpu", "reference")):
                lines.append(
                    f"| {title}, {row['what']} | {row['contender']} | {_time(row['median_us'])} |"
                )
    return lines


def _curves(sweeps: dict) -> list[str]:
    """How the cost grows, and what the machine reaches on the simplest programs."""
    by_positions, by_cells = (
        sweeps["lines"][axis]["dense, forward"] for axis in ("positions", "cells")
    )
    copied, products = sweeps["ceilings"]["copied_bytes"], sweeps["ceilings"]["multiply_adds"]
    point = next(row for row in sweeps["rows"] if row["axis"] == "positions")
    each, fixed = 1e3 * by_positions["us_each"] / point["cells"], by_positions["fixed_us"]
    return [
        "",
        "![Cost by positions, cells, density, latents, ratio](../benchmarks/results/sweeps.svg)",
        "",
        f"Cost is linear in the number of genes ({each:.2f} ns each, forward, dense, "
        f"{point['cells']} cells a call, beside {fixed:,.0f} µs a call)",
        f"and in the number of cells ({by_cells['us_each']:,.0f} µs each). That machine copies "
        f"{copied / 1e9:.1f} GB/s and does {products / 1e9:,.0f} G multiply-adds/s "
        f"({_machine(sweeps)}).",
    ]


def _shares(share: dict) -> list[str]:
    """Masking's share of a pretraining step, by size of the model."""
    lines = [
        "",
        "Masking's share of a pretraining step of `scmam`, forward and backward:",
        "",
        "| model | genes × cells | step | masking |",
        "|---|---|---|---|",
    ]
    for record in share["shares"]:
        lines.append(
            f"| {record['size']} | {record['genes']} × {record['cells']} "
            f"| {_time(1e3 * record['step_ms'])} | {100 * record['masking_share']:.2g} % |"
        )
    return lines


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:,.1f} ms" if microseconds >= 1000 else f"{microseconds:,.0f} µs"


def maskings() -> str:
    """The benchmark of maskings in Markdown: for arms and data sets, with the fewest genes, the
    difference of the linear probe's macro-F1 to uniform masks over all positions, with its interval
    and its seeds.
    """
    rows = [
        row
        for row in _read(MASKINGS / "summary.csv")
        if (row["part"], row["metric"], row["against"]) == ("rest", "probe", "uniform")
        and int(row["seeds"]) >= FEWEST_SEEDS
        and row["arm"] in SHOWN_ARMS
    ]
    fewest = min((row["genes"] for row in rows), key=int)
    rows = [row for row in rows if row["genes"] == fewest]
    sets = list(dict.fromkeys((row["data"], row["genes"]) for row in rows))
    found = {(row["arm"], row["data"], row["genes"]): row for row in rows}
    titles = [f"{data.split('_')[0]}, {genes}" for data, genes in sets]
    lines = [f"| arm | {' | '.join(titles)} |", "|---" * (1 + len(sets)) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [_difference(found.get((arm, *one))) for one in sets]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def choices() -> str:
    """The arms that development cells choose, in Markdown, with their scores on the other cells."""
    lines = ["| cells | chosen | on development cells | on the others |", "|---|---|---|---|"]
    for row in _read(MASKINGS / "choices.csv"):
        if row["metric"] == "probe":
            name = f"{row['data'].split('_')[0]}, {row['genes']}"
            chosen = f"`{row['arm']}`, of {row['candidates']}"
            ending = " others" if row["other_seeds"] == "True" else ""
            ahead = _points(row["on_development"])
            lines.append(f"| {name} | {chosen} | {ahead} | {_difference(row)}{ending} |")
    return "\n".join(lines) + "\n"


def rates() -> str:
    """The linear probe's macro-F1 at two rates of learning in Markdown: the mean over the seeds
    that were run at the lower one.
    """
    scores: dict[tuple[str, ...], float] = {}
    for rate, folder in RATES.items():
        for row in _read(MASKINGS / folder / "runs.csv"):
            if (row["part"], row["metric"], row["genes"]) == ("rest", "probe", "2000"):
                scores[rate, row["data"], row["arm"], row["seed"]] = float(row["value"])
    lower = next(iter(RATES))
    seeds: dict[str, list[str]] = {}  # of each data set
    for rate, data, arm, seed in scores:
        if (rate, arm) == (lower, "uniform"):
            seeds.setdefault(data, []).append(seed)
    titles = [f"{data.split('_')[0]}, {rate}" for data in seeds for rate in RATES]
    lines = [f"| arm | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for arm in ("uniform", "50-tenth", "mam-reward-50"):
        cells = []
        for data, chosen in seeds.items():
            for rate in RATES:
                found = [scores.get((rate, data, arm, seed)) for seed in chosen]
                known = [100 * score for score in found if score is not None]
                cells.append(f"{mean(known):.1f}" if len(known) == len(chosen) else "–")
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _difference(row: dict[str, str] | None) -> str:
    """Points with the interval and the number of seeds."""
    if row is None:
        return "–"
    middle, low, high = (_points(row[name]) for name in ("difference", "low", "high"))
    return f"{middle} [{low}, {high}], {row['seeds']}"


def _points(value: str) -> str:
    text = f"{float(value):+.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"measured": headlines},
    "docs/performance.md": {"measured": measurements},
    "docs/study.md": {"maskings": maskings, "choices": choices, "rates": rates},
}
"""File -> name of a pair of marks in it -> what stands between them."""


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A page with its tables between their marks."""
    for name, table in tables.items():
        before, _, rest = text.partition(BEGIN.format(name))
        _, _, after = rest.partition(END.format(name))
        text = before + BEGIN.format(name) + _wrapped(table()) + END.format(name) + after
    return text


def _wrapped(text: str) -> str:
    """Prose in lines of 100 columns; headings, pictures and tables stay as they are."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(("|", "!", "#")):
            lines.append(paragraph)
        else:
            lines.append(textwrap.fill(paragraph, 100, break_on_hyphens=False))
    return "\n\n".join(lines).rstrip("\n") + "\n"


def _committed(name: str) -> dict:
    return json.loads((results.COMMITTED / f"{name}.json").read_text())


def main(arguments: list[str] | None = None) -> int:
    """Write the tables, or with --check compare; returns the exit status."""
    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    status = 0
    for page, tables in TABLES.items():
        path = ROOT / page
        current = path.read_text()
        wanted = with_tables(current, tables)
        if not check:
            path.write_text(wanted)
        elif wanted != current:
            print(
                f"{page} does not show the committed measurements: python -m benchmarks.tables",
                file=sys.stderr,
            )
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
