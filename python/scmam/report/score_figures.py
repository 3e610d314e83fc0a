"""Figures of scores: dots with intervals, and confusion matrices."""

import math
from typing import TYPE_CHECKING

from .drawing import GROUND, INK, QUIET, RULE, Palette, blues, draw
from .findings import METHOD_NAMES
from .formatting import points, shortened, signed_points
from .markup import Markup
from .material import Material
from .scores import METRICS, Difference, Score, by_seed, difference, over_folds, score

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation import Evaluation

WIDTH = 500
ROW = 24


def scores_figure(
    material: Material, palette: Palette, method: str, metric: str = "macro_f1"
) -> Markup | None:
    """Mean and interval of every arm, its seeds as small dots, the baselines below."""
    arms = {arm: found for arm in material.arms if (found := score(material, arm, method, metric))}
    baselines = {
        name: over_folds(evaluation, metric) for name, evaluation in material.baselines.items()
    }
    if not arms:
        return None
    told = [f"{name} {points(found.mean)}" for name, found in {**arms, **baselines}.items()]
    alt = (
        f"Dots and 95 % intervals of {METRICS[metric]}, {METHOD_NAMES[method]}: {', '.join(told)}."
    )

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, (arm, found) in enumerate(arms.items()):
            style = palette[arm]
            seeds = [100 * value for value in by_seed(material, arm, method, metric).values()]
            axes.plot(
                seeds,
                [place + 0.27] * len(seeds),
                linestyle="none",
                marker="o",
                markersize=3,
                color=style.colour,
                alpha=0.55,
                mew=0,
            )
            _dot(axes, place, found, style.colour, style.marker)
        for place, found in enumerate(baselines.values(), len(arms)):
            axes.plot(
                [100 * found.mean],
                [place],
                linestyle="none",
                marker="d",
                markersize=8,
                mfc="none",
                mec=QUIET,
                mew=1.6,
            )
        if baselines:
            axes.axhline(len(arms) - 0.5, color=RULE, linewidth=0.8)
        _rows(axes, [*arms, *baselines])
        axes.set_xlabel(f"{METRICS[metric]}, points")
        axes.set_title(METHOD_NAMES[method].capitalize())

    return draw(WIDTH, 78 + ROW * (len(arms) + len(baselines)), alt, paint)


def differences_figure(
    material: Material, palette: Palette, method: str, metric: str = "macro_f1"
) -> Markup | None:
    """Difference of every arm to the reference with its interval, about a line at 0."""
    arms = {
        arm: found for arm in material.arms if (found := difference(material, arm, method, metric))
    }
    if not arms:
        return None
    told = [f"{name} {signed_points(found.mean)}" for name, found in arms.items()]
    alt = f"Differences of {METRICS[metric]} to {material.reference}, {METHOD_NAMES[method]}: {', '.join(told)} points."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for place, (arm, found) in enumerate(arms.items()):
            _dot(axes, place, found, palette[arm].colour, palette[arm].marker)
        _rows(axes, list(arms))
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.5), max(high, 0.5))
        axes.set_xlabel(f"{METRICS[metric]} less that of {material.reference}, points")
        axes.set_title(f"{METHOD_NAMES[method].capitalize()}: difference to {material.reference}")

    return draw(WIDTH, 78 + ROW * len(arms), alt, paint)


def _dot(axes: "Axes", place: int, found: Score | Difference, colour: str, marker: str) -> None:
    if found.has_interval:
        axes.plot(
            [100 * found.low, 100 * found.high],
            [place, place],
            color=colour,
            linewidth=2.2,
            solid_capstyle="butt",
        )
    axes.plot(
        [100 * found.mean],
        [place],
        linestyle="none",
        marker=marker,
        markersize=8.5,
        color=colour,
        mec=GROUND,
        mew=0.9,
    )


def _rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, 24) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)


def confusion_of(evaluations: "list[Evaluation]") -> "tuple[tuple[str, ...], np.ndarray]":
    """The classes, largest first, and the share of each true class (rows) that was taken for each
    (columns), over all folds and seeds.
    """
    import numpy as np

    classes = evaluations[0].classes
    matrix = sum(
        evaluation.confusion() for evaluation in evaluations if evaluation.classes == classes
    )
    cells = matrix.sum(axis=1)
    order = np.argsort(-cells, kind="stable")
    shares = matrix / np.maximum(cells, 1)[:, None]
    return tuple(classes[place] for place in order), shares[order][:, order]


def confusion_figure(title: str, classes: tuple[str, ...], shares: "np.ndarray") -> Markup:
    """A row-normalised confusion matrix; numbers in per cent from 1 on, where there is room for
    them.
    """
    number = len(classes)
    side = min(560, max(420, 210 + 24 * number))
    right = ", ".join(
        f"{name} {100 * share:.0f} %"
        for name, share in zip(classes, shares.diagonal(), strict=True)
    )
    alt = f"Confusion matrix of {title}, rows are the true cell types. Recognised: {right}."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.imshow(shares, cmap=blues(), vmin=0, vmax=1)
        labels = [shortened(name, 24) for name in classes]
        size = 10.5 if number <= 12 else 9 if number <= 20 else 7
        axes.set_xticks(
            range(number),
            labels,
            rotation=90 if number > 6 else 40,
            fontsize=size,
            ha="center" if number > 6 else "right",
        )
        axes.set_yticks(range(number), labels, fontsize=size)
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("taken for")
        axes.set_ylabel("true cell type")
        axes.set_title(title)
        if number <= 20:
            _numbers(axes, shares, size)

    return draw(side, side, alt, paint)


def _numbers(axes: "Axes", shares: "np.ndarray", size: float) -> None:
    for row, column in zip(*(shares >= 0.005).nonzero(), strict=True):
        share = shares[row, column]
        colour = (
            "#ffffff" if share > 0.55 else "#1c2126"
        )  # fixed, as the field behind it is: not the page's ink
        axes.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=size - 1,
            color=colour,
        )


def shade(share: float) -> str:
    """CSS of a table cell that shows a share of 1 by its ground: pale to blue, with ink that can be
    read on it.
    """
    if math.isnan(share):
        return ""
    red, green, blue, _ = (round(255 * part) for part in blues()(min(max(share, 0.0), 1.0) * 0.85))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.62 else '#1c2126'}"
