"""The pictures of a benchmark: score against share, what moves scores and what does not, and
learning curves.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawing import CLASSES, INK, Drawing, Options
from ..report.page import environment
from ..storage import write_file
from .arms import ARMS, CORRUPTIONS, SHARES, UNIFORM, UNTRAINED, ZEROS
from .folder import read_curves, read_runs
from .summary import choices_of, summarize

PAGE = "benchmark.html"
TITLES = {
    "probe": "linear probe, macro-F1",
    "fine-tuning": "fine-tuning, macro-F1",
    "k-nn": "nearest neighbours, macro-F1",
    "ari": "k-means, adjusted Rand index",
    "silhouette": "silhouette of the cell types",
}
PANEL, ROW, LABELS = 190, 19, 330  # pixels: a panel's width, a row's height, the labels of rows
WIDE, HIGH, ABREAST = 300, 230, 3  # pixels of a panel of lines, and how many stand side by side
LINES = {
    f"{zeros}{ending}": (CLASSES[colour], "--" if ending else "-")
    for colour, zeros in enumerate(ZEROS)
    for ending in CORRUPTIONS
}
"""Colour and line style of a line of share arms: the zeros, and the corruption."""

DODGE = 1.1  # per cent of the non-zeros, between the intervals of two lines at one share
CURVES = (UNIFORM, "50-tenth", "70-tenth", "mam", "random-ratio", "mam-reward-50")
"""Arms whose learning curves are drawn, where they are there; others are in ``curves.csv``."""

Key = tuple[str, int]  # data and genes


def draw_page(folder: str | Path) -> Path:
    """Write ``benchmark.html``: one file that opens without a network; returns its path."""
    folder = Path(folder)
    summary, curves, choices = summarize(folder), read_curves(folder), choices_of(read_runs(folder))
    drawings = [
        drawing
        for metric in TITLES
        for drawing in (
            *(shares_drawing(part, metric) for part in by_genes(summary)),
            *(arms_drawing(part, metric) for part in by_genes(summary)),
            curves_drawing(curves, metric),
        )
        if drawing is not None
    ]
    choices = choices[choices.metric.isin(TITLES)]
    page = environment().get_template("benchmark.html")
    text = page.render(drawings=drawings, choices=list(choices.itertuples()), titles=TITLES)
    write_file(folder / PAGE, text)
    return folder / PAGE


def by_genes(summary: pandas.DataFrame) -> list[pandas.DataFrame]:
    """The rows with the fewest genes, and those with more, which are drawn apart."""
    fewest = summary.genes == summary.genes.min()
    return [part for part in (summary[fewest], summary[~fewest]) if not part.empty]


def shares_drawing(summary: pandas.DataFrame, metric: str) -> Drawing | None:
    """Difference to uniform over all positions against the share of the non-zeros that is hidden,
    with intervals: a panel for each data set, a colour for each share of the zeros, broken lines
    where the decoder's input is corrupted 80/10/10; hollow: one seed, no interval. None where there
    is nothing to draw.
    """
    arms = {f"{share}-{line}" for share in SHARES for line in LINES}
    rows = _against(summary, metric, UNIFORM)
    rows = rows[rows.arm.isin(arms)]
    panels = dict(list(rows.groupby(["data", "genes"], sort=False)))
    if not panels:
        return None

    def paint(axes: Axes, group: pandas.DataFrame) -> None:
        axes.axhline(0, color=INK, linewidth=1)
        for place, line in enumerate(LINES):
            _share_line(axes, group.set_index("arm"), line, (place - (len(LINES) - 1) / 2) * DODGE)
        axes.set_xticks(SHARES)
        axes.set_xlim(SHARES[0] - 5, SHARES[-1] + 5)

    title, alt = TITLES[metric], "points over uniform masks against the share of hidden non-zeros"
    return _lines_drawing(
        f"{title}: {alt}.", title, panels, paint, "non-zeros that are hidden, %",
        "points over uniform over all",
    )  # fmt: skip


def _share_line(axes: Axes, group: pandas.DataFrame, line: str, shift: float) -> None:
    """Differences of the arms of a line, with intervals."""
    present = [share for share in SHARES if f"{share}-{line}" in group.index]
    if not present:
        return
    rows = group.loc[[f"{share}-{line}" for share in present]]
    colour, style = LINES[line]
    zeros, _, mixed = line.partition("-")
    names = {"tenth": "a tenth of that", "same": "as many", "none": "none"}
    label = f"zeros: {names[zeros]}, {'80/10/10' if mixed else 'mask tokens'}"
    dots: Options = {"color": colour, "marker": "o", "markersize": 3.5}
    places, single = np.array(present) + shift, rows.low.isna().to_numpy()  # of one seed
    axes.plot(places, rows.difference, ls=style, label=label, **dots)
    axes.vlines(places, rows.low, rows.high, color=colour, linewidth=1, alpha=0.7)
    axes.plot(places[single], rows.difference[single], ls="none", mfc="white", **dots)


def curves_drawing(curves: pandas.DataFrame, metric: str) -> Drawing | None:
    """Score against the steps of pretraining: a panel for each data set, a colour for each of
    `CURVES`; thick lines are means over the seeds that all of them have, thin lines the seeds. None
    where there is nothing to draw.
    """
    rows = curves[(curves.metric == metric) & (curves.part == "rest")]
    panels = {
        key: group
        for key, group in rows.groupby(["data", "genes"], sort=False)
        if group.arm.isin(CURVES).any()
    }
    if not panels:
        return None

    def paint(axes: Axes, group: pandas.DataFrame) -> None:
        table = group.pivot(index=["arm", "seed"], columns="step", values="value")
        arms = [arm for arm in CURVES if arm in group.arm.values]
        seeds = [set(table.loc[arm].index) for arm in arms]
        # The first weights of a seed are those of every arm.
        start = table.query(f"arm == {UNTRAINED!r}").droplevel("arm")
        for arm in arms:
            lines = table.loc[arm].combine_first(start)
            lines = 100 * lines.loc[sorted(set.intersection(*seeds))]
            look: Options = {"color": CLASSES[CURVES.index(arm)]}
            axes.plot(lines.columns, lines.T, linewidth=0.6, alpha=0.5, **look)
            axes.plot(lines.columns, lines.mean(), marker="o", markersize=4, label=arm, **look)

    title = TITLES[metric]
    return _lines_drawing(
        f"{title}: points against the steps of pretraining.", title, panels, paint,
        "steps of pretraining", "points", sharey=False,
    )  # fmt: skip


def _lines_drawing(
    alt: str,
    title: str,
    panels: dict[Key, pandas.DataFrame],
    paint: Callable[[Axes, pandas.DataFrame], None],
    xlabel: str,
    ylabel: str,
    sharey: bool = True,
) -> Drawing:
    """Panels of lines in rows, under one legend."""
    rows, columns = -(-len(panels) // ABREAST), min(ABREAST, len(panels))

    def draw(figure: Figure) -> None:
        every = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flatten()
        handles: dict[str, Any] = {}
        for axes, group in _titled(every, panels, ", "):
            axes.tick_params(labelbottom=True)
            paint(axes, group)
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel(xlabel, fontsize=11)
        figure.supylabel(ylabel, fontsize=11)
        place: Options = {"loc": "outside upper right", "ncols": columns, "frameon": False}
        figure.legend(handles.values(), handles.keys(), fontsize=9, **place)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")

    return Drawing(70 + WIDE * columns, 110 + HIGH * rows, alt, draw)


def arms_drawing(
    summary: pandas.DataFrame,
    metric: str,
    against: str = "same share",
    arms: Sequence[str] = tuple(ARMS),
) -> Drawing | None:
    """Difference of each of the arms to uniform masks over all positions, or to those that hide as
    much, with its interval (hollow: one seed, no interval): a panel for each data set. None where
    there is nothing to draw.
    """
    rows = _against(summary, metric, against)
    shown = [arm for arm in arms if arm in set(rows.arm)]
    rows = rows[rows.arm.isin(shown)]
    panels: dict[Key, pandas.DataFrame] = dict(list(rows.groupby(["data", "genes"], sort=False)))
    if not shown:
        return None
    beside = "uniform over all" if against == UNIFORM else "uniform at the same shares"

    def paint(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, group in _titled(every, panels, "\n"):
            axes.axvline(0, color=INK, linewidth=1)
            for row in group.itertuples():
                place = shown.index(row.arm)
                colour = CLASSES[0] if row.arm.startswith("mam") else CLASSES[1]
                face = "white" if row.low != row.low else colour
                axes.plot([row.low, row.high], [place] * 2, color=colour, linewidth=2)
                axes.plot(row.difference, place, "o", color=colour, mfc=face, markersize=5)
            axes.set_yticks(range(len(shown)), [ARMS[arm].what for arm in shown], fontsize=9)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        figure.supxlabel(f"points over {beside}", fontsize=11)
        figure.suptitle(TITLES[metric], fontsize=12, x=0.01, ha="left")

    alt = f"{TITLES[metric]}: arms minus {beside}, with intervals."
    return Drawing(LABELS + PANEL * len(panels), 120 + ROW * len(shown), alt, paint)


def _titled(
    every: Iterable[Axes], panels: dict[Key, pandas.DataFrame], between: str
) -> Iterator[tuple[Axes, pandas.DataFrame]]:
    """Axes, with data and genes as their title, and the rows that go into each."""
    for axes, ((data, genes), group) in zip(every, panels.items(), strict=False):
        axes.set_title(f"{data}{between}{genes} genes", fontsize=10)
        yield axes, group


def _against(summary: pandas.DataFrame, metric: str, against: str) -> pandas.DataFrame:
    """Rows of one metric, on the cells that are scored, against one reference."""
    scored = summary[(summary.part == "rest") & (summary.metric == metric)]
    return scored[(scored.against == against) & (scored.seeds > 0)]
