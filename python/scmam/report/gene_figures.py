"""Figures of genes: how often each is hidden against its mean expression, and what single masks
look like.
"""

from typing import TYPE_CHECKING, Any

from .drawing import CLASS_COLOURS, FIXED, GROUND, INK, MARKERS, QUIET, Palette, blues, draw
from .formatting import amount, listed, percent, shortened
from .markup import Markup

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 480
MASKS_WIDTH = 860
NAMED_GENES = 6
SHOWN_TYPES = 8
SHOWN_CELLS = 6
SHOWN_GENES = 60


def frequencies_figure(palette: Palette, arm: str, table: "pd.DataFrame", top: float) -> Markup:
    """The paper's figure 2: a dot a gene, and the median along the expression.

    Args:
        table: frequencies.csv of a run.
        top: the end of the vertical axis, a share of 1: the same for all arms.
    """
    table = table[table["mean_expression"] > 0]
    style = palette[arm]
    spread = f"from {percent(table['hidden'].min())} to {percent(table['hidden'].max())}"
    alt = f"How often {arm} hides each of {amount(len(table), 'gene')}, {spread} of the masks, against the gene's mean expression."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        size = _dot_size(len(table))
        look = {"s": size, "color": style.colour, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        axes.scatter(table["mean_expression"], 100 * table["hidden"], **look)
        _expression_axis(axes, top)
        if "uniform" in table.columns:
            axes.axhline(
                100 * table["uniform"].mean(), color=QUIET, linewidth=1, linestyle=(0, (4, 2))
            )
        middle = running_median(table)
        for colour, width in ((GROUND, 4), (INK, 1.6)):
            axes.plot(
                middle["mean_expression"], 100 * middle["hidden"], color=colour, linewidth=width
            )
        if table["hidden"].max() > 1.15 * table["hidden"].median():
            _name_genes(figure, axes, table.nlargest(40, "hidden"))
        axes.set_title(shortened(arm, 40))

    return draw(WIDTH, 330, alt, paint)


def _dot_size(number: int) -> float:
    return 16.0 if number < 500 else 10.0 if number < 5000 else 5.0


def _name_genes(figure: "Figure", axes: "Axes", candidates: "pd.DataFrame") -> None:
    """Names beside the highest genes, as many as stand apart from each other."""
    figure.draw_without_rendering()
    places: list[tuple[float, float]] = []
    for gene, mean, hidden in zip(
        candidates["gene"], candidates["mean_expression"], candidates["hidden"], strict=True
    ):
        x, y = axes.transData.transform((mean, 100 * hidden))
        if len(places) < NAMED_GENES and all(
            abs(x - other) > 90 or abs(y - height) > 13 for other, height in places
        ):
            places.append((x, y))
            near = {
                "xytext": (-5, 0),
                "textcoords": "offset points",
                "ha": "right",
                "va": "center",
                "fontsize": 9.5,
            }
            axes.annotate(
                shortened(str(gene), 14), (mean, 100 * hidden), color=INK, parse_math=False, **near
            )


def types_figure(arm: str, table: "pd.DataFrame", top: float) -> Markup:
    """The median of the hidden rate along the expression, a line for each of the largest cell
    types.
    """
    sizes = (
        table.groupby("cell_type")["cells"].first()
        if "cells" in table.columns
        else table.groupby("cell_type").size()
    )
    types = [str(name) for name in sizes.nlargest(SHOWN_TYPES).index]
    which = (
        f"the {len(types)} largest of {len(sizes)} cell types"
        if len(sizes) > len(types)
        else amount(len(types), "cell type")
    )
    alt = f"How often {arm} hides genes against their mean expression, median line for {which}: {', '.join(types)}."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, name in enumerate(types):
            rows = table[(table["cell_type"].astype(str) == name) & (table["mean_expression"] > 0)]
            middle = running_median(rows)
            axes.plot(
                middle["mean_expression"],
                100 * middle["hidden"],
                color=CLASS_COLOURS[place % len(CLASS_COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                label=shortened(name, 24),
            )
        _expression_axis(axes, top)
        axes.set_title(f"{shortened(arm, 26)}: by cell type")
        axes.legend(frameon=False, fontsize=9.5, loc="best", handlelength=1.6)

    return draw(WIDTH, 330, alt, paint)


def _expression_axis(axes: "Axes", top: float) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 100 * top)
    axes.set_xlabel("mean expression (as the model sees it, zeros included)")
    axes.set_ylabel("masks that hide the gene, %")


def running_median(table: "pd.DataFrame", bins: int = 20) -> "pd.DataFrame":
    """Medians of expression and hidden rate in bins of equally many genes."""
    import numpy as np

    ordered = table.sort_values("mean_expression")[["mean_expression", "hidden"]]
    bins = max(1, min(bins, len(ordered) // 5))
    groups = np.arange(len(ordered)) * bins // max(len(ordered), 1)
    return ordered.groupby(groups).median()


def masks_figure(arm: str, masks: "dict[str, np.ndarray]") -> Markup:
    """Some cells by their highest genes: what is hidden in one mask, and how often over many.

    Args:
        masks: masks.npz: values (c, G), mask (c, G) bool, hidden (c, G) shares, genes (G,),
            cell_types (c,), draws ().
    """
    import numpy as np

    values = masks["values"][:SHOWN_CELLS]
    genes = np.argsort(-values.mean(axis=0), kind="stable")[:SHOWN_GENES]
    values, mask, hidden = (
        masks[name][:SHOWN_CELLS][:, genes].astype(float) for name in ("values", "mask", "hidden")
    )
    rows = [shortened(str(name) or "no type", 22) for name in masks["cell_types"][:SHOWN_CELLS]]
    alt = (
        f"Masks of {arm} on {amount(len(rows), 'cell')} ({listed(rows)}), their {len(genes)} highest genes: {percent(mask.mean())} of these"
        f" positions are hidden in the mask shown, and {percent(hidden.min())} to {percent(hidden.max())} over many masks."
    )

    def paint(figure: "Figure") -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.imshow(values, cmap=blues(), aspect="auto", interpolation="nearest")
        upper.imshow(
            np.where(mask > 0, 1.0, np.nan),
            cmap=_one_colour(FIXED[0]),
            aspect="auto",
            interpolation="nearest",
        )
        upper.set_title(f"{shortened(arm, 40)}: expression (blue), hidden in one mask (orange)")
        shown = lower.imshow(
            100 * hidden,
            cmap=blues(),
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=max(100 * hidden.max(), 1),
        )
        lower.set_title(
            f"How often each is hidden, over {int(masks['draws']) if 'draws' in masks else 'many'} masks of each cell"
        )
        lower.set_xticks(
            range(len(genes)),
            [shortened(str(name), 12) for name in masks["genes"][genes]],
            rotation=90,
            fontsize=8.5,
        )
        for axes in (upper, lower):
            axes.set_yticks(range(len(rows)), rows)
            axes.grid(False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=lower, label="%", fraction=0.025, pad=0.01)
        bar.outline.set_visible(False)

    return draw(MASKS_WIDTH, 190 + 2 * 22 * len(rows), alt, paint)


def _one_colour(colour: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([colour])
