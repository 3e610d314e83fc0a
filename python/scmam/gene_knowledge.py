"""Knowledge of the genes for the strategies of `mam_kernels.gene_strategies`, from the cells."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.feature_selection import f_classif
from torch import Tensor

from mam_kernels.gene_strategies import MODULES, ranked
from mam_kernels.randomness import substream

from .config import Config
from .data import Cells
from .interpretation.tally import Draws, batch_cells, count_masks
from .runs import Run, open_run
from .sequences import expression

DRAWS = 4
"""Masks of each cell, of which rates are taken."""
BINS = 20
"""Of genes by their mean, in which `permuted` exchanges weights."""


def knowledge_of(config: Config, cells: Cells) -> Tensor:
    """Knowledge of the genes (G,) for the strategy of a configuration.

    "labels": weights by how well each gene separates the cell types; "modules": the module of each
    gene; "harder": the variance of each gene; "replayed" and "permuted": `race_weights` of the run
    ``masking.matched_to``.
    """
    strategy = config.masking.strategy
    if strategy in ("replayed", "permuted"):
        exchanged = config.training.seed if strategy == "permuted" else None
        return race_weights(open_run(str(config.masking.matched_to)), cells, permute=exchanged)
    batch = cells.batch(np.arange(len(cells)))
    values = expression(batch.counts, batch.depth, config.data.transform).numpy()
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


def permuted(weights: Tensor, means: Tensor, seed: int) -> Tensor:
    """Weights (G,) exchanged at random among genes of about equal mean (G,)."""
    random = torch.Generator().manual_seed(substream(seed, "permuted"))
    result = weights.clone()
    for genes in means.argsort(stable=True).tensor_split(min(BINS, len(means))):
        result[genes] = weights[genes[torch.randperm(len(genes), generator=random)]]
    return result


def race_weights(run: Run, cells: Cells, *, permute: int | None = None) -> Tensor:
    """(G,) float32 weights ``-log(1 - p)``, with ``p`` the share of the cells with a non-zero value
    of the gene in which a finished run hides it: in a race of exponentials at these rates,
    positions are hidden about as often.

    Args:
        run: of a strategy that hides something.
        cells: over the genes of the run.
        permute: a seed: the weights are exchanged at random among genes of about equal mean. None:
            they are not.
    """
    config = run.config
    pretraining = run.load()
    rows = batch_cells(
        cells.num_genes, config.training.batch_size, config.masking.strategy == "mam-embedding"
    )
    draws = Draws(DRAWS, config.training.seed, config.training.steps)
    tally = count_masks(
        pretraining, cells, draws, rows=rows, split=True, device=torch.device("cpu")
    )
    detected, hidden = tally.detected.sum(dim=0), tally.hidden_nonzero.sum(dim=0)
    rate = hidden / (DRAWS * detected).clamp(min=1)
    weights = -torch.log1p(-rate.clamp(min=1e-4, max=0.999)).float()
    if permute is None:
        return weights
    return permuted(weights, tally.expression.sum(dim=0), permute)
