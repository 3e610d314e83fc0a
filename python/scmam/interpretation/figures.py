"""Figures of masks: as PNG beside a run, and in the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..drawing import FIXED, GROUND, INK, LEARNED, QUIET, Drawing, Options, blues, shortened

WIDTH, HEIGHT = 480, 330
WIDE = 860
SHOWN_TYPES = 12
SHOWN_CELLS = 6
SHOWN_GENES = 60
GENES_PER_TYPE = 3
NAMED_GENES = 6
NAMED_Z = 5.0
"""Genes are named from this many standard errors on: by chance fewer than one in a million."""

SPECIFIC_Z = 4.5
"""A gene counts as specific to a type from here on: by chance, 3 of a million comparisons do."""

CHANCE_Z = 1.96
"""95 % of uniform draws are within this many standard errors."""

DOTS: Options = {"linewidths": 0, "rasterized": True}


def highest(table: pd.DataFrame) -> float:
    """Where the vertical axis of hidden rates ends, a share of 1."""
    return 1.08 * max(float(table["hidden"].max()), 0.01)


def hidden_by_expression(
    title: str, table: pd.DataFrame, masks: int | None, *, colour: str = LEARNED[0], top: float
) -> Drawing:
    """The paper's figure 2: a dot a gene, how often it is hidden against its mean expression.

    Args:
        title: stands above the figure.
        table: of `tables.frequencies`, at least gene, mean_expression and hidden.
        masks: how many masks were drawn, for what chance explains; None: not known.
        colour: of the dots.
        top: the end of the vertical axis, a share of 1.
    """
    low, high = (100 * table["hidden"].agg(["min", "max"])).tolist()
    alt = (
        f"How often each of {len(table):,} genes is hidden, {title}: from {low:.1f} % to"
        f" {high:.1f} % of the masks, against the gene's mean expression."
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _uniform_rates(axes, table, masks)
        size = 16.0 if len(table) < 500 else 10.0 if len(table) < 5000 else 5.0
        look: Options = {"s": size, "color": colour, "alpha": 0.5, **DOTS}
        axes.scatter(table["mean_expression"], 100 * table["hidden"], **look)
        if "expected" in table.columns:
            fit = table.sort_values("mean_expression", kind="stable")
            place, rate = fit["mean_expression"], 100 * fit["expected"]
            axes.plot(place, rate, color=GROUND, linewidth=4)
            axes.plot(place, rate, color=INK, linewidth=1.6, label="expected from expression")
        _expression_axis(axes, top, ticks=6)
        _name_genes(figure, axes, table)
        axes.set_xlabel("mean expression (as the model sees it, zeros included)")
        axes.set_ylabel("masks that hide the gene, %")
        axes.set_title(shortened(title, 60))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9.5, loc="lower right")

    return Drawing(WIDTH, HEIGHT, alt, paint)


def hidden_by_type(
    title: str, table: pd.DataFrame, draws: int | None, *, colour: str = LEARNED[0]
) -> Drawing:
    """The same for each of the largest cell types, on common axes.

    Args:
        title: stands above the figure.
        table: of `tables.frequencies_by_type`.
        draws: masks of each cell; None: not known.
        colour: of the dots.
    """
    sizes = type_sizes(table)
    shown = sizes.index[:SHOWN_TYPES]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    which = ", ".join(map(str, shown))
    alt = f"How often genes are hidden against their mean expression, {title}, by type: {which}."
    left = f" (the {len(shown)} largest of {len(sizes)} types)" if len(sizes) > len(shown) else ""

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        look: Options = {"s": 5, "color": colour, "alpha": 0.5, **DOTS}
        for axes, name in zip(grid.flat, shown, strict=False):
            part, cells = table[table["cell_type"] == name], int(sizes[name])
            _uniform_rates(axes, part, cells * draws if draws else None)
            axes.scatter(part["mean_expression"], 100 * part["hidden"], **look)
            _expression_axis(axes, highest(table), ticks=3)
            axes.set_title(f"{shortened(str(name), 26)}\n{cells:,} cells", fontsize=10)
        for place in range(len(shown), grid.size):
            grid.flat[place].set_axis_off()
            grid[-2, place % columns].xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("mean expression", fontsize=11, color=QUIET)
        figure.supylabel("masks that hide the gene, %", fontsize=11, color=QUIET)
        figure.suptitle(f"{title}: by cell type{left}", fontsize=12, x=0.01, ha="left")

    return Drawing(max(360, 40 + 205 * columns), 90 + 165 * rows, alt, paint)


def specific_genes(title: str, table: pd.DataFrame, draws: int | None) -> Drawing:
    """The genes that are hidden more often in a cell type than in the others, as a heat map.

    Args:
        title: stands above the figure.
        table: of `tables.frequencies_by_type`.
        draws: masks of each cell; None: not known.
    """
    genes, types, difference = most_specific(table, draws or 1)
    named = ", ".join(genes) or "none beyond chance"
    alt = f"Genes hidden more often in a cell type than in the others, {title}: {named}."

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        head = f"{title}: genes hidden more often in one type"
        figure.suptitle(head, fontsize=12, x=0.01, ha="left")
        if not genes:
            axes.set(xticks=[], yticks=[])
            told = "none: no difference between the types\nis larger than chance explains"
            axes.text(0.5, 0.5, told, ha="center", va="center", color=QUIET)
            return
        bound = 100 * float(np.abs(difference).max())
        look: Options = {"aspect": "auto", "cmap": "PuOr_r", "vmin": -bound, "vmax": bound}
        image = axes.imshow(100 * difference.T, **look)
        axes.set_yticks(range(len(genes)), [shortened(gene, 14) for gene in genes], fontsize=10)
        names = [shortened(str(name), 26) for name in types]
        turned: Options = {"rotation": 50, "ha": "right", "rotation_mode": "anchor", "fontsize": 10}
        axes.set_xticks(range(len(types)), names, **turned)
        _bar(figure, axes, image, "hidden rate minus that in all cells, points")

    height = 150 + 17 * max(6, len(genes))
    return Drawing(max(420, 210 + 30 * len(types)), height, alt, paint)


def most_specific(table: pd.DataFrame, draws: int) -> tuple[list[str], list[str], np.ndarray]:
    """Genes, types, and the hidden rate in each type minus that in all cells, (types, genes).

    The genes of a type are those whose rate is above that in the cells of all other types by most
    standard errors, and at least by ``SPECIFIC_Z``. The types are the largest.

    Args:
        table: of `tables.frequencies_by_type`.
        draws: masks of each cell.
    """
    cells = type_sizes(table)
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


def masks(title: str, examples: Mapping[str, np.ndarray]) -> Drawing:
    """Some cells by their highest genes: what one mask hides, how often each gene is hidden, and
    what it is drawn by.

    Args:
        title: stands above the figure.
        examples: masks.npz; see `examples.Examples`.
    """
    values = examples["values"][:SHOWN_CELLS]
    genes = np.argsort(-values.mean(axis=0), kind="stable")[:SHOWN_GENES]
    names = [str(name) or "no type" for name in examples["cell_types"][: len(values)]]
    draws = int(examples["draws"]) if "draws" in examples else "many"
    hidden, mask = (examples[name][: len(values)].astype(float) for name in ("hidden", "mask"))
    both, there = ((mask > 0) & (values != 0)).sum(axis=1), (values != 0).sum(axis=1)
    counts = zip(names, both, there, strict=True)
    rows = [f"{shortened(name, 22)}\n{part} of {all_} non-zeros" for name, part, all_ in counts]
    rates = hidden[:, genes]
    share, low, high = (100 * x for x in (mask[:, genes].mean(), rates.min(), rates.max()))
    alt = (
        f"Masks on {len(values)} cells ({', '.join(names)}), {title}: of their {len(genes)} highest"
        f" genes the mask shown hides {share:.1f} %, and many masks hide each {low:.1f} to"
        f" {high:.1f} % of the time."
    )
    weights = _relative_weights(examples, len(values))
    fields = 2 if weights is None else 3

    def paint(figure: Figure) -> None:

        grid, field = figure.subplots(fields, 1, sharex=True), {"aspect": "auto"}
        grid[0].imshow(values[:, genes], cmap=blues(), interpolation="nearest", **field)
        covered = np.where(mask[:, genes] > 0, 1.0, np.nan)
        orange = ListedColormap([FIXED[0]])
        grid[0].imshow(covered, cmap=orange, interpolation="nearest", **field)
        grid[0].set_title(f"{shortened(title, 40)}: expression (blue), hidden in one mask (orange)")
        look: Options = {"cmap": blues(), "vmin": 0, "interpolation": "nearest", **field}
        often = grid[1].imshow(100 * rates, vmax=max(high, 1), **look)
        grid[1].set_title(f"How often each is hidden, over {draws} masks of each cell")
        _bar(figure, grid[1], often, "%")
        if weights is not None:
            shown = grid[2].imshow(weights[:, genes], **look)
            grid[2].set_title("What each is drawn by, over its mean in the cell (1 = uniform)")
            _bar(figure, grid[2], shown, "weight")
        labels = [shortened(str(name), 12) for name in examples["genes"][genes]]
        grid[-1].set_xticks(range(len(genes)), labels, rotation=90, fontsize=8.5)
        for axes in grid:
            labels = rows if axes is grid[0] else [shortened(name, 22) for name in names]
            axes.set_yticks(range(len(rows)), labels, fontsize=9)
            _plain(axes)

    return Drawing(WIDE, 100 + fields * (45 + 30 * len(rows)), alt, paint)


def _relative_weights(examples: Mapping[str, np.ndarray], cells: int) -> np.ndarray | None:
    """Drawing weights over their mean in each cell; None where positions are drawn uniformly."""
    weights = examples.get("importance")
    if weights is None or np.isnan(weights).all():
        return None
    weights = np.nan_to_num(weights[:cells].astype(float))
    drawable = (weights > 0).sum(axis=1, keepdims=True)
    return weights * drawable / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)


def type_sizes(table: pd.DataFrame) -> pd.Series:
    """Cells of each type, the largest first."""
    return table.groupby("cell_type")["cells"].first().sort_values(ascending=False, kind="stable")


def _uniform_rates(axes: Axes, table: pd.DataFrame, masks: int | None) -> None:
    """What uniform masks would give: a line where that is one rate, else a point a gene.

    A band shows what 95 % of genes stay within by chance.
    """
    if "uniform" not in table.columns:
        return
    rate = table["uniform"].to_numpy()
    if np.ptp(rate) > 1e-9:
        look: Options = {"s": 5, "color": FIXED[0], "alpha": 0.6, **DOTS}
        label = "uniform masks, zeros and non-zeros apart"
        axes.scatter(table["mean_expression"], 100 * rate, label=label, **look)
        return
    middle = 100 * rate[0]
    if masks:
        half = 100 * CHANCE_Z * float(np.sqrt(rate[0] * (1 - rate[0]) / masks))
        band: Options = {"color": FIXED[0], "alpha": 0.2, "linewidth": 0}
        axes.axhspan(middle - half, middle + half, label="95 % of genes, by chance", **band)
    axes.axhline(middle, label="uniform masks", color=FIXED[0], linewidth=1.4, linestyle="--")


def _name_genes(figure: Figure, axes: Axes, table: pd.DataFrame) -> None:
    """The genes hidden most, then those farthest from what their expression predicts.

    None is named whose rate chance explains, and none where it would cover another name.
    """
    if not {"hidden_error", "uniform", "beyond_expression"} <= set(table.columns):
        return
    error = table["hidden_error"].where(table["hidden_error"] > 0)
    beyond = table["beyond_expression"].abs()
    most = table[(table["hidden"] - table["uniform"]) / error >= NAMED_Z].nlargest(40, "hidden")
    far = table.loc[beyond[beyond / error >= NAMED_Z].nlargest(40).index]
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for part in (most, far):
        names, means, rates = (part[name] for name in ("gene", "mean_expression", "hidden"))
        for gene, mean, rate in zip(names, means, 100 * rates, strict=True):
            x, y = axes.transData.transform((mean, rate))
            apart = all(abs(x - one) > 90 or abs(y - other) > 13 for one, other in taken)
            if not apart or len(taken) >= 2 * NAMED_GENES:
                continue
            taken.append((x, y))
            side = 1 if x < axes.bbox.x0 + 100 else -1
            look: Options = {"fontsize": 9.5, "va": "center", "ha": "left" if side > 0 else "right"}
            where: Options = {"xytext": (5 * side, 0), "textcoords": "offset points"}
            axes.annotate(shortened(str(gene), 14), (mean, rate), color=INK, **where, **look)


def _expression_axis(axes: Axes, top: float, ticks: int) -> None:
    """A square-root axis: most genes have a low mean, and zero must have a place."""

    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100 * top)


def _plain(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _bar(figure: Figure, axes: Axes, image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
