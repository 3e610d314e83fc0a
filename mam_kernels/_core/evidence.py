"""Known speeds of the GPU backends, by which ``backend=None`` chooses.

``evidence.json`` beside this file holds microseconds of whole paths at the sizes of a large
training step: measured on a GPU, or bounded by the count of the machine code. ``python -m
benchmarks.evidence`` writes it from ``benchmarks/results``.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("evidence.json")

PATHS = {
    "sample_without_replacement": "selection",
    "draw_latents": "selection",
    "value_attention": "value_path",
    "value_mask": "value_path_forward_backward",
    "latent_attention": "token_path_forward_backward",
    "latent_attention_backward": "token_path_forward_backward",
    "attention_logsumexp": "token_path_forward",
    "attention_importance": "token_path_forward",
    "token_mask": "token_path_forward_backward",
    "inclusion_probabilities": "inclusion_forward_backward",
    "inclusion_probabilities_backward": "inclusion_forward_backward",
}
"""Operation -> the path whose time is taken for it. One backend runs both passes of an operation,
so both count where there is a gradient.
"""


class Figure(NamedTuple):
    """The time of a path on one backend."""

    microseconds: float
    kind: str  # "measured" or "bound"
    device: str

    def __str__(self) -> str:
        return f"{self.kind} {self.microseconds:.1f} us on {self.device}"


@functools.cache
def figures(op: str) -> dict[str, Figure]:
    """Backend -> its figure for an operation: measured ones if there are any, else bounds.

    Backends that are not named have no figure of that kind. On other GPUs than those of the figures
    the order of the backends is assumed to be the same.
    """
    path, known = PATHS.get(op), json.loads(FILE.read_text())
    for kind in ("measured", "bound"):
        if kind in known and known[kind]["microseconds"].get(path):
            device = known[kind]["device"]
            by_backend = known[kind]["microseconds"][path]
            return {name: Figure(us, kind, device) for name, us in by_backend.items()}
    return {}


def fastest_first(op: str, backends: Sequence[str]) -> list[str]:
    """The backends by their figures; those without one follow in the order given."""
    known = figures(op)
    return sorted(
        backends, key=lambda name: known[name].microseconds if name in known else float("inf")
    )
