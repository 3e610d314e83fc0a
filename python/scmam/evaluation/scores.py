"""Scores of a classification by cross-validation, and the JSON file that keeps them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..config import problem
from ..errors import RunError
from ..storage import write_file

METRICS = ("accuracy", "macro_f1", "micro_f1")


@dataclass(frozen=True)
class FoldScores:
    """How well the test cells of a fold, or of a bootstrap of the test set, were classified.

    F1 is over all classes, 0 for one that is neither there nor predicted.
    """

    fold: int  # from 0
    accuracy: float
    macro_f1: float
    micro_f1: float
    per_class_f1: tuple[float, ...]  # in the order of the classes
    confusion: tuple[tuple[int, ...], ...]  # cells; rows = truth, columns = prediction
    train_cells: int
    test_cells: int
    seconds: float  # of fitting and predicting


@dataclass(frozen=True)
class Evaluation:
    """A classification method, scored on every fold.

    Attributes:
        method: "linear-probe", "mlp-probe", "fine-tuning", "logistic-regression" or "pca".
        classes: in the order of `FoldScores.per_class_f1` and of the confusion matrix.
        folds: one each.
        settings: all that decides the scores; values are those of JSON.
    """

    method: str
    classes: tuple[str, ...]
    folds: tuple[FoldScores, ...]
    settings: dict[str, Any]

    def values(self, metric: str) -> np.ndarray:
        """(folds,) float64 of "accuracy", "macro_f1" or "micro_f1"."""
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}; got {metric!r}")
        return np.array([getattr(fold, metric) for fold in self.folds])

    def mean(self, metric: str) -> float:
        """Mean over the folds."""
        return float(self.values(metric).mean())

    def confusion(self) -> np.ndarray:
        """(classes, classes) int64, summed over the folds: rows = truth.

        Every evaluated cell is counted once; of bootstraps, as often as it was drawn.
        """
        return np.stack([fold.confusion for fold in self.folds]).sum(axis=0, dtype=np.int64)

    def to_json(self) -> str:
        """As text; `from_json` gives the same again."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """Read what `to_json` wrote.

        Raises:
            RunError: it is something else; the message says what is missing or wrong first.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            found = problem(error.errors()[0])
            raise RunError(f"not the scores of an evaluation ({found})") from error

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_file(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a file.

        Raises:
            RunError: it is not there, or not what `save` wrote.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path}: no such file; `scmam evaluate` writes it") from error
        except (OSError, UnicodeDecodeError, RunError) as error:
            raise RunError(f"{path}: {error}; delete it and evaluate again") from error


def score(
    fold: int,
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    *,
    train_cells: int,
    seconds: float,
) -> FoldScores:
    """Compare predictions with the truth, by scikit-learn's metrics.

    Args:
        fold: number of the fold.
        truth, predicted: (cells,) int64 codes in [0, num_classes).
        num_classes: all of them, so that a class that is absent from the fold keeps its place.
        train_cells: how many cells were trained on.
        seconds: that it took.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    labels = np.arange(num_classes)

    def f1(average: str | None) -> Any:
        return f1_score(truth, predicted, labels=labels, average=average, zero_division=0)

    return FoldScores(
        fold=fold,
        accuracy=float(accuracy_score(truth, predicted)),
        macro_f1=float(f1("macro")),
        micro_f1=float(f1("micro")),
        per_class_f1=tuple(map(float, f1(None))),
        confusion=tuple(map(tuple, confusion_matrix(truth, predicted, labels=labels).tolist())),
        train_cells=train_cells,
        test_cells=len(truth),
        seconds=seconds,
    )
