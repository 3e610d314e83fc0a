"""The test bed of the benchmark: several scores of one embedding, over splits that are the same
for every run of a data set, so that differences are paired.
"""

import numpy as np

from ..data import Cells, development_split, stratified
from ..settings import Evaluation as Settings
from .probing import fitted_probe, whitened

SPLITS = 10
NEIGHBOURS = 15
COMPONENTS = 32  # of the embedding, for k-means and silhouette
PARTS = ("rest", "development")
METRICS = ("probe", "k-nn", "ari", "silhouette")


def bed_scores(
    features: np.ndarray, cells: Cells, settings: Settings
) -> dict[str, dict[str, float]]:
    """Scores of the features of cells, for each of `PARTS`.

    - ``probe``: macro-F1 of logistic regression on whitened features, mean over `SPLITS` random
      splits.
    - ``k-nn``: macro-F1 of the vote of 15 neighbours on whitened components, the same splits.
    - ``ari``: adjusted Rand index of k-means with as many clusters as classes, and
    - ``silhouette``: of the classes; both on the principal components of standardised features.

    A split trains on at most half of a part, and at most ``settings.train_cells`` cells, of each
    class alike, and is scored on all others.

    Args:
        features: (cells, F) float.
        cells: labelled, in the same order.
        settings: ``development``, ``fold_seed`` and ``train_cells`` are used.
    """
    rest, development = development_split(cells, settings.development, settings.fold_seed)
    places = {"rest": rest, "development": development}
    return {
        part: _scores(features[where].astype(np.float64), cells.codes[where], settings)
        for part, where in places.items()
        if len(where)
    }


def _scores(features: np.ndarray, codes: np.ndarray, settings: Settings) -> dict[str, float]:
    probe, neighbours = [], []
    for split in range(SPLITS):
        train, test = _split(codes, settings, split)
        inside, outside = whitened(features[train], features[test])
        probe.append(_macro_f1(codes[test], fitted_probe(inside, codes[train]).predict(outside)))
        neighbours.append(_macro_f1(codes[test], _vote(inside, codes[train], outside)))
    ari, silhouette = _clusters(features, codes)
    values = (float(np.mean(probe)), float(np.mean(neighbours)), ari, silhouette)
    return dict(zip(METRICS, values, strict=True))


def _split(codes: np.ndarray, settings: Settings, split: int) -> tuple[np.ndarray, np.ndarray]:
    count = min(settings.train_cells or len(codes), len(codes) // 2)
    train = stratified(codes, count, settings.fold_seed + split)
    left = np.ones(len(codes), dtype=bool)
    left[train] = False
    return train, np.flatnonzero(left)


def _vote(train: np.ndarray, codes: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)))
    components = slice(0, COMPONENTS)
    return neighbours.fit(train[:, components], codes).predict(test[:, components])


def _macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def _clusters(features: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score, silhouette_score
    from sklearn.preprocessing import StandardScaler

    standardised = StandardScaler().fit_transform(features)
    components = min(COMPONENTS, *standardised.shape)
    places = PCA(components, svd_solver="full").fit_transform(standardised)
    classes = len(np.unique(codes))
    found = KMeans(classes, n_init=5, random_state=0).fit_predict(places)
    return float(adjusted_rand_score(codes, found)), float(silhouette_score(places, codes))
