"""The pictures of a benchmark: score against share, and what moves scores and what does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing import CLASSES, INK, QUIET, Drawing, Options
from ..storage import write_file
from .arms import ARMS, CORRUPTIONS, SHARES, UNIFORM, ZEROS
from .summary import summarize

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "benchmark.html"
TITLES = {
    "probe": "linear probe, macro-F1",
    "k-nn": "nearest neighbours, macro-F1",
    "ari": "k-means, adjusted Rand index",
    "silhouette": "silhouette of the cell types",
}
PANEL, ROW, LABELS = 190, 19, 330  # pixels: a panel's width, a row's height, the labels of rows
STYLES: dict[str, Options] = {"tenth": {"ls": "-"}, "same": {"ls": "--"}, "none": {"ls": ":"}}


def draw_page(folder: str | Path) -> Path:
    """Write ``benchmark.html``: one file that opens without a network; returns its path."""
    folder = Path(folder)
    summary = summarize(folder)
    drawings = [
        drawing
        for metric in TITLES
        for drawing in (shares_drawing(summary, metric), arms_drawing(summary, metric))
        if drawing is not None
    ]
    figures = "\n".join(f"<figure>{drawing.svg()}</figure>" for drawing in drawings)
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark of maskings</title>'
    )
    write_file(
        folder / PAGE, f"{head}<body><h1>Benchmark of maskings</h1>\n{figures}</body></html>\n"
    )
    return folder / PAGE


def shares_drawing(summary: "pandas.DataFrame", metric: str) -> Drawing | None:
    """Difference to uniform over all positions against the share of the non-zeros that is hidden:
    a panel for each data set, a line for each share of the zeros, grey where the decoder's input
    is corrupted 80/10/10; hollow: one seed, no interval. None where there is nothing to draw.
    """
    rows = _against(summary, metric, UNIFORM)
    panels = {
        key: group.set_index("arm")
        for key, group in rows.groupby(["data", "genes"], sort=False)
        if group.arm.isin(_share_arms()).any()
    }
    if not panels:
        return None

    def paint(figure: "Figure") -> None:
        for axes, group in _panels(figure, panels):
            axes.axhline(0, color=INK, linewidth=1)
            for zeros in ZEROS:
                for ending in CORRUPTIONS:
                    _line(axes, group, zeros, ending)
            axes.set_xticks(SHARES)
        figure.supxlabel("non-zeros that are hidden, %", fontsize=11)
        figure.supylabel("points over uniform", fontsize=11)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
        figure.suptitle(TITLES[metric], fontsize=12, x=0.01, ha="left")

    alt = f"{TITLES[metric]}: points over uniform masks against the share of hidden non-zeros."
    return Drawing(90 + PANEL * len(panels), 300, alt, paint)


def arms_drawing(
    summary: "pandas.DataFrame", metric: str, against: str = "same share"
) -> Drawing | None:
    """Difference of each arm to uniform masks over all positions, or to those that hide as much,
    with its interval (hollow: one seed, no interval): a panel for each data set. None where there
    is nothing to draw.
    """
    rows = _against(summary, metric, against)
    arms = [arm for arm in ARMS if arm in set(rows.arm)]
    panels = dict(list(rows.groupby(["data", "genes"], sort=False)))
    if not arms:
        return None
    beside = "uniform over all" if against == UNIFORM else "uniform at the same shares"

    def paint(figure: "Figure") -> None:
        for axes, group in _panels(figure, panels, sharex=True):
            axes.axvline(0, color=INK, linewidth=1)
            for row in group.itertuples():
                place = arms.index(row.arm)
                colour = CLASSES[0] if row.arm.startswith("mam") else CLASSES[1]
                face = "white" if row.low != row.low else colour
                axes.plot([row.low, row.high], [place] * 2, color=colour, linewidth=2)
                axes.plot(row.difference, place, "o", color=colour, mfc=face, markersize=5)
            axes.set_yticks(range(len(arms)), [ARMS[arm].what for arm in arms], fontsize=9)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        figure.supxlabel(f"points over {beside}", fontsize=11)
        figure.suptitle(TITLES[metric], fontsize=12, x=0.01, ha="left")

    alt = f"{TITLES[metric]}: arms minus {beside}, with intervals."
    return Drawing(LABELS + PANEL * len(panels), 120 + ROW * len(arms), alt, paint)


def _panels(
    figure: "Figure", panels: "dict[Any, pandas.DataFrame]", sharex: bool = False
) -> "Iterator[tuple[Axes, pandas.DataFrame]]":
    """Axes beside each other, titled, and the rows that go into each."""
    every = figure.subplots(1, len(panels), sharex=sharex, sharey=True, squeeze=False)[0]
    for axes, ((data, genes), group) in zip(every, panels.items(), strict=True):
        axes.set_title(f"{data}\n{genes} genes", fontsize=10)
        yield axes, group


def _against(summary: "pandas.DataFrame", metric: str, against: str) -> "pandas.DataFrame":
    scored = summary[(summary.part == "rest") & (summary.metric == metric)]
    return scored[(scored.against == against) & (scored.seeds > 0)]


def _share_arms() -> list[str]:
    return [
        f"{share}-{zeros}{ending}" for share in SHARES for zeros in ZEROS for ending in CORRUPTIONS
    ]


def _line(axes: "Axes", group: "pandas.DataFrame", zeros: str, ending: str) -> None:
    points = [(s, group.loc[a]) for s in SHARES if (a := f"{s}-{zeros}{ending}") in group.index]
    if not points:
        return
    places = [share for share, _ in points]
    middle = [row.difference for _, row in points]
    colour = QUIET if ending else CLASSES[list(ZEROS).index(zeros)]
    corruption = ", 80/10/10" if ending else ""
    names = {"tenth": "a tenth of it", "same": "as many", "none": "none"}
    label = f"zeros: {names[zeros]}{corruption}"
    axes.plot(places, middle, color=colour, marker="o", markersize=4, label=label, **STYLES[zeros])
    for share, row in points:
        axes.plot([share] * 2, [row.low, row.high], color=colour, linewidth=1, alpha=0.7)
        if row.low != row.low:  # one seed
            axes.plot(share, row.difference, "o", color=colour, mfc="white", markersize=4)
