"""The paper's table as a study: a pretrained model, ten ways to continue from it, and an untrained
one, against which it has to show that it is worth continuing from.
"""

from typing import Any, NamedTuple

import pandas

from ..config import packaged

UNTRAINED, BACKBONE = "none", "orig"
WORTH = 0.03  # of macro-F1, that the backbone has to be ahead of an untrained model
SETTINGS: dict[str, dict[str, Any]] = packaged(__package__, "published.yaml")


class Backbone(NamedTuple):
    """How the model that training continued from does beside an untrained one."""

    method: str
    ahead: float  #: of macro-F1, shares of 1

    @property
    def is_worth(self) -> bool:
        """Whether it is ahead by enough for its continuation to be compared."""
        return self.ahead >= WORTH

    def __str__(self) -> str:
        side = "better" if self.ahead >= 0 else "worse"
        than = f"{100 * abs(self.ahead):.1f} points of macro-F1 {side} than an untrained encoder"
        enough = (
            "so its continuation can be compared"
            if self.is_worth
            else (
                f"and {100 * WORTH:g} or more better are required: it taught the encoder too little"
                " for what continues from it to be compared"
            )
        )
        return f"the backbone is {than}, {enough}"


def backbones(summary: pandas.DataFrame) -> list[Backbone]:
    """The backbone by each method under which the study has it and an untrained model."""
    rows = summary.query("metric == 'macro_f1'").set_index(["arm", "method"])["mean"]
    return [
        Backbone(method, float(rows[BACKBONE, method] - rows[UNTRAINED, method]))
        for method in dict.fromkeys(method for _, method in rows.index)
        if {(UNTRAINED, method), (BACKBONE, method)} <= set(rows.index)
    ]


def verdict(summary: pandas.DataFrame) -> str | None:
    """What is to be said of the backbone, a line for each method; None: nothing."""
    return "\n".join(f"{found.method}: {found}" for found in backbones(summary)) or None
