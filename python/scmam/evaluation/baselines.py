"""Baselines: plain classifiers of the log-normalised counts, without any pretraining."""

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from ..data import Cells
from ..errors import ConfigError
from ..sequences import COUNTS_PER
from ..settings import Evaluation as Settings
from .cross_validation import Say, cross_validate, describe, scored, silent
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
    values, penalty, by_components = log_normalised(cells), PENALTIES[name], name == "pca"

    def predict(_: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        inside, outside = values[train], values[test]
        if by_components:
            inside, outside = _components(inside, outside)
        classifier = LogisticRegression(C=penalty, max_iter=ITERATIONS)
        return classifier.fit(inside, cells.codes[train]).predict(outside)

    on = f"{COMPONENTS} principal components of " if by_components else ""
    told = f"logistic regression (lbfgs, L2, C = {penalty:g}) on {on}log1p of counts per 10k"
    recorded = describe(name, cells, settings, classifier=told)
    return cross_validate(name, cells, settings, predict, recorded, say)


def log_normalised(cells: Cells) -> csr_matrix:
    """``log(1 + 10000 count / depth)``; (cells, genes) float32, sparse."""
    counts = cells.counts.whole()
    factors = COUNTS_PER / np.maximum(cells.depth, 1.0)
    values = counts.data * np.repeat(factors, np.diff(counts.indptr)).astype(np.float32)
    return csr_matrix((np.log1p(values), counts.indices, counts.indptr), shape=counts.shape)


def _components(train: csr_matrix, test: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of the training cells, float64 (n, C)."""
    # ARPACK finds fewer than there are. It centres without making the matrix dense; a fixed
    # random_state fixes the vector that it starts from.
    components = min(COMPONENTS, train.shape[0] - 1, train.shape[1] - 1)
    reduce = PCA(components, svd_solver="arpack", random_state=0).fit(train)
    return reduce.transform(train).astype(np.float64), reduce.transform(test).astype(np.float64)
