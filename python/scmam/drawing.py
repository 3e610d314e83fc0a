"""The style of figures, and how they are saved: SVG in the report, PNG beside a run.

Greys and the colours of arms are fixed here. The style sheet of the report replaces them by CSS
variables, so one drawing serves light and dark pages and print.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.style import context

INK, QUIET, RULE, GROUND = "#1c2127", "#5d6773", "#d9dee4", "#fefefe"
FIXED = ("#d55e00", "#e69f00", "#882255", "#8a8f2f", "#7f4f24")
"""Warm colours: masks that are not learned."""

LEARNED = ("#0072b2", "#009e73", "#56b4e9", "#6a51a3", "#23307f")
"""Cool colours: masks that are learned."""

UNTRAINED = "#7b8591"
CLASSES = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994f00", "#888888"),
    *("#332288", "#44aa99", "#dd7733", "#117733", "#cc6699", "#7a9e1f", "#1b7ea1", "#9b6bce"),
)
"""Colours of cell types."""

DARK_INK = "#1c2126"
"""Ink on a coloured field, which is the same on light and dark pages."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
STYLE = Path(__file__).with_name("figures.mplstyle")
COLOURS = {
    **dict.fromkeys(("text.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), QUIET),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), RULE),
}
NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
Options = dict[str, Any]
"""Keyword arguments of a function of matplotlib."""

DPI = 150
"""Resolution of PNG files, in dots an inch."""


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is saved.

    Args:
        width, height: in CSS pixels, of which a PNG has 72 an inch.
        alt: description of the figure, for readers who do not see it.
        paint: draws on an empty figure.
    """

    width: float
    height: float
    alt: str
    paint: Callable[[Figure], None]

    def svg(self) -> str:
        """The ``<svg>`` element; the same text each time."""
        # The salt makes the identifiers of one drawing differ from those of another on the page.
        drawn = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        style = {"svg.fonttype": "none", "svg.hashsalt": self.alt}
        self._save(drawn, style, format="svg", transparent=True, dpi=160, metadata=metadata)
        for prefix, name in NAMESPACES.items():
            ElementTree.register_namespace(prefix, name)
        root = ElementTree.fromstring(drawn.getvalue())
        for group in root.iterfind(".//g", NAMESPACES):
            group.attrib.pop("id", None)  # "axes_1" would be there once a figure
        return ElementTree.tostring(root, encoding="unicode")

    def save_png(self, path: Path) -> None:
        """Write a PNG file with a white ground."""
        self._save(path, {}, format="png", dpi=DPI, facecolor="white")

    def _save(self, file: Any, style: Options, **options: Any) -> None:
        # Without pyplot, so that no global state, window or notebook backend is touched.
        with context([STYLE, COLOURS | style]):
            figure = Figure((self.width / 72, self.height / 72), layout="constrained")
            self.paint(figure)
            figure.savefig(file, **options)


def blues() -> Any:
    """A colour map from a pale ground to dark blue, in steps that a grey print keeps."""

    return LinearSegmentedColormap.from_list("blues", ["#f3f6f9", "#9cc3df", "#2b7bb3", "#0b3c66"])


def shortened(name: str, letters: int) -> str:
    """A name that fits a label; an ellipsis stands for what was cut."""
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"
