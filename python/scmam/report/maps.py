"""Maps of the cells: pooled encoder output of a run in two dimensions, coloured by cell type."""

import math
import warnings
from importlib.util import find_spec
from typing import Literal, cast, get_args

import numpy as np
from matplotlib.figure import Figure

from ..drawing import CLASSES, GROUND, INK, MARKERS, Drawing, Options, shortened
from ..errors import ReportError
from .formatting import amount

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
        name = "umap" if installed else "pca"
    if name not in get_args(Projection):
        raise ReportError(f"projection: expected auto, umap or pca; got {name!r}")
    if name == "umap" and not installed:
        raise ReportError("projection: umap needs the package umap-learn; install it, or take pca")
    return cast(Projection, name)


def shown_cells(number: int) -> np.ndarray:
    """The rows that are drawn: all, or a fixed random choice of `MOST_CELLS`."""

    if number <= MOST_CELLS:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, MOST_CELLS, replace=False))


def project(features: np.ndarray, projection: Projection) -> np.ndarray:
    """Two coordinates a cell, (cells, 2), from standardised features.

    UMAP starts from the first 50 principal components and has a fixed seed, so that a report can be
    made again.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features.astype("float32"))
    components = min(COMPONENTS if projection == "umap" else 2, *scaled.shape)
    reduced = PCA(components, random_state=0).fit_transform(scaled)
    if projection == "pca" or len(features) <= NEIGHBOURS:
        return np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))[:, :2]
    from umap import UMAP

    with warnings.catch_warnings():
        # A seed means one thread: wanted.
        warnings.filterwarnings("ignore", ".*n_jobs value .* overridden", UserWarning)
        return UMAP(n_neighbors=NEIGHBOURS, min_dist=0.3, random_state=0).fit_transform(reduced)


def map_figure(
    title: str, places: np.ndarray, codes: np.ndarray, classes: list[str], projection: Projection
) -> Drawing:
    """A dot a cell; the number of each type, as in the legend, is at the type's median."""

    name = projection.upper()
    cells, types = amount(len(places), "cell"), amount(len(classes), "cell type")
    alt = f"{name} map of {cells} by the encoder of {title}, coloured by {types}."

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        size = min(14.0, max(2.5, 260 / math.sqrt(len(places))))
        look: Options = {"s": size, "alpha": 0.8, "linewidths": 0, "rasterized": True}
        for code in range(-1, len(classes)):
            colour, marker = class_style(code)
            x, y = places[codes == code].T
            axes.scatter(x, y, c=colour, marker=marker, **look)
        middle: Options = {"ha": "center", "va": "center", "fontsize": 9, "color": INK}
        circle: Options = {"boxstyle": "circle,pad=0.18", "facecolor": GROUND, "linewidth": 1}
        for code in np.unique(codes[codes >= 0]):
            box = circle | {"edgecolor": class_style(code)[0]}
            x, y = np.median(places[codes == code], axis=0)
            axes.text(x, y, str(code + 1), bbox=box, **middle)
        axes.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
        axes.grid(False)
        axes.set_title(shortened(title, 38))

    return Drawing(WIDTH, WIDTH, alt, paint)


def class_style(code: int) -> tuple[str, str]:
    """Colour and marker of a cell type; hues repeat with another marker.

    Grey for cells without a type.
    """
    if code < 0:
        return "#b4bcc4", "."
    turn, hue = divmod(code, len(CLASSES))
    return CLASSES[hue], MARKERS[turn % len(MARKERS)]
