"""Baselines: plain classifiers of the log-normalised counts, without any pretraining."""

import numpy as np
from scipy.sparse import csr_matrix

from ..config import Evaluation as Settings
from ..data import Cells
from ..errors import ConfigError
from ..sequences import COUNTS_PER
from .cross_validation import Predict, Say, cross_validate, describe, scored, silent
from .scores import Evaluation

COMPONENTS = 64
PENALTIES = {"logistic-regression": 1.0, "pca": 0.1}
"""Inverse strength ``C`` of the L2 penalty, the best of .01, .1 and 1 on two sets of cells;
components have the larger variances.
"""
ITERATIONS = 5000


def baseline(name: str, cells: Cells, settings: Settings, *, say: Say = silent) -> Evaluation:
    """Classify cells by their expression, log1p of counts per 10k.

    Args:
        name: "logistic-regression" (on all genes, sparse) or "pca" (on the first 64 principal
            components of the training cells).
        cells: with labels; cells without one are left out. Their counts are held in memory.
        settings: the `evaluation` section of a configuration.
        say: is told of each fold.

    Raises:
        ConfigError: another name.
        CellsError: the labels do not allow the folds.
    """
    if name not in PENALTIES:
        raise ConfigError(f"study.baselines: expected one of {', '.join(PENALTIES)}; got {name!r}")
    cells = scored(cells, settings)
    values = log_normalised(cells)
    predict, classifier = (
        _by_genes(values, cells.codes)
        if name == "logistic-regression"
        else _by_components(values, cells.codes)
    )
    return cross_validate(
        name, cells, settings, predict, describe(name, cells, settings, classifier=classifier), say
    )


def log_normalised(cells: Cells) -> csr_matrix:
    """``log(1 + 10000 count / depth)``; (cells, genes) float32, sparse."""
    counts = cells.counts.whole()
    factors = COUNTS_PER / np.maximum(cells.depth, 1.0)
    values = counts.data * np.repeat(factors, np.diff(counts.indptr)).astype(np.float32)
    return csr_matrix((np.log1p(values), counts.indices, counts.indptr), shape=counts.shape)


def _by_genes(values: csr_matrix, codes: np.ndarray) -> tuple[Predict, str]:
    from sklearn.linear_model import LogisticRegression

    penalty = PENALTIES["logistic-regression"]

    def predict(_: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return (
            LogisticRegression(C=penalty, max_iter=ITERATIONS)
            .fit(values[train], codes[train])
            .predict(values[test])
        )

    return predict, f"logistic regression (lbfgs, L2, C = {penalty:g}) on log1p of counts per 10k"


def _by_components(values: csr_matrix, codes: np.ndarray) -> tuple[Predict, str]:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    penalty = PENALTIES["pca"]

    def predict(_: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        # ARPACK finds fewer than there are.
        components = min(COMPONENTS, len(train) - 1, values.shape[1] - 1)
        # arpack centres without making the matrix dense; a fixed random_state fixes the vector that
        # it starts from
        reduce = PCA(components, svd_solver="arpack", random_state=0).fit(values[train])
        inside, outside = (
            reduce.transform(values[rows]).astype(np.float64) for rows in (train, test)
        )
        return (
            LogisticRegression(C=penalty, max_iter=ITERATIONS)
            .fit(inside, codes[train])
            .predict(outside)
        )

    return (
        predict,
        f"logistic regression (lbfgs, L2, C = {penalty:g}) on {COMPONENTS} principal components of"
        " log1p of counts per 10k",
    )
