"""The paper's table as a study: a pretrained model, ten ways to continue from it, and an untrained
one, against which it has to show that it is worth continuing from.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

UNTRAINED, BACKBONE = "none", "orig"
SCHEMES = ("encoder", "decoder", "both", "separate")
ARMS = (
    BACKBONE,
    *("uniform-stratified-token", "uniform-stratified"),
    *(f"mam-published-{scheme}{suffix}" for scheme in SCHEMES for suffix in ("", "-mixed")),
)
WORTH = 0.03  # of macro-F1, that the backbone has to be ahead of an untrained model

SETTINGS: dict[str, dict[str, Any]] = {
    "training": {
        "cells": "training",
        "keep": "best",
        "lr": 1e-5,
        "masking_lr": 1e-4,
        "rate_groups": "published",
        "schedule": "constant",
        "amsgrad": True,
        "warmup": 0.0,
        "clip": 0.0,
        "cell_loss": 0.0,
    },
    "evaluation": {
        "protocol": "published",
        "methods": ["mlp-probe", "fine-tuning"],
        "lr": 1e-4,
        "block": -2,
    },
    "study": {"arms": [UNTRAINED, *ARMS], "reference": BACKBONE},
}
"""What `scmam compare --protocol published` sets where the file and the flags do not."""


def verdict(summary: "pandas.DataFrame") -> str | None:
    """Whether the backbone is ahead of an untrained model by enough for its continuation to be
    compared; a line for each method. None: the summary of the study does not have both.
    """
    rows = summary.query("metric == 'macro_f1'").set_index(["arm", "method"])["mean"]
    lines = []
    for method in dict.fromkeys(method for _, method in rows.index):
        if not {(UNTRAINED, method), (BACKBONE, method)} <= set(rows.index):
            continue
        ahead = rows[BACKBONE, method] - rows[UNTRAINED, method]
        enough = (
            "so its continuation can be compared"
            if ahead >= WORTH
            else (
                f"and not {100 * WORTH:g} or more better: it taught the encoder too little for what"
                " continues from it to be compared"
            )
        )
        size = f"{100 * abs(ahead):.1f} points of macro-F1 {'better' if ahead >= 0 else 'worse'}"
        lines.append(f"{method}: the backbone is {size} than an untrained encoder, {enough}")
    return "\n".join(lines) or None
