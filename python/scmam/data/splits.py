"""Folds for evaluation, and cells that are kept aside."""

import numpy as np

from ..errors import CellsError, listing
from .cells import Cells

SHOWN = 10  # classes that a message lists at most


def folds(cells: Cells, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified k folds of the labelled cells; cells of one donor stay together where donors are
    known.

    Args:
        cells: with labels.
        num_folds: how many.
        seed: of the split.

    Returns:
        (train, test) for each fold, int64 positions among the cells. Every labelled cell is in one
        test set; cells without a label are in none.

    Raises:
        CellsError: no labels, a class with fewer cells than folds, or fewer donors than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    require_classes(cells)
    labelled = np.flatnonzero(cells.codes >= 0)
    small = {name: size for name, size in cells.class_sizes.items() if 0 < size < num_folds}
    if small:
        shown = listing([f"{name} ({size})" for name, size in small.items()], SHOWN)
        raise CellsError(
            f"{cells.source}: {len(small)} of the {len(cells.classes)} classes of"
            f" obs[{cells.label!r}] have fewer cells than the {num_folds} folds: {shown}; set"
            f" data.min_class to {num_folds} to drop them, or evaluation.folds to"
            f" {max(2, min(small.values()))}"
        )
    codes = cells.codes[labelled]
    if cells.donors is None:
        splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(codes, codes)
    else:
        donors = cells.donors[labelled]
        if (number := len(np.unique(donors))) < num_folds:
            raise CellsError(
                f"{cells.source}: obs[{cells.donor!r}] has {number} donors, fewer than the"
                f" {num_folds} folds; set evaluation.folds lower, or leave data.donor unset"
            )
        folded = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        splits = folded.split(codes, codes, donors)
    return [(labelled[train], labelled[test]) for train, test in splits]


def require_classes(cells: Cells) -> None:
    """Raise a `CellsError` unless the cells have labels of at least two classes."""
    if len(cells.classes) < 2:
        what = f"one class, {cells.classes[0]!r}" if cells.classes else "no labels"
        column = "" if cells.label is None else f" obs[{cells.label!r}]"
        raise CellsError(
            f"{cells.source}:{column} has {what}; set data.label to a column with at least two"
            " classes"
        )


def development_split(cells: Cells, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the labelled cells into those to score and those to choose settings on.

    Args:
        cells: with labels.
        share: of the labelled cells that is set aside, of every class alike; whole donors where
            donors are known, as near to the share as they allow. 0 sets none aside.
        seed: of the choice.

    Returns:
        (rest, development), int64 positions among the cells, ascending; cells without a label are
        in neither.

    Raises:
        CellsError: fewer donors than ``1 / share``.
    """
    labelled = np.flatnonzero(cells.codes >= 0)
    codes = cells.codes[labelled]
    aside = np.zeros(len(labelled), dtype=bool)
    if share and cells.donors is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        donors, parts = cells.donors[labelled], max(2, round(1 / share))
        if (number := len(np.unique(donors))) < parts:
            raise CellsError(
                f"{cells.source}: obs[{cells.donor!r}] has {number} donors, too few to set"
                f" {share:g} of the cells aside; set evaluation.development higher or to 0, or"
                " leave data.donor unset"
            )
        folded = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        _, part = next(folded.split(codes, codes, donors))
        aside[part] = True
    elif share:
        aside[stratified(codes, round(share * len(codes)), seed)] = True
    return labelled[~aside], labelled[aside]


def stratified(codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw cells at random, of every class in proportion and at least one of each class where the
    count allows it.

    Args:
        codes: (n,) int64 classes.
        count: of the cells to draw; all, if it is n or more.
        seed: of the draw.

    Returns:
        (min(count, n),) int64 positions, ascending.
    """
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    place = np.empty(len(codes))  # of a cell in its class, in [0, 1)
    for code in np.unique(codes):
        members = shuffled[codes[shuffled] == code]
        place[members] = np.arange(len(members)) / len(members)
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")[:count]])


def holdout(cells: Cells, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training cells and validation cells.

    Whole donors are kept aside where there are enough of them for the share; else cells at random.
    At least one cell is kept aside, and at least one is left, unless the share is 0.

    Args:
        cells: labels play no part.
        share: of the cells (or donors) that is kept aside; 0 keeps none.
        seed: of the choice.

    Returns:
        (train, validation), int64 positions among the cells, ascending.

    Raises:
        CellsError: a single cell cannot be split.
    """
    count = len(cells)
    everything = np.arange(count)
    if not share:
        return everything, everything[:0]
    if count < 2:
        raise CellsError(
            f"{cells.source}: {count} cells cannot be split; set training.validation to 0"
        )
    random = np.random.default_rng(seed)
    everyone = cells.donors
    donors = np.empty(0) if everyone is None else np.unique(everyone)
    aside = round(share * len(donors))
    if everyone is not None and 0 < aside < len(donors):
        kept = np.isin(everyone, random.permutation(donors)[:aside])
    else:
        kept = np.zeros(count, dtype=bool)
        kept[random.permutation(count)[: min(count - 1, max(1, round(share * count)))]] = True
    return everything[~kept], everything[kept]
