"""The look of the arms, the same in every figure and table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..drawing import FIXED, LEARNED, MARKERS, UNTRAINED
from .folder import StudyFiles

DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.2, 1.4)))


@dataclass(frozen=True)
class ArmStyle:
    """Hues repeat after five, with other markers and dashes."""

    colour: str
    marker: str
    dash: Any

    @property
    def svg_dashes(self) -> str:
        """For ``stroke-dasharray`` in the legend."""
        return "" if self.dash == "-" else " ".join(f"{2.2 * part:g}" for part in self.dash[1])


Styles = Mapping[str, ArmStyle]
"""The style of each arm."""


def arm_styles(study: StudyFiles) -> Styles:
    """The style of each arm: cool colours for learned masks, warm ones for others."""
    counts, untrained = {True: 0, False: 0}, 0
    styles: dict[str, ArmStyle] = {}
    for place, arm in enumerate(study.arms):
        marker = MARKERS[place % len(MARKERS)]
        if study.strategy(arm) == "none":
            untrained += 1
            styles[arm] = ArmStyle(UNTRAINED, marker, DASHES[-untrained % len(DASHES)])
            continue
        learned = study.is_learned(arm)
        colours = LEARNED if learned else FIXED
        turn, hue = divmod(counts[learned], len(colours))
        counts[learned] += 1
        # Learned masks have solid lines and others broken ones: where two lines coincide, both are
        # seen.
        styles[arm] = ArmStyle(colours[hue], marker, DASHES[(turn + (not learned)) % len(DASHES)])
    return styles
