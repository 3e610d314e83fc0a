"""Cell-type classification from a pretrained encoder, by cross-validation, and the baselines that
it is measured against.

- ``linear-probe``: logistic regression on the frozen features.
- ``mlp-probe``: the published head, two layers after batch norm, on the frozen encoder.
- ``fine-tuning``: embeddings, one encoder block and a two-layer head are trained, all else is
  frozen.
- baselines ``logistic-regression`` and ``pca``: classifiers of the log-normalised counts
  themselves.

With ``evaluation.protocol: published`` there is one test set, scored on bootstraps, and fine-tuning
follows the published recipe (`published`).

`evaluate` writes ``evaluation/METHOD.json`` (an `Evaluation` each) and ``evaluation/embedding.npz``
into a run folder.
"""

from typing import Any

_WHERE = {
    "Evaluation": "scores",
    "FoldScores": "scores",
    "Interval": "intervals",
    "PairedDifference": "intervals",
    "baseline": "baselines",
    "embed": "embedding",
    "evaluate": "folder",
    "fine_tune": "fine_tuning",
    "interval": "intervals",
    "linear_probe": "probing",
    "paired_difference": "intervals",
}

__all__ = [
    "Evaluation",
    "FoldScores",
    "Interval",
    "PairedDifference",
    "baseline",
    "embed",
    "evaluate",
    "fine_tune",
    "interval",
    "linear_probe",
    "paired_difference",
]


def __getattr__(name: str) -> Any:
    # torch and scikit-learn are loaded when they are needed: a report reads scores, and needs
    # neither.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
