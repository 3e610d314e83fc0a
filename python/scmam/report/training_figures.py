"""Figures of pretraining: losses, and what the masks hide, over the steps."""

import math
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..drawing import GROUND, Drawing, Options, shortened
from .folder import StudyFiles
from .formatting import amount, decimal, percent
from .palette import ArmStyle, Styles

WIDTH = 350
HEIGHT = 230
MOST_POINTS = 400
LOW_ENTROPY = 0.98
"""The entropy axis starts here at the latest, so that nearly uniform masks look nearly uniform."""

MEASURES = {
    "hidden_nonzero": "Hidden share of the non-zeros",
    "hidden_zero": "Hidden share of the zeros",
    "entropy": "Entropy of the masks",
}


def loss_figures(study: StudyFiles, styles: Styles) -> list[Drawing]:
    """A panel an arm with the same vertical axis: training loss smoothed, validation as dots."""
    tables = {
        arm: [run.metrics for run in study.of(arm) if run.metrics is not None] for arm in study.arms
    }
    tables = {arm: found for arm, found in tables.items() if found}
    if not tables:
        return []
    limits = _common_range([table for found in tables.values() for table in found])
    if math.isnan(limits[0]):
        return []
    return [_loss_figure(arm, found, styles[arm], limits) for arm, found in tables.items()]


def _loss_figure(
    arm: str, tables: list[pd.DataFrame], style: ArmStyle, limits: tuple[float, float]
) -> Drawing:
    parts = [(smoothed(phase(x, "train"), "loss"), phase(x, "validation")) for x in tables]
    last = [float(table["loss"].iloc[-1]) for _, table in parts if not table.empty]
    ending = f"; validation ends at {sum(last) / len(last):.3g}" if last else ""
    alt = f"Loss of {arm} over the steps of {amount(len(tables), 'seed')}{ending}."
    dots: Options = {"marker": "o", "markersize": 4, "mec": GROUND, "mew": 0.6, "linewidth": 1.2}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for train, validation in parts:
            axes.plot(train["step"], train["loss"], color=style.colour, linewidth=1, alpha=0.6)
            axes.plot(validation["step"], validation["loss"], color=style.colour, **dots)
        _steps(axes)
        axes.set_ylim(limits)
        axes.set_title(shortened(arm, 34))

    return Drawing(WIDTH, HEIGHT, alt, paint)


def _common_range(tables: list[pd.DataFrame]) -> tuple[float, float]:
    """Of the losses after the first tenth of the steps, in which losses fall from anywhere."""
    parts = [smoothed(phase(table, "train"), "loss") for table in tables]
    parts += [phase(table, "validation") for table in tables]
    later = [part[part["step"] >= 0.1 * part["step"].max()]["loss"] for part in parts]
    low, high = pd.concat(later).agg(["min", "max"])
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def mask_figures(study: StudyFiles, styles: Styles) -> list[Drawing]:
    """Hidden shares and entropy over the steps: thick lines are means of arms, thin lines seeds."""
    drawn = [_mask_figure(study, styles, *measure) for measure in MEASURES.items()]
    return [one for one in drawn if one]


def arms_with_masks(study: StudyFiles) -> list[str]:
    """The arms of which it is known what their masks hide."""
    return [arm for arm in study.arms if any(_curves(study, arm, name) for name in MEASURES)]


def hidden_shares(study: StudyFiles, arm: str) -> dict[str, float]:
    """Hidden shares and entropy of an arm at the end of training, means over its seeds.

    Empty where no table of metrics is there.
    """
    curves = {name: _curves(study, arm, name) for name in MEASURES}
    if not any(curves.values()):
        return {}
    ends = {name: [float(x[name].iloc[-1]) for x in found] for name, found in curves.items()}
    return {name: fmean(values) if values else math.nan for name, values in ends.items()}


def measured_shares(study: StudyFiles, arm: str) -> dict[str, Any]:
    """Hidden shares and entropy of masks drawn after the training of the first seed, with what else
    was measured of them; without these, `hidden_shares`.
    """
    return study.first_latents(arm) or hidden_shares(study, arm)


def _mask_figure(study: StudyFiles, styles: Styles, name: str, title: str) -> Drawing | None:

    arms = {arm: curves for arm in study.arms if (curves := _curves(study, arm, name))}
    if not arms:
        return None
    is_share = name != "entropy"
    ends = {arm: hidden_shares(study, arm)[name] for arm in arms}
    write = percent if is_share else lambda end: decimal(end, 4)
    told = ", ".join(f"{arm} {write(end)}" for arm, end in ends.items())

    def paint(figure: Figure) -> None:
        axes, scale = figure.subplots(), 100 if is_share else 1
        for arm, curves in arms.items():
            colour, dash = styles[arm].colour, styles[arm].dash
            curves = [curve.set_index("step")[name] * scale for curve in curves]
            for curve in curves if len(curves) > 1 else ():
                axes.plot(curve.index, curve, color=colour, linewidth=0.7, alpha=0.4)
            middle = pd.concat(curves).groupby(level=0).mean()  # over the seeds that got that far
            axes.plot(middle.index, middle, color=colour, linestyle=dash, linewidth=2)
        _steps(axes)
        if is_share:
            axes.set_ylabel("%")
            axes.set_ylim(0, None)
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.set_ylabel("1 = uniform")
            bottom = min(axes.get_ylim()[0], LOW_ENTROPY)
            axes.set_ylim(bottom, 1 + (1 - bottom) / 20)
        axes.set_title(title)

    return Drawing(WIDTH, HEIGHT + 10, f"{title} over the steps, by arm; at the end {told}.", paint)


def _curves(study: StudyFiles, arm: str, name: str) -> list[pd.DataFrame]:
    tables = [run.metrics for run in study.of(arm) if run.metrics is not None]
    curves = [smoothed(phase(x, "train"), name) for x in tables if name in x.columns]
    return [curve for curve in curves if not curve.empty]


def phase(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of "train" or "validation"."""
    return table[table["phase"] == name].sort_values("step")


def smoothed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """An exponentially weighted mean, thinned out to what a panel can show.

    It reaches over about a twentieth of the steps.
    """

    table = table[["step", name]].dropna()
    table = table.assign(**{name: table[name].ewm(span=max(3, len(table) / 20)).mean()})
    if len(table) <= MOST_POINTS:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, MOST_POINTS).round().astype(int))]


def _steps(axes: Axes) -> None:

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("optimizer step")
    axes.margins(x=0.02)
