"""Maps of the cells: the pooled encoder output of a run in two dimensions, coloured by cell type."""

import math
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from ..errors import ReportError
from .drawing import CLASS_COLOURS, GROUND, INK, MARKERS, draw
from .formatting import amount, count, shortened
from .markup import Markup, element

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

Projection = Literal["umap", "pca"]
MOST_CELLS = 4000
NEIGHBOURS = 15
COMPONENTS = 50
WIDTH = 350


def checked_projection(name: str) -> Projection:
    """The projection asked for; "auto" is UMAP where umap-learn is installed, else PCA.

    Raises:
        ReportError: there is none of that name, or its library is not installed.
    """
    installed = find_spec("umap") is not None
    if name == "auto":
        return "umap" if installed else "pca"
    if name not in ("umap", "pca"):
        raise ReportError(f"projection: expected auto, umap or pca; got {name!r}")
    if name == "umap" and not installed:
        raise ReportError("projection: umap needs the package umap-learn; install it, or take pca")
    return name


def shown_cells(number: int) -> "np.ndarray":
    """The rows that are drawn: all, or a fixed random choice of `MOST_CELLS`."""
    import numpy as np

    return (
        np.arange(number)
        if number <= MOST_CELLS
        else np.sort(np.random.default_rng(0).choice(number, MOST_CELLS, replace=False))
    )


def project(features: "np.ndarray", projection: Projection) -> "np.ndarray":
    """Two coordinates a cell, (cells, 2), from standardised features, as the linear probe takes
    them.

    UMAP starts from the first 50 principal components and has a fixed seed, so that a report can be
    made again.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features.astype("float32"))
    components = min(COMPONENTS if projection == "umap" else 2, *scaled.shape)
    reduced = PCA(components, random_state=0).fit_transform(scaled)
    if projection == "pca" or len(features) <= NEIGHBOURS:
        return _two_columns(reduced)
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*n_jobs value .* overridden", category=UserWarning
        )  # a seed means one thread: wanted
        return UMAP(n_neighbors=NEIGHBOURS, min_dist=0.3, random_state=0).fit_transform(reduced)


def _two_columns(reduced: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))[:, :2]


def map_figure(
    title: str,
    points: "np.ndarray",
    codes: "np.ndarray",
    classes: list[str],
    projection: Projection,
) -> Markup:
    """A dot a cell; the number of its type stands at the type's middle, as in the legend."""
    import numpy as np

    name = "UMAP" if projection == "umap" else "PCA"
    alt = f"{name} map of {amount(len(points), 'cell')} by the encoder of {title}, coloured by {amount(len(classes), 'cell type')}."

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for code in range(-1, len(classes)):
            chosen = points[codes == code]
            colour, marker = class_style(code)
            axes.scatter(
                *chosen.T,
                s=_dot_size(len(points)),
                c=colour,
                marker=marker,
                alpha=0.8,
                linewidths=0,
                rasterized=True,
            )
        for code in (code for code in range(len(classes)) if (codes == code).any()):
            middle = np.median(points[codes == code], axis=0)
            box = {
                "boxstyle": "circle,pad=0.18",
                "facecolor": GROUND,
                "edgecolor": class_style(code)[0],
                "linewidth": 1,
            }
            axes.text(
                *middle, str(code + 1), ha="center", va="center", fontsize=9, color=INK, bbox=box
            )
        axes.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
        axes.grid(False)
        axes.set_title(shortened(title, 38))

    return draw(WIDTH, WIDTH, alt, paint)


def _dot_size(number: int) -> float:
    return min(14.0, max(2.5, 260 / math.sqrt(number)))


def class_style(code: int) -> tuple[str, str]:
    """Colour and marker of a cell type; hues repeat with another marker.

    Grey for cells without a type.
    """
    if code < 0:
        return "#b4bcc4", "."
    turn, hue = divmod(code, len(CLASS_COLOURS))
    return CLASS_COLOURS[hue], MARKERS[turn % len(MARKERS)]


def classes_legend(classes: list[str], sizes: list[int]) -> Markup:
    """Number, colour, name and cells of each type."""
    items = (
        element(
            "li",
            Markup(f'<i class="swatch round" style="background:{class_style(code)[0]}"></i>'),
            name,
            " ",
            element("small", count(size)),
        )
        for code, (name, size) in enumerate(zip(classes, sizes, strict=True))
    )
    return element("ol", *items, class_="classes")
