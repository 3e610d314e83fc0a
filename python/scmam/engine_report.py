"""The engine demo's report: a folder with report.html, report.md, table.csv, the picture and the
environment.
"""

import base64
import csv
import html
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from torch import Tensor

from mam_kernels.testing.side_by_side import PAPER, Row

from .data.sparse import SparseExpression
from .errors import ReportError

PICTURE = "hidden_genes.png"
PAGE = "report.html"
HEADINGS = (
    "direction",
    "backend and layout",
    "cells a call",
    "µs a cell",
    "spread",
    "times as fast",
    "peak memory",
    "of the inputs",
)


@dataclass(frozen=True)
class Sizing:
    """The comparison at one size of the cells."""

    title: str
    positions: int
    rows: list[Row]

    def best(self, direction: str) -> Row:
        """The fastest row of a direction that is not the paper computation."""
        rows = (row for row in self.rows if row.what == direction and row.contender != PAPER)
        return min(rows, key=lambda row: row.us_a_cell)

    def as_text(self) -> str:
        """The table, aligned for a terminal."""
        lines = [HEADINGS, *map(cells_of_row, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [str.ljust] * 2 + [str.rjust] * (len(HEADINGS) - 2)
        text = [
            "  ".join(map(lambda align, cell, width: align(cell, width), aligned, line, widths))
            for line in lines
        ]
        return "\n".join([self.title, "", text[0], "-" * len(text[0]), *text[1:]])

    def as_markdown(self) -> str:
        """The table in Markdown."""
        lines = [
            HEADINGS,
            ("---",) * 2 + ("---:",) * (len(HEADINGS) - 2),
            *map(cells_of_row, self.rows),
        ]
        return "\n".join(["| " + " | ".join(line) + " |" for line in lines])

    def as_html(self) -> str:
        """The table in HTML, the paper computation set off from the rest."""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
        body = "".join(
            f"<tr{' class=paper' if row.contender == PAPER else ''}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells_of_row(row))
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class GeneMasks:
    """How often each gene is hidden."""

    temperature: float
    hidden: Tensor  # (genes,) share of all masks, drawn by attention
    uniform: Tensor  # (genes,) the same, drawn uniformly with the same number of hidden genes
    entropy: float  # of the distribution, over its maximum; mean over cells
    trials: int  # masks behind each share


@dataclass(frozen=True)
class Results:
    """Everything that the demo found."""

    cells: SparseExpression
    sizings: tuple[Sizing, ...]
    masks: tuple[GeneMasks, ...]
    mask_ratio: float
    environment: dict


def cells_of_row(row: Row) -> tuple[str, ...]:
    """A row as text, one item a column of HEADINGS."""
    time = f"{row.us_a_cell:,.0f}" if row.us_a_cell >= 100 else f"{row.us_a_cell:.1f}"
    memory = "?" if row.peak.bytes is None else f"{row.peak.bytes / 2**20:,.1f} MiB"
    multiple = "?" if row.memory_ratio is None else f"{row.memory_ratio:,.1f} ×"
    return (
        row.what,
        row.contender,
        str(row.cells),
        time,
        f"{row.timing.spread:.0%}",
        as_ratio(row.ratio),
        memory,
        multiple,
    )


def as_ratio(ratio: float | None) -> str:
    """A ratio to the baseline, the baseline's own being 1."""
    if ratio is None:
        return "1"
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def write_report(folder: Path, results: Results) -> Path:
    """Write the report into a fresh folder, then give it its name, so that there is never half a
    report; returns the page's path.

    Raises:
        ReportError: something else than an earlier report is in the way, or the place cannot be
            written to.
    """
    folder = Path(folder).absolute()
    if (
        folder.exists()
        and not (folder / PAGE).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise ReportError(f"{folder}: exists and is not a report; give another folder with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ReportError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --out"
        ) from error
    try:
        _fill(unfinished, results)
        unfinished.chmod(0o755)
        _replace(folder, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / PAGE


def _replace(folder: Path, finished: Path) -> None:
    if folder.exists():
        earlier = Path(tempfile.mkdtemp(prefix=f".{folder.name}-earlier-", dir=folder.parent))
        os.replace(folder, earlier / folder.name)
        os.replace(finished, folder)
        shutil.rmtree(earlier)
    else:
        os.replace(finished, folder)


def _fill(folder: Path, results: Results) -> None:
    draw_picture(folder / PICTURE, results)
    (folder / "environment.json").write_text(json.dumps(results.environment, indent=2) + "\n")
    (folder / "report.md").write_text(_markdown(results))
    (folder / PAGE).write_text(_page(results, (folder / PICTURE).read_bytes()))
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("size", *results.sizings[0].rows[0].record()))
        for sizing in results.sizings:
            writer.writerows((sizing.title, *row.record().values()) for row in sizing.rows)


def draw_picture(path: Path, results: Results) -> None:
    """How often each gene is hidden against its mean expression, one panel a temperature, attention
    beside uniform.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mean = results.cells.mean_expression()
    style = {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1,
            len(results.masks),
            figsize=(6 * len(results.masks), 4.8),
            sharey=True,
            layout="constrained",
        )
        for axis, masks in zip(axes, results.masks, strict=True):
            axis.scatter(
                mean,
                100 * masks.uniform,
                s=12,
                color="#9aa5b1",
                alpha=0.7,
                linewidths=0,
                label="uniform masking",
            )
            axis.scatter(
                mean,
                100 * masks.hidden,
                s=12,
                color="#0b7285",
                alpha=0.7,
                linewidths=0,
                label="attention masking (MAM)",
            )
            axis.axhline(
                100 * results.mask_ratio,
                color="#343a40",
                linewidth=0.8,
                linestyle="--",
                label="mask ratio",
            )
            axis.set_title(
                f"{_temperature_name(masks.temperature)}\nmask entropy {masks.entropy:.4f} of uniform",
                fontsize=11,
            )
            axis.set_xlabel(f"mean expression of the gene ({results.cells.unit}, zeros included)")
        axes[0].set_ylabel("masks in which the gene is hidden (%)")
        axes[0].set_ylim(0, None)
        axes[-1].legend(loc="best", frameon=False, markerscale=1.8)
        figure.suptitle(
            f"How often each of {len(mean)} genes is hidden, over {results.masks[0].trials:,} masks",
            fontsize=13,
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _temperature_name(temperature: float) -> str:
    return "temperature 1, as published" if temperature == 1.0 else f"temperature {temperature:g}"


def _findings(results: Results, emphasis: Callable[[str], str]) -> list[str]:
    """What the numbers say, a sentence each."""
    sentences = []
    for sizing in results.sizings:
        forward, both = sizing.best("forward"), sizing.best("forward + backward")
        times = [emphasis(f"{as_ratio(row.ratio)} times") for row in (forward, both)]
        sentences.append(
            f"{sizing.title}. Forward, the fastest is {forward.contender}: {times[0]} as fast as the paper computation."
            f" Forward and backward it is {both.contender}: {times[1]} as fast."
        )
    mean = results.cells.mean_expression()
    highest = mean >= mean.quantile(0.95)
    for masks in results.masks:
        name = _temperature_name(masks.temperature)
        sentences.append(
            f"{name[0].upper()}{name[1:]}: the masks have {emphasis(f'{masks.entropy:.4f}')} of the entropy of uniform masks. The"
            f" twentieth of the genes with the highest mean expression is hidden in {emphasis(f'{masks.hidden[highest].mean():.0%}')}"
            f" of them; under uniform masking it would be {masks.uniform[highest].mean():.0%}."
        )
    sentences.append(
        "The latents are untrained: what is seen here is what random attention does to these values, and at temperature 1 that is"
        " close to uniform masking. What training makes of it, this demo does not show."
    )
    return sentences


METHOD = (
    "Every ratio comes from one process, on the same cells and the same weights, timed in turns. Times are medians, and the spread"
    " is the width of the middle 60 % of the samples. Before anything is timed, each backend's importance, context, penalty,"
    " gradients and masks are held against the paper computation in float64, and a disagreement stops the run. The paper"
    " computation is the published program in PyTorch: project the values, MultiheadAttention with per-head weights, sum over heads"
    " and latents, one torch.multinomial a cell. It and the reference take fewer cells in a call, because of their memory; times"
    " count per cell. Peak memory is that of one call beyond its inputs and outputs, for as many cells as the call takes, and is"
    " also given as a multiple of the inputs. At the published size each cell's own non-zero values are spread, with repetition,"
    " over more genes."
)


def machine_name(environment: dict) -> str:
    """The device in words: the GPU where one was used, else the processor and its cores."""
    if "gpu" in environment:
        return environment["gpu"]["name"]
    return f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads"


def _markdown(results: Results) -> str:
    machine = f"{results.cells.source}; {machine_name(results.environment)}; {results.environment['date']}"
    findings = [f"- {sentence}" for sentence in _findings(results, lambda text: f"**{text}**")]
    parts = ["# The masking step on real cells", "", machine, "", *findings, ""]
    for sizing in results.sizings:
        parts += [f"## {sizing.title}", "", sizing.as_markdown(), ""]
    parts += [
        "## Which genes are hidden",
        "",
        f"![hidden genes]({PICTURE})",
        "",
        "## How this was measured",
        "",
        METHOD,
        "",
    ]
    return "\n".join([*parts, "The machine and the versions are in environment.json.", ""])


def _page(results: Results, picture: bytes) -> str:
    published = results.sizings[-1]
    forward, both = published.best("forward"), published.best("forward + backward")
    tables = "".join(
        f"<h2>{html.escape(sizing.title)}</h2>{sizing.as_html()}" for sizing in results.sizings
    )
    return PAGE_TEMPLATE.substitute(
        source=html.escape(
            f"{results.cells.values.shape[0]} cells, {len(results.cells.genes)} genes, from {results.cells.source}"
        ),
        machine=html.escape(machine_name(results.environment)),
        date=html.escape(results.environment["date"].partition("T")[0]),
        forward=f"{as_ratio(forward.ratio)} ×",
        both=f"{as_ratio(both.ratio)} ×",
        microseconds=f"{forward.us_a_cell:,.0f} µs",
        entropy=f"{results.masks[0].entropy:.4f}",
        positions=f"{published.positions:,}",
        findings="".join(
            f"<li>{sentence}</li>"
            for sentence in _findings(results, lambda text: f"<b>{html.escape(text)}</b>")
        ),
        tables=tables,
        picture=base64.b64encode(picture).decode(),
        method=html.escape(METHOD),
        environment=html.escape(json.dumps(results.environment, indent=2)),
    )


PAGE_TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The masking step on real cells</title>
<style>
  :root { --ink: #212529; --quiet: #5c6770; --line: #dee2e6; --accent: #0b7285; --paper: #f8f9fa; }
  body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
  h1 { font-size: 1.9rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
  .quiet { color: var(--quiet); margin: .3rem 0 1.6rem; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; }
  .card { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem; }
  .card b { display: block; font-size: 1.7rem; color: var(--accent); line-height: 1.2; }
  .card span { color: var(--quiet); font-size: .88rem; }
  li { margin: .45rem 0; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
  th, td { padding: .42rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
  th { color: var(--quiet); font-weight: 600; } th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
  tr.paper td { background: var(--paper); color: var(--quiet); border-top: 2px solid var(--line); }
  img { width: 100%; border: 1px solid var(--line); border-radius: .6rem; }
  details { margin-top: 1.5rem; } pre { background: var(--paper); padding: 1rem; overflow-x: auto; font-size: .82rem; }
</style>
</head>
<body>
<h1>The masking step on real cells</h1>
<p class="quiet">$source<br>$machine · $date</p>
<div class="cards">
  <div class="card"><b>$forward</b><span>as fast as the paper computation, forward, $positions genes</span></div>
  <div class="card"><b>$both</b><span>as fast, forward and backward</span></div>
  <div class="card"><b>$microseconds</b><span>a cell from values to mask and context</span></div>
  <div class="card"><b>$entropy</b><span>entropy of the masks at temperature 1; 1 is uniform</span></div>
</div>
<ul>$findings</ul>
$tables
<h2>Which genes are hidden</h2>
<img alt="Share of masks that hide each gene against its mean expression" src="data:image/png;base64,$picture">
<h2>How this was measured</h2>
<p>$method</p>
<details><summary>Machine and versions</summary><pre>$environment</pre></details>
</body>
</html>
""")
