"""Linear probe: a linear classifier of the frozen features."""

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from ..data import Cells
from ..objective import Pretraining
from ..settings import Evaluation as Settings
from .cross_validation import Predict

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


def predictor(
    features: np.ndarray, pretraining: Pretraining, cells: Cells, settings: Settings, seed: int
) -> Predict:
    """Logistic regression on the frozen features (cells, F), whitened by the mean and covariance of
    each fold's training cells.

    Whitening (standardising along the principal axes) loses nothing that is linear. Without it, the
    few directions in which features of a pretrained encoder vary most take up the whole L2 penalty,
    and the solver needs many times the steps. The fit draws nothing.
    """
    features = features.astype(np.float64)

    def predict(_: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        inside, outside = whitened(features[train], features[test])
        return fitted_probe(inside, cells.codes[train]).predict(outside)

    return predict


def details(settings: Settings) -> dict[str, Any]:
    """Entries of `Evaluation.settings` of a probe."""
    return {"classifier": f"logistic regression (lbfgs, L2, C = {PENALTY:g}) on whitened features"}


def whitened(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of training and test cells, float64 (n, F), along the principal axes of the former,
    at variance 1.
    """
    axes = PCA(whiten=True, svd_solver="full").fit(train)
    kept = axes.explained_variance_ > LEAST_VARIANCE * axes.explained_variance_[0]
    return axes.transform(train)[:, kept], axes.transform(test)[:, kept]


def fitted_probe(features: np.ndarray, codes: np.ndarray) -> LogisticRegression:
    """The classifier of a probe, fitted to whitened features (n, F) and classes (n,)."""
    return LogisticRegression(C=PENALTY, max_iter=ITERATIONS).fit(features, codes)
