"""Linear probe: a linear classifier of the frozen features."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from ..config import Evaluation as Settings
from ..data import Cells
from ..objective import Pretraining
from .cross_validation import Say, cross_validate, describe, scored, silent
from .embedding import embed
from .scores import Evaluation

METHOD = "linear-probe"
PENALTY = 0.1
"""Inverse strength ``C`` of the L2 penalty; with whitened features .03 and .1 were the best of .001
to 1 on three sets of cells.
"""
LEAST_VARIANCE = 1e-8
"""Of a component, relative to the largest, below which it is the rounding of float32 features and
not something that they say.
"""
ITERATIONS = 2000


def linear_probe(
    pretraining: Pretraining,
    cells: Cells,
    settings: Settings,
    seed: int = 0,
    *,
    say: Say = silent,
) -> Evaluation:
    """Logistic regression on the frozen features, whitened by the mean and covariance of each
    fold's training cells.

    Whitening (standardising along the principal axes) loses nothing that is linear. Without it, the
    few directions in which features of a pretrained encoder vary most take up the whole L2 penalty,
    and the solver needs many times the steps.

    Args:
        pretraining: its model is not changed.
        cells: with the genes of the model, and labels; cells without one are left out.
        settings: the `evaluation` section of a configuration.
        seed: of the pretraining, which is recorded; the fit itself draws nothing.
        say: is told of the progress.

    Raises:
        CellsError: the labels do not allow the folds.
    """
    cells = scored(cells, settings)
    return probe_features(
        embed(pretraining, cells, max_tokens=settings.max_tokens, say=say),
        cells,
        settings,
        seed,
        say=say,
    )


def probe_features(
    features: np.ndarray, cells: Cells, settings: Settings, seed: int, *, say: Say = silent
) -> Evaluation:
    """`linear_probe` of features (cells, F) that were computed before; every cell has a label."""
    from sklearn.decomposition import PCA

    features = features.astype(np.float64)

    def predict(_: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        axes = PCA(whiten=True, svd_solver="full").fit(features[train])
        kept = axes.explained_variance_ > LEAST_VARIANCE * axes.explained_variance_[0]
        inside, outside = (axes.transform(features[rows])[:, kept] for rows in (train, test))
        return fitted_probe(inside, cells.codes[train]).predict(outside)

    return cross_validate(
        METHOD, cells, settings, predict, probe_record(cells, settings, seed), say
    )


def fitted_probe(features: np.ndarray, codes: np.ndarray) -> LogisticRegression:
    """The classifier of a probe, fitted to whitened features (n, F) and classes (n,)."""

    return LogisticRegression(C=PENALTY, max_iter=ITERATIONS).fit(features, codes)


def probe_record(cells: Cells, settings: Settings, seed: int) -> dict[str, Any]:
    """`Evaluation.settings` of a probe."""
    return describe(
        METHOD,
        cells,
        settings,
        seed=seed,
        max_tokens=settings.max_tokens,
        classifier=f"logistic regression (lbfgs, L2, C = {PENALTY:g}) on whitened features",
    )
