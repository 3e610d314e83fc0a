"""Figures of scores: dots with intervals, and confusion matrices."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawing import DARK_INK, GROUND, INK, QUIET, RULE, Drawing, Options, blues, shortened
from ..evaluation.intervals import Interval, PairedDifference
from ..evaluation.scores import Evaluation
from .findings import METHOD_NAMES
from .folder import StudyFiles
from .formatting import points, signed_points
from .palette import ArmStyle, Styles
from .scores import METRICS, baseline_scores, by_seed, difference, score

WIDTH = 500
ROW = 24
MOST_NUMBERS = 20
"""Classes of a confusion matrix whose fields still have room for a number."""


def scores_figure(
    study: StudyFiles, styles: Styles, method: str, metric: str = "macro_f1"
) -> Drawing | None:
    """Mean and interval of every arm, its seeds as small dots, the baselines below."""
    arms = {arm: found for arm in study.arms if (found := score(study, arm, method, metric))}
    baselines = baseline_scores(study, metric)
    if not arms:
        return None
    told = ", ".join(f"{arm} {points(found.mean)}" for arm, found in {**arms, **baselines}.items())
    alt = f"Dots and 95 % intervals of {METRICS[metric]}, {METHOD_NAMES[method]}: {told}."

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        hollow: Options = {"marker": "d", "markersize": 8, "mfc": "none", "mec": QUIET, "mew": 1.6}
        for place, (arm, found) in enumerate(arms.items()):
            seeds = [100 * value for value in by_seed(study, arm, method, metric).values()]
            below, colour = [place + 0.27] * len(seeds), styles[arm].colour
            axes.plot(seeds, below, "o", markersize=3, color=colour, alpha=0.55, mew=0)
            _dot(axes, place, found, styles[arm])
        for place, found in enumerate(baselines.values(), len(arms)):
            axes.plot([100 * found.mean], [place], linestyle="none", **hollow)
        if baselines:
            axes.axhline(len(arms) - 0.5, color=RULE, linewidth=0.8)
        _rows(axes, [*arms, *baselines])
        axes.set_xlabel(f"{METRICS[metric]}, points")
        axes.set_title(METHOD_NAMES[method].capitalize())

    return Drawing(WIDTH, 78 + ROW * (len(arms) + len(baselines)), alt, paint)


def differences_figure(
    study: StudyFiles, styles: Styles, method: str, metric: str = "macro_f1"
) -> Drawing | None:
    """Difference of every arm to the reference with its interval, about a line at 0."""
    arms = {arm: found for arm in study.arms if (found := difference(study, arm, method, metric))}
    if not arms:
        return None
    told = ", ".join(f"{arm} {signed_points(found.mean)}" for arm, found in arms.items())
    name, reference = METHOD_NAMES[method], study.reference
    alt = f"Differences of {METRICS[metric]} to {reference}, {name}: {told} points."

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for place, (arm, found) in enumerate(arms.items()):
            _dot(axes, place, found, styles[arm])
        _rows(axes, list(arms))
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.5), max(high, 0.5))
        axes.set_xlabel(f"{METRICS[metric]} minus that of {reference}, points")
        axes.set_title(f"{name.capitalize()}: difference to {reference}")

    return Drawing(WIDTH, 78 + ROW * len(arms), alt, paint)


def _dot(axes: Axes, place: int, found: Interval | PairedDifference, style: ArmStyle) -> None:
    mark: Options = {"marker": style.marker, "markersize": 8.5, "mec": GROUND, "mew": 0.9}
    if found.has_interval:
        ends = [100 * found.low, 100 * found.high]
        axes.plot(ends, [place] * 2, color=style.colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([100 * found.mean], [place], linestyle="none", color=style.colour, **mark)


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, 28) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)


def confusion_of(evaluations: list[Evaluation]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, largest first, and the share of each true class (rows) that was taken for each
    (columns), over all folds and seeds.
    """

    classes = evaluations[0].classes
    counted = [found.confusion() for found in evaluations if found.classes == classes]
    matrix = np.sum(counted, axis=0)
    cells = matrix.sum(axis=1)
    order = np.argsort(-cells, kind="stable")
    shares = matrix / np.maximum(cells, 1)[:, None]
    return tuple(classes[place] for place in order), shares[order][:, order]


def confusion_figure(title: str, classes: tuple[str, ...], shares: np.ndarray) -> Drawing:
    """A row-normalised confusion matrix, with numbers in per cent from 1 on."""
    number = len(classes)
    side = min(560, max(420, 210 + 24 * number))
    right = zip(classes, shares.diagonal(), strict=True)
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in right)
    alt = f"Confusion matrix of {title}, rows are the true cell types. Recognised: {told}."

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(shares, cmap=blues(), vmin=0, vmax=1)
        labels = [shortened(name, 24) for name in classes]
        size = 10.5 if number <= 12 else 9 if number <= MOST_NUMBERS else 7
        rotation, ha = (90, "center") if number > 6 else (40, "right")
        axes.set_xticks(range(number), labels, fontsize=size, rotation=rotation, ha=ha)
        axes.set_yticks(range(number), labels, fontsize=size)
        axes.set(xlabel="taken for", ylabel="true cell type", title=title)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if number <= MOST_NUMBERS:
            _numbers(axes, shares, size - 1)

    return Drawing(side, side, alt, paint)


def _numbers(axes: Axes, shares: np.ndarray, size: float) -> None:
    for row, column in zip(*(shares >= 0.005).nonzero(), strict=True):
        share = shares[row, column]
        look: Options = {"color": "#ffffff" if share > 0.55 else DARK_INK, "fontsize": size}
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", **look)


def shade(share: float) -> str:
    """CSS of a table cell that shows a share of 1 by its ground, pale to blue."""
    if math.isnan(share):
        return ""
    red, green, blue, _ = (round(255 * part) for part in blues()(min(max(share, 0.0), 1.0) * 0.85))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.62 else DARK_INK}"
