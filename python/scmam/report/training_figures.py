"""Figures of pretraining: losses, and what the masks hide, over the steps."""

import math
from typing import TYPE_CHECKING

from .drawing import GROUND, Palette, draw
from .formatting import amount, percent, shortened
from .markup import Markup
from .material import Material

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 350
HEIGHT = 230
MOST_POINTS = 400
LOW_ENTROPY = (
    0.98  # where the axis starts at the latest, so that masks that are all but uniform look it
)
MEASURES = {
    "hidden_nonzero": "Hidden share of the non-zeros",
    "hidden_zero": "Hidden share of the zeros",
    "entropy": "Entropy of the masks",
}


def loss_figures(material: Material, palette: Palette) -> list[Markup]:
    """A panel an arm: training loss smoothed, validation as dots, a thin line a seed; the same
    vertical axis in all.
    """
    arms = [
        arm for arm in material.arms if any(run.metrics is not None for run in material.of(arm))
    ]
    low, high = _common_range(material, arms)
    return [_loss_figure(material, palette, arm, low, high) for arm in arms if not math.isnan(low)]


def _loss_figure(material: Material, palette: Palette, arm: str, low: float, high: float) -> Markup:
    lines = [run.metrics for run in material.of(arm) if run.metrics is not None]
    colour = palette[arm].colour
    last = [
        float(found["loss"].iloc[-1])
        for table in lines
        if not (found := phase(table, "validation")).empty
    ]
    ending = f"; validation ends at {sum(last) / len(last):.3g}" if last else ""
    alt = f"Loss of {arm} over the steps of {amount(len(lines), 'seed')}{ending}."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for table in lines:
            train, validation = smoothed(phase(table, "train"), "loss"), phase(table, "validation")
            axes.plot(train["step"], train["loss"], color=colour, linewidth=1, alpha=0.6)
            axes.plot(
                validation["step"],
                validation["loss"],
                color=colour,
                linewidth=1.2,
                marker="o",
                markersize=4,
                mec=GROUND,
                mew=0.6,
            )
        _steps(axes)
        axes.set_ylim(low, high)
        axes.set_title(shortened(arm, 34))

    return draw(WIDTH, HEIGHT, alt, paint)


def _common_range(material: Material, arms: list[str]) -> tuple[float, float]:
    """From the lowest to the highest loss of the smoothed curves, but for the first tenth of the
    steps, where losses fall from anywhere.
    """
    lows, highs = [], []
    for run in (run for arm in arms for run in material.of(arm) if run.metrics is not None):
        for table in (
            smoothed(phase(run.metrics, "train"), "loss"),
            phase(run.metrics, "validation"),
        ):
            later = table[table["step"] >= 0.1 * table["step"].max()]["loss"].dropna()
            if not later.empty:
                lows.append(float(later.min()))
                highs.append(float(later.max()))
    if not lows:
        return math.nan, math.nan
    margin = 0.06 * (max(highs) - min(lows)) or 0.05
    return min(lows) - margin, max(highs) + margin


def mask_figures(material: Material, palette: Palette) -> list[Markup]:
    """What is hidden over the steps: mean of each arm over its seeds, smoothed, with thin lines for
    the seeds.
    """
    return [
        drawn
        for name, title in MEASURES.items()
        if (drawn := _mask_figure(material, palette, name, title))
    ]


def arms_with_masks(material: Material) -> list[str]:
    """The arms of which it is known what their masks hide."""
    return [arm for arm in material.arms if any(_curves(material, arm, name) for name in MEASURES)]


def _mask_figure(material: Material, palette: Palette, name: str, title: str) -> Markup | None:
    arms = {arm: curves for arm in material.arms if (curves := _curves(material, arm, name))}
    if not arms:
        return None
    scale = 1 if name == "entropy" else 100
    ends = {
        arm: sum(float(curve[name].iloc[-1]) for curve in curves) / len(curves)
        for arm, curves in arms.items()
    }
    told = ", ".join(
        f"{arm} {end:.4f}" if scale == 1 else f"{arm} {percent(end)}" for arm, end in ends.items()
    )
    alt = f"{title} over the steps, by arm; at the end {told}."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for arm, curves in arms.items():
            style = palette[arm]
            for curve in curves if len(curves) > 1 else ():
                axes.plot(
                    curve["step"], scale * curve[name], color=style.colour, linewidth=0.7, alpha=0.4
                )
            middle = _mean_curve(curves, name)
            axes.plot(
                middle.index, scale * middle, color=style.colour, linestyle=style.dash, linewidth=2
            )
        _steps(axes)
        if scale == 1:
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.set_ylabel("1 = uniform")
            bottom = min(axes.get_ylim()[0], LOW_ENTROPY)
            axes.set_ylim(bottom, 1 + (1 - bottom) / 20)
        else:
            axes.set_ylabel("%")
            axes.set_ylim(0, None)
        axes.set_title(title)

    return draw(WIDTH, HEIGHT + 10, alt, paint)


def _curves(material: Material, arm: str, name: str) -> "list[pd.DataFrame]":
    tables = [
        run.metrics
        for run in material.of(arm)
        if run.metrics is not None and name in run.metrics.columns
    ]
    curves = [smoothed(phase(table, "train"), name) for table in tables]
    return [curve for curve in curves if not curve.empty]


def _mean_curve(curves: "list[pd.DataFrame]", name: str) -> "pd.Series":
    """Over the seeds that got that far."""
    import pandas as pd

    return pd.concat([curve.set_index("step")[name] for curve in curves]).groupby(level=0).mean()


def phase(table: "pd.DataFrame", name: str) -> "pd.DataFrame":
    return table[table["phase"] == name].sort_values("step")


def smoothed(table: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """An exponentially weighted mean that reaches over about a twentieth of the steps, thinned out
    to what a panel can show.
    """
    import numpy as np

    table = table[["step", name]].dropna()
    table = table.assign(**{name: table[name].ewm(span=max(3, len(table) / 20)).mean()})
    if len(table) <= MOST_POINTS:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, MOST_POINTS).round().astype(int))]


def _steps(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("optimizer step")
    axes.margins(x=0.02)
