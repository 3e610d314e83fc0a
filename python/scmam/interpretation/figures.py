"""Plots of what masks hide.

Figures are made without pyplot, so that no global state, window or backend of a notebook is
touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from .examples import Examples
from .summary import Summary

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}
DPI = 150
UNIFORM = (
    "#d55e00"  # vermilion: told apart from every colour of viridis by colour-blind readers too
)
CHANCE = "#f3d2bd"
POINTS = "#0072b2"
INK = "#343a40"
EXPRESSION = {"log1p_counts": "log(1 + count)", "log1p_cp10k": "log(1 + count per 10,000)"}
TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10)

SHOWN_TYPES = 12
GENES_PER_TYPE = 3
NAMED_GENES = 5
NAMED_Z = 5.0
"""Genes are named from this many standard errors on: by chance, not one in a million gets there."""

SPECIFIC_Z = 4.5
"""Genes count as hidden specifically in a type from here on: by chance, in 3 of a million
comparisons.
"""

Percent = FuncFormatter(lambda share, _: f"{100 * share:.3g}%")
Points = FuncFormatter(
    lambda share, _: (
        "0" if abs(share) < 1e-12 else f"{100 * share:+.3g}".replace("-", "\N{MINUS SIGN}")
    )
)


def hidden_by_expression(
    path: Path, table: pd.DataFrame, ranking: pd.DataFrame, summary: Summary
) -> None:
    """How often each gene is hidden against its mean expression, as in the paper's figure 2,
    coloured by how many genes are there.

    Args:
        path: the PNG file.
        table: of `tables.frequencies`.
        ranking: of `tables.ranking`.
        summary: of the same masks.
    """
    with _figure(path, (8.6, 5.4)) as figure:
        axis = figure.subplots()
        _uniform_reference(axis, table, summary.masks)
        points = _density_scatter(axis, table, 14)
        _name_genes(axis, table, ranking)
        fitted = table.sort_values("mean_expression", kind="stable")
        axis.plot(
            _place(fitted["mean_expression"].to_numpy()),
            fitted["expected"],
            color=INK,
            linewidth=1.4,
            label="fit to the genes",
            zorder=3,
        )
        _expression_axis(axis, table, 0.055)
        axis.set_xlabel(_expression_label(summary))
        axis.set_ylabel("masks that hide the gene")
        bar = figure.colorbar(points, ax=axis, pad=0.015, aspect=32)
        bar.set_ticks([points.norm.vmin, points.norm.vmax], labels=["few", "many"])
        bar.minorticks_off()
        bar.ax.tick_params(length=0)
        bar.set_label("genes nearby", labelpad=-18)
        bar.outline.set_visible(False)
        axis.legend(loc="best", frameon=False, handlelength=1.6, markerscale=2)
        correlation = (
            ""
            if summary.spearman is None
            else f"; Spearman correlation with expression {_signed(summary.spearman)}"
        )
        axis.set_title(
            f"{summary.strategy}: {len(table):,} genes, {summary.masks:,} masks{correlation}",
            loc="left",
        )


def hidden_by_type(path: Path, table: pd.DataFrame, summary: Summary) -> None:
    """The same for each cell type, the largest ones, on common axes.

    Args:
        path: the PNG file.
        table: of `tables.frequencies_by_type`.
        summary: of the same masks.
    """
    sizes = _type_sizes(table)
    shown = sizes.index[:SHOWN_TYPES]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with _figure(path, (max(5.0, 2.75 * columns), 1.2 + 2.4 * rows)) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, name in zip(axes.flat, shown, strict=False):
            part = table[table["cell_type"] == name]
            _uniform_reference(axis, part, int(sizes[name]) * summary.draws)
            _density_scatter(axis, part, 6)
            correlation = summary.spearman_by_type.get(name)
            title = f"{_short(name, 30)}\n{sizes[name]:,} cells" + (
                "" if correlation is None else f", Spearman {_signed(correlation)}"
            )
            axis.set_title(title, fontsize=10, parse_math=False)
        _expression_axis(axes[0, 0], table[table["cell_type"].isin(shown)], 0.13)
        for place in range(len(shown), axes.size):
            axes.flat[place].set_axis_off()
            axes[-2, place % columns].xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel(_expression_label(summary), fontsize=11)
        figure.supylabel("masks that hide the gene", fontsize=11)
        left = (
            f" (the {len(shown)} largest of {len(sizes)} types)" if len(sizes) > len(shown) else ""
        )
        figure.suptitle(
            f"{summary.strategy}: hidden genes by cell type{left}", fontsize=12, x=0.01, ha="left"
        )
        if columns > 2:
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(),
                loc="outside upper right",
                ncols=2,
                frameon=False,
                fontsize=10,
            )
        else:
            axes[0, 0].legend(loc="best", frameon=False, fontsize=8)


def specific_genes(path: Path, table: pd.DataFrame, summary: Summary) -> None:
    """The genes that are hidden more often in a cell type than in the others, as a heat map of the
    difference to all cells.

    Args:
        path: the PNG file.
        table: of `tables.frequencies_by_type`.
        summary: of the same masks.
    """
    genes, types, difference = most_specific(table, summary.draws)
    with _figure(path, (3.0 + 0.42 * len(types), 2.6 + 0.235 * max(4, len(genes)))) as figure:
        axis = figure.subplots()
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        figure.suptitle(
            f"{summary.strategy}: genes hidden more often in a cell type than in the others",
            fontsize=11,
            x=0.01,
            ha="left",
        )
        if not genes:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.text(
                0.5,
                0.5,
                "none: no difference between the types\nis larger than chance explains",
                ha="center",
                va="center",
                color=INK,
            )
            return
        bound = float(np.abs(difference).max())
        image = axis.imshow(
            difference.T, aspect="auto", cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -bound, bound)
        )
        axis.set_yticks(range(len(genes)), genes, fontsize=10, style="italic", parse_math=False)
        axis.set_xticks(
            range(len(types)),
            [_short(name, 30) for name in types],
            rotation=50,
            ha="right",
            rotation_mode="anchor",
            fontsize=10,
        )
        for label in axis.get_xticklabels():
            label.set_parse_math(False)
        bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=30, format=Points)
        bar.set_label("hidden rate less that in all cells (percentage points)")
        bar.outline.set_visible(False)


def most_specific(table: pd.DataFrame, draws: int) -> tuple[list[str], list[str], np.ndarray]:
    """Genes, types, and the hidden rate in each type less that in all cells that have one, (types,
    genes).

    The genes of a type are those whose rate is above that in the cells of all other types by most
    standard errors, and at least by ``SPECIFIC_Z``. The types are the largest.

    Args:
        table: of `tables.frequencies_by_type`.
        draws: masks of each cell.
    """
    cells = _type_sizes(table)
    total = int(cells.sum())
    types = cells.index[:SHOWN_TYPES].tolist()
    rates = table.pivot(index="cell_type", columns="gene", values="hidden")
    overall = rates.mul(cells, axis=0).sum() / total
    genes: list[str] = []
    for name in types:
        inside, outside = int(cells[name]), total - int(cells[name])
        if outside == 0:
            continue
        excess = rates.loc[name] - (overall * total - rates.loc[name] * inside) / outside
        error = np.sqrt(overall * (1 - overall) * (1 / inside + 1 / outside) / draws)
        z = (excess / error.where(error > 0)).drop(genes)
        genes += z[z >= SPECIFIC_Z].nlargest(GENES_PER_TYPE).index.tolist()
    return genes, types, (rates.loc[types, genes] - overall[genes]).to_numpy()


def masks(path: Path, examples: Examples, summary: Summary) -> None:
    """A few cells, their genes by expression: the values, how often each gene is hidden, what it is
    drawn by, and one mask.

    Args:
        path: the PNG file.
        examples: the cells.
        summary: of the same run.
    """
    count = len(examples.values)
    columns = min(2, count)
    rows = -(-count // columns)
    with _figure(path, (5.5 * columns, 1.3 + 2.35 * rows)) as figure:
        panels = np.atleast_1d(
            figure.subfigures(rows, columns, squeeze=False, width_ratios=(1.0, 1.12)[2 - columns :])
        ).ravel()
        top = max(float(examples.values.max()), 1e-9)
        high = 1.08 * max(float(examples.hidden.max()), 0.01)
        strips = [
            _cell_panel(panel, examples, cell, top, high)
            for cell, panel in enumerate(panels[:count])
        ]
        title = f"{summary.strategy}: genes of single cells, highest expression first; right of the grey line they are zero"
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        scale = mpl.cm.ScalarMappable(Normalize(0.0, top), "viridis")
        handles, labels = strips[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=10,
            markerscale=3,
        )
        for panel in panels[columns - 1 : count : columns]:
            bar = panel.colorbar(
                scale, ax=panel.axes, location="right", fraction=0.04, pad=0.015, aspect=22
            )
            bar.set_label(EXPRESSION.get(summary.transform, summary.transform), fontsize=9.5)
            bar.ax.tick_params(labelsize=9)
            bar.outline.set_visible(False)


def _cell_panel(panel: Figure, examples: Examples, cell: int, top: float, high: float) -> Axes:
    """One cell: a strip of values, the hidden rates, a strip with one mask; returns the middle
    axes.
    """
    values, mask = examples.values[cell], examples.mask[cell]
    nonzero = int((values != 0).sum())
    order = np.argsort(-values, kind="stable")
    order = order[: min(len(order), max(40, int(1.5 * nonzero)))]
    strip, axis, bars = panel.subplots(3, 1, sharex=True, height_ratios=(0.3, 1.6, 0.3))
    extent = (0, len(order), 0, 1)
    strip.imshow(
        values[None, order],
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=top,
        extent=extent,
        interpolation="nearest",
    )
    bars.imshow(
        mask[None, order],
        aspect="auto",
        cmap="Greys",
        vmin=-0.08,
        vmax=1.1,
        extent=extent,
        interpolation="nearest",
    )
    for edge, label in ((strip, "expression"), (bars, "one mask")):
        edge.set_yticks([0.5], [label], fontsize=9.5)
        edge.tick_params(length=0)
        edge.spines[:].set_visible(False)
        edge.grid(False)
    place = np.arange(len(order)) + 0.5
    axis.plot(
        place,
        examples.hidden[cell][order],
        ".",
        ms=3.2,
        color=POINTS,
        alpha=0.6,
        mew=0,
        label=f"share of {int(examples.draws)} masks that hide it",
    )
    weight = examples.importance[cell]
    if not np.isnan(weight).all():
        drawable = (
            weight > 0
            # the weights sum to 1 over these, so as many hidden ones shared out by weight are on the
            # same scale
        )
        expected = np.where(drawable, weight * examples.hidden[cell][drawable].sum(), np.nan)
        axis.plot(
            place,
            expected[order],
            color=INK,
            linewidth=1.6,
            label="drawing weight (scaled to the mean)",
        )
    axis.axhline(
        examples.hidden[cell].mean(),
        color=UNIFORM,
        linewidth=1.3,
        linestyle="--",
        label="mean of all genes",
    )
    for part in (strip, axis, bars):
        part.axvline(nonzero, color="#868e96", linewidth=1.2)
    axis.set_ylim(0, high)
    axis.yaxis.set_major_formatter(Percent)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.tick_params(labelsize=9.5)
    bars.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bars.tick_params(axis="x", labelsize=9.5)
    name = _short(examples.cell_types[cell] or str(examples.cells[cell]), 30)
    hidden = int((mask & (values != 0)).sum())
    strip.set_title(
        f"{name}: {hidden:,} of {nonzero:,} non-zero hidden",
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    return axis


def _density_scatter(axis: Axes, table: pd.DataFrame, size: float) -> PathCollection:
    """A point a gene, coloured by how many lie near it, dense ones on top."""
    x, y = _place(table["mean_expression"].to_numpy()), table["hidden"].to_numpy()
    density = local_density(x, y)
    order = np.argsort(density, kind="stable")
    low = max(float(density.min()), 1e-6)
    scale = LogNorm(low, max(float(density.max()), 2 * low))
    return axis.scatter(
        x[order],
        y[order],
        c=density[order],
        cmap="viridis",
        norm=scale,
        s=size,
        linewidths=0,
        zorder=2,
    )


def local_density(x: np.ndarray, y: np.ndarray, bins: int = 64) -> np.ndarray:
    """A smoothed two-dimensional histogram, read at each of its points; works where a kernel
    estimate fails, on points in a line.
    """
    places = tuple(
        np.clip(((v - v.min()) / max(np.ptp(v), 1e-12) * bins).astype(int), 0, bins - 1)
        for v in (x, y)
    )
    counts = np.zeros((bins, bins))
    np.add.at(counts, places, 1.0)
    return gaussian_filter(counts, 1.5, mode="constant")[places]


def _uniform_reference(axis: Axes, table: pd.DataFrame, masks: int) -> None:
    """What uniform masks would give: a line where that is one rate, else a point a gene, with what
    95 % of genes stay within by chance.
    """
    order = table["mean_expression"].to_numpy().argsort(kind="stable")
    x, rate = _place(table["mean_expression"].to_numpy()[order]), table["uniform"].to_numpy()[order]
    half = norm.ppf(0.975) * np.sqrt(rate * (1 - rate) / max(1, masks))
    if np.ptp(rate) < 1e-9:
        axis.axhspan(
            rate[0] - half[0],
            rate[0] + half[0],
            color=CHANCE,
            alpha=0.6,
            linewidth=0,
            zorder=0,
            label="95 % of genes, by chance",
        )
        axis.axhline(
            rate[0],
            color=UNIFORM,
            linewidth=1.6,
            linestyle="--",
            zorder=3,
            label="uniform, as many hidden",
        )
    else:
        axis.scatter(
            x,
            rate,
            s=5,
            color=UNIFORM,
            linewidths=0,
            alpha=0.6,
            zorder=1,
            label="uniform, as many zeros and non-zeros hidden",
        )


def _name_genes(axis: Axes, table: pd.DataFrame, ranking: pd.DataFrame) -> None:
    """The genes hidden most, then those farthest from what their expression predicts, as far as
    neither is chance.

    A name that would cover another is left out.
    """
    beyond_uniform = (table["hidden"] - table["uniform"]) / table["hidden_error"].where(
        table["hidden_error"] > 0
    )
    most = table[beyond_uniform >= NAMED_Z].nlargest(NAMED_GENES, "hidden")
    clear = ranking[ranking["z"].abs() >= NAMED_Z]
    far = clear.loc[clear["beyond_expression"].abs().nlargest(4 * NAMED_GENES).index]
    named = pd.concat([most, far])[["gene", "mean_expression", "hidden"]].drop_duplicates("gene")
    width, height = (
        float(np.ptp(v)) or 1.0
        for v in (_place(table["mean_expression"].to_numpy()), table["hidden"].to_numpy())
    )
    taken: list[tuple[float, float]] = []
    for gene, expression, hidden in named.itertuples(index=False):
        x, y = float(_place(np.float64(expression))), hidden
        if any(
            abs(x - other) < 0.13 * width and abs(y - level) < 0.035 * height
            for other, level in taken
        ):
            continue
        taken.append((x, y))
        side = -1 if x > 0.5 * width else 1
        axis.annotate(
            _short(gene, 14), (x, y), (5 * side, 0), textcoords="offset points", ha="right" if side < 0 else "left", va="center",
            fontsize=9, style="italic", color=INK, parse_math=False, zorder=4,
        )  # fmt: skip


def _place(expression: np.ndarray) -> np.ndarray:
    """Where an expression stands on the horizontal axis: most genes have a low mean, and zero must
    have a place.
    """
    return np.sqrt(expression)


def _expression_axis(axis: Axes, table: pd.DataFrame, apart: float) -> None:
    """Limits and ticks, at least ``apart`` of the width from each other."""
    width = max(float(_place(table["mean_expression"].max())), 1e-3)
    ticks: list[float] = []
    for value in TICKS:
        if _place(value) <= width and (
            not ticks or _place(value) - _place(ticks[-1]) >= apart * width
        ):
            ticks.append(value)
    axis.set_xticks([float(_place(value)) for value in ticks], [f"{value:g}" for value in ticks])
    axis.set_xlim(-0.02 * width, 1.03 * width)
    axis.yaxis.set_major_formatter(Percent)


def _expression_label(summary: Summary) -> str:
    return f"mean expression of the gene: {EXPRESSION.get(summary.transform, summary.transform)}, zeros included (square-root scale)"


def _type_sizes(table: pd.DataFrame) -> pd.Series:
    """Cells of each type, the largest first."""
    return table.groupby("cell_type")["cells"].first().sort_values(ascending=False, kind="stable")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw on, saved at the end: beside its place first, then renamed."""
    with mpl.rc_context(STYLE):
        figure = Figure(size, layout="constrained", facecolor="white")
        yield figure
        unfinished = path.with_name(f".{path.name}")
        figure.savefig(unfinished, dpi=DPI, format="png")
    unfinished.replace(path)
