"""How figures are drawn: matplotlib into SVG that stands in the page itself, in the page's own type
and colours.

Greys and the colours of arms leave matplotlib as fixed stand-ins and become CSS variables, so that
one drawing serves light and dark pages and print. A drawing is as wide as its panel in the page;
text in it is 11 to 12 px.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .markup import Markup, element

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .material import Material

INK, QUIET, RULE, GROUND = "#1c2127", "#5d6773", "#d9dee4", "#fefefe"
FIXED = ("#d55e00", "#e69f00", "#882255", "#8a8f2f", "#7f4f24")  # warm: masks that are not learned
LEARNED = ("#0072b2", "#009e73", "#56b4e9", "#6a51a3", "#23307f")  # cool: masks that are
UNTRAINED = "#7b8591"
DARK = {
    "#882255": "#c4719b",
    "#7f4f24": "#b98758",
    "#0072b2": "#4b9fd6",
    "#6a51a3": "#9d88d4",
    "#23307f": "#7886e0",
    "#009e73": "#1fb38a",
}
VARIABLES = {INK: "--ink", QUIET: "--quiet", RULE: "--rule", GROUND: "--ground"} | {
    colour: f"--arm-{colour.removeprefix('#')}" for colour in (*FIXED, *LEARNED, UNTRAINED)
}
CLASS_COLOURS = (
    *(
        "#4477aa",
        "#ee6677",
        "#228833",
        "#ccbb44",
        "#66ccee",
        "#aa3377",
        "#994f00",
        "#888888",
        "#332288",
        "#44aa99",
    ),
    *("#dd7733", "#117733", "#cc6699", "#7a9e1f", "#1b7ea1", "#9b6bce"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.2, 1.4)))
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class called $x$ is no formula
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "figure.dpi": 72,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    **dict.fromkeys(("text.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), QUIET),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), RULE),
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every figure: hues repeat after five, markers and dashes tell those
    apart.
    """

    colour: str
    marker: str
    dash: Any

    @property
    def css(self) -> str:
        return f"var({VARIABLES[self.colour]})"

    @property
    def line(self) -> Markup:
        dashes = (
            "" if self.dash == "-" else " ".join(f"{2.2 * length:g}" for length in self.dash[1])
        )
        stroke = f'fill="none" stroke="{self.css}" stroke-width="4" stroke-dasharray="{dashes}"'
        return Markup(
            f'<svg viewBox="0 0 38 16" aria-hidden="true"><path d="M0 8H38" {stroke}/></svg>'
        )

    @property
    def swatch(self) -> Markup:
        return Markup(f'<i class="swatch" style="background:{self.css}"></i>')


class Palette:
    """The styles of a study's arms, the same in every figure."""

    def __init__(self, material: "Material") -> None:
        self.material = material

    @cached_property
    def styles(self) -> dict[str, ArmStyle]:
        counts, styles = {"learned": 0, "fixed": 0}, {}
        for place, arm in enumerate(self.material.arms):
            marker = MARKERS[place % len(MARKERS)]
            if self.material.strategy(arm) == "none":
                styles[arm] = ArmStyle(UNTRAINED, marker, DASHES[-1])
                continue
            kind, colours = (
                ("learned", LEARNED) if self.material.is_learned(arm) else ("fixed", FIXED)
            )
            turn, hue = divmod(counts[kind], len(colours))
            counts[kind] += 1
            # Solid lines for learned masks, broken ones for the others: where lines lie on each
            # other, both are seen.
            styles[arm] = ArmStyle(
                colours[hue], marker, DASHES[(turn + (kind == "fixed")) % len(DASHES)]
            )
        return styles

    def __getitem__(self, arm: str) -> ArmStyle:
        return self.styles[arm]

    def label(self, arm: str) -> Markup:
        """Its name behind its colour."""
        return element("span", self[arm].swatch, arm, class_="arm")

    def legend(self, arms: Sequence[str]) -> Markup:
        """The names of some arms behind their lines."""
        return element(
            "p",
            *(element("span", self[arm].line, arm, class_="arm") for arm in arms),
            class_="legend",
        )


def draw(width: float, height: float, alt: str, paint: "Callable[[Figure], None]") -> Markup:
    """A drawing of `width` by `height` CSS pixels as SVG; `alt` says in words what is to be seen."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, dpi=160)
    return _for_the_page(file.getvalue(), width, height, alt)


def _for_the_page(svg: str, width: float, height: float, alt: str) -> Markup:
    """The drawing without prolog, metadata, style sheet, names of groups and own fonts, and with
    variables for colours.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<svg[^>]*>", "", body, count=1)
    body = re.sub(
        r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*", "", body, flags=re.DOTALL
    )
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*;?\s*|(?<=px) '[^;\"]*(?=[;\"])", "", body)
    body = re.sub(r"font: ([\d.]+px)", r"font-size: \1", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(f": {colour}", f": var({variable})")
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{1.15 * width:g}px"'
    return Markup(f'<svg role="img" aria-label="{html.escape(alt)}" {size}>{body.strip()}')


def blues() -> Any:
    """From a pale ground to dark blue, in steps of lightness that a print in grey keeps."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#f3f6f9", "#9cc3df", "#2b7bb3", "#0b3c66"])
