"""The same cells and folds, or the same test set and bootstraps of it, for every method, so that
scores can be paired.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..data import Cells, development_split, folds, stratified
from ..data.splits import require_classes
from ..errors import CellsError
from ..settings import Evaluation as Settings
from .scores import Evaluation, FoldScores, score

Predict = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(fold, train, test) -> codes of the test cells; train and test are int64 positions among the
labelled cells.
"""
Say = Callable[[str], None]


def silent(_: str) -> None:
    """Report nothing."""


def scored_positions(cells: Cells, settings: Settings) -> np.ndarray:
    """(n,) int64 positions of the cells that are scored: those with a label, or the part of them
    that ``settings.part`` names.

    Raises:
        CellsError: too few donors for the share that is set aside.
    """
    rest, development = development_split(cells, settings.development, settings.fold_seed)
    return development if settings.part == "development" else rest


def scored(cells: Cells, settings: Settings) -> Cells:
    """The cells of `scored_positions`, and the classes that occur among them."""
    kept = cells.subset(scored_positions(cells, settings))
    return kept if kept.labels is None else replace(kept, classes=())  # which are found anew


def splits(cells: Cells, settings: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) positions among the cells: of each fold, or of the one test set of protocol
    "published".

    Args:
        cells: from `scored`.

    Raises:
        CellsError: the labels or the donors do not allow it.
    """
    if settings.protocol == "folds":
        return folds(cells, settings.folds, settings.fold_seed)
    require_classes(cells)
    train, test = development_split(cells, settings.test, settings.fold_seed)
    if len(test) == 0 or len(train) == 0:
        raise CellsError(
            f"{cells.source}: {len(cells)} cells with a label are too few for a test set of"
            f" {settings.test:g} of them; set evaluation.test higher"
        )
    return [(train, test)]


def without_test(cells: Cells, settings: Settings) -> np.ndarray:
    """(n,) int64 positions of all cells but the test cells of protocol "published"; those without a
    label stay.
    """
    positions = scored_positions(cells, settings)
    published = settings.model_copy(update={"protocol": "published"})
    ((_, test),) = splits(scored(cells, settings), published)
    return np.setdiff1d(np.arange(len(cells)), positions[test])


def cross_validate(
    method: str,
    cells: Cells,
    settings: Settings,
    predict: Predict,
    recorded: dict[str, Any],
    say: Say = silent,
) -> Evaluation:
    """Score a method on the folds of ``settings.folds`` and ``settings.fold_seed``; under protocol
    "published" fit it once, and score it on as many bootstraps of the test cells.

    Args:
        method: its name.
        cells: from `scored`.
        settings: of the evaluation.
        predict: fits on the training cells and predicts the test cells, which it must not look at
            otherwise.
        recorded: what goes into `Evaluation.settings`.
        say: is told of each fold.

    Raises:
        CellsError: the cells do not allow these folds, or a fold (donors kept together) would train
            on one class.
    """
    scores: list[FoldScores] = []
    for number, (train, test) in enumerate(splits(cells, settings)):
        if settings.train_cells is not None:
            seed = settings.fold_seed + number
            train = train[stratified(cells.codes[train], settings.train_cells, seed)]
        _require_classes(cells, number, train)
        begin = time.perf_counter()
        predicted = predict(number, train, test)
        seconds = time.perf_counter() - begin
        truth = cells.codes[test]
        classes = len(cells.classes)
        of_fold = partial(score, num_classes=classes, train_cells=len(train), seconds=seconds)
        for drawn in _bootstraps(len(test), settings):
            scores.append(of_fold(len(scores), truth[drawn], predicted[drawn]))
            say(_line(method, scores[-1], settings))
    return Evaluation(method, cells.classes, tuple(scores), recorded)


def _bootstraps(cells: int, settings: Settings) -> list[np.ndarray | slice]:
    """Positions among the test cells, of each score."""
    if settings.protocol == "folds":
        return [slice(None)]
    random = np.random.default_rng(settings.fold_seed)
    return [random.integers(cells, size=cells) for _ in range(settings.folds)]


def describe(method: str, cells: Cells, settings: Settings, **more: Any) -> dict[str, Any]:
    """Everything that decides the scores of a method, for `Evaluation.settings`: the cells, the
    folds, and the method's own settings.

    Args:
        cells: from `scored`.
    """
    test = () if settings.protocol == "folds" else ("test",)
    names = ("protocol", *test, "folds", "fold_seed", "development", "part", "train_cells")
    return {
        "method": method,
        **{name: getattr(settings, name) for name in names},
        "source": cells.source,
        "label": cells.label,
        "donor": cells.donor,
        "cells": len(cells),
        "genes": cells.num_genes,
        "content": cells.fingerprint(),
        **more,
    }


def _require_classes(cells: Cells, fold: int, train: np.ndarray) -> None:
    present = np.unique(cells.codes[train])
    if len(present) < 2:
        raise CellsError(
            f"{cells.source}: the training cells of fold {fold + 1} are all"
            f" {cells.classes[int(present[0])]}, for donors are kept together; set"
            " evaluation.folds lower, or leave data.donor unset"
        )


def _line(method: str, scores: FoldScores, settings: Settings) -> str:
    part = "fold" if settings.protocol == "folds" else "bootstrap"
    return (
        f"{method}: {part} {scores.fold + 1} of {settings.folds}: accuracy {scores.accuracy:.3f},"
        f" macro-F1 {scores.macro_f1:.3f} on {scores.test_cells} cells, {scores.seconds:.1f} s"
    )
