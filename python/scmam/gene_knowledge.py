"""Knowledge of the genes for the strategies of `mam_kernels.gene_strategies`, from the cells."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.feature_selection import f_classif
from torch import Tensor

from mam_kernels.gene_strategies import MODULES, ranked
from mam_kernels.randomness import substream

from .data import Cells
from .sequences import expression

BINS = 20
"""Of genes by their mean, in which `permuted` exchanges weights."""


def knowledge_of(strategy: str, cells: Cells, transform: str) -> Tensor:
    """Knowledge of the genes (G,) for a strategy. "labels": weights by how well each gene separates
    the cell types; "modules": the module of each gene; "harder": the variance of each gene.
    """
    values = dense_values(cells, transform)
    if strategy == "harder":
        return torch.from_numpy(values.var(axis=0))
    if strategy == "modules":
        return torch.from_numpy(coexpressed(values))
    labelled = cells.codes >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = f_classif(values[labelled], cells.codes[labelled])[0]
    return ranked(torch.from_numpy(np.nan_to_num(scores, nan=0.0, posinf=0.0)))


def coexpressed(values: np.ndarray) -> np.ndarray:
    """(G,) int64 modules of genes with correlated values (cells, G): k-means of the genes'
    standardised profiles on their first principal components over cells.
    """
    profiles = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)
    components = min(MODULES, *profiles.shape)
    places = PCA(components, svd_solver="full").fit_transform(profiles.T)
    clusters = min(MODULES, len(places))
    found = KMeans(clusters, n_init=4, random_state=0).fit_predict(places)
    return found.astype(np.int64)


def dense_values(cells: Cells, transform: str) -> np.ndarray:
    """(cells, G) float32: the values that the model reads."""
    batch = cells.batch(np.arange(len(cells)))
    return expression(batch.counts, batch.depth, transform).numpy()


def permuted(weights: Tensor, means: Tensor, seed: int) -> Tensor:
    """Weights (G,) exchanged at random among genes of about equal mean (G,)."""
    random = torch.Generator().manual_seed(substream(seed, "permuted"))
    result = weights.clone()
    for genes in means.argsort(stable=True).tensor_split(min(BINS, len(means))):
        result[genes] = weights[genes[torch.randperm(len(genes), generator=random)]]
    return result
