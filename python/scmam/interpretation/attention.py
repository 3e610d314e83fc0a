"""Attention of the latents: its overlap, and the slopes of scalar tokens."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

import mam_kernels as mam
from mam_kernels.sequences import gather

from ..data import Cells
from ..objective import Pretraining
from ..sequences import expression

OVERLAP_CELLS = 16
"""Cells whose attention is compared.

Latents that attend alike do so in every cell, so few are enough.
"""

TOP_SHARE = 0.05
"""Share of the positions that count as the top ones of a latent, where their attention is
strongest.
"""

DISTINCT = 0.01
"""Slopes that differ by less than this share of their root mean square count as the same: a mask
cannot tell them apart.
"""


@dataclass(frozen=True)
class Overlap:
    """Means over cells and pairs of latents."""

    cosine: float  # of their attention, summed over heads; 1 = the same
    correlation: float | None  # None where every latent attends uniformly
    jaccard: float  # shared of the joint top positions of two latents; 1 = the same
    cells: int


@dataclass(frozen=True)
class Slopes:
    """The slopes of latents that see scalar values: the attention of latent n, head h to a value x
    is ``exp(alpha[n, h] x) / M``.
    """

    mean: float
    std: float
    root_mean_square: float
    smallest: float
    largest: float
    positive: float  # share; these prefer high values
    distinct: int  # latents that differ from each other
    latents: int
    heads: int


@torch.no_grad()
def slopes_of(latents: mam.MultinomialAttentionMasking) -> Slopes | None:
    """None where the latents attend to embeddings, which have no single slope."""
    if latents.input_dim is not None:
        return None
    alpha = latents.slopes(torch.float64)
    scale = alpha.square().mean().sqrt()
    rounded = torch.round(alpha / (DISTINCT * scale)) if scale > 0 else torch.zeros_like(alpha)
    return Slopes(
        mean=float(alpha.mean()),
        std=float(alpha.std(correction=0)),
        root_mean_square=float(scale),
        smallest=float(alpha.min()),
        largest=float(alpha.max()),
        positive=float((alpha > 0).double().mean()),
        distinct=len(torch.unique(rounded, dim=0)),
        latents=alpha.shape[0],
        heads=alpha.shape[1],
    )


@torch.no_grad()
def overlap_of(pretraining: Pretraining, cells: Cells, device: torch.device) -> Overlap | None:
    """The overlap of the latents' attention on real cells, spread evenly over the file.

    None with a single latent, or where no cell has two genes.
    """
    if _latents_of(pretraining).num_latents < 2:
        return None
    spread = np.linspace(0, cells.num_cells - 1, min(OVERLAP_CELLS, cells.num_cells))
    found = []
    for cell in np.unique(spread.astype(np.int64)):
        batch = cells.batch(np.array([cell])).to(device)
        values = expression(batch.counts, batch.depth, pretraining.transform)
        attention, valid = attention_of(pretraining, values)
        rows = attention[0, :, valid[0]].double().cpu().numpy()
        if rows.shape[1] > 1:
            found.append(_overlap(rows))
    if not found:
        return None
    cosine, correlation, jaccard = np.array(found).T
    known = correlation[~np.isnan(correlation)]
    mean = float(known.mean()) if len(known) else None
    return Overlap(float(cosine.mean()), mean, float(jaccard.mean()), len(found))


def _overlap(rows: np.ndarray) -> tuple[float, float, float]:
    """Cosine, correlation and Jaccard index, means over pairs of latents (N, L).

    Latents that attend uniformly have no correlation; it is nan where fewer than two are left.
    """
    deviation = np.abs(rows - rows.mean(axis=1, keepdims=True)).max(axis=1)
    uneven = rows[deviation > 1e-5 * rows.mean(axis=1)]  # below that there is only rounding
    correlation = 1 - pdist(uneven, "correlation").mean() if len(uneven) > 1 else math.nan
    top = np.zeros(rows.shape, dtype=bool)
    order = np.argsort(-rows, axis=1, kind="stable")  # of equal ones, those that come first
    np.put_along_axis(top, order[:, : math.ceil(TOP_SHARE * rows.shape[1])], True, axis=1)
    return 1 - pdist(rows, "cosine").mean(), correlation, 1 - pdist(top, "jaccard").mean()


def attention_of(pretraining: Pretraining, values: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of each latent, summed over heads.

    Args:
        pretraining: with latents; "mam-embedding" ones attend to the non-zero genes alone, others
            to all.
        values: (B, G).

    Returns:
        (B, N, L) float32, rows that sum to H, and valid (B, L) bool; L = G, or the most non-zero
        genes of a cell.
    """
    latents = _latents_of(pretraining)
    if latents.input_dim is None:
        valid, scale = torch.ones_like(values, dtype=torch.bool), 1.0
        query = latents.slopes(torch.float64).to(values.dtype)[..., None]
        key = values[..., None, None].expand(-1, -1, latents.num_heads, 1)
    else:
        there = gather(values, values != 0)
        valid, scale = there.valid, latents.head_dim**-0.5
        embedded = pretraining.model.embedding(there.gene_ids, there.values)
        query, key = latents.queries_and_keys(embedded)
    attention = values.new_zeros(len(values), latents.num_latents, valid.shape[1])
    for head in range(latents.num_heads):  # one at a time: memory does not grow with the heads
        scores = scale * torch.einsum("nd,bld->bnl", query[:, head], key[:, :, head])
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
        attention += torch.softmax(scores, dim=-1).nan_to_num()
    return attention, valid


def _latents_of(pretraining: Pretraining) -> mam.MultinomialAttentionMasking:
    latents = pretraining.strategy.latents
    if latents is None:
        raise ValueError("pretraining: expected a strategy with latents; this one has none")
    return latents
