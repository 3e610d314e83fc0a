"""What the latents look at: how much their attention overlaps, and with scalar tokens their slopes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels.sequences import gather

from ..objective import Pretraining
from ..sequences import expression

if TYPE_CHECKING:
    from ..data import Cells

OVERLAP_CELLS = 16
"""Cells whose attention is compared.

Latents that attend alike do so in every cell, so few are enough.
"""

TOP_SHARE = 0.05
"""Share of the positions that count as the top ones of a latent, where their attention is
strongest.
"""

ATTENTION_VALUES = 2**23
"""Attention weights held at a time, 32 MiB in float32."""

DISTINCT = 0.01
"""Slopes that differ by less than this share of their root mean square count as the same: a mask
cannot tell them apart.
"""


@dataclass(frozen=True)
class Overlap:
    """Means over cells and pairs of latents."""

    cosine: float  # of their attention, summed over heads; 1 = the same
    correlation: (
        float | None
    )  # the same after each latent's mean is taken off; None where every latent attends uniformly
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
    alpha = _slopes(latents)
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
def overlap_of(pretraining: Pretraining, cells: "Cells", device: torch.device) -> Overlap | None:
    """How alike the latents attend to real cells, spread evenly over the file; None with a single
    latent, or without genes.
    """
    import numpy as np

    latents = pretraining.strategy.latents
    if latents.num_latents < 2:
        return None
    chosen = np.unique(
        np.linspace(0, cells.num_cells - 1, min(OVERLAP_CELLS, cells.num_cells)).astype(np.int64)
    )
    rows = max(1, ATTENTION_VALUES // (latents.num_latents * cells.num_genes))
    cosines, correlations, jaccards = [], [], []
    for part in np.array_split(chosen, -(-len(chosen) // rows)):
        batch = cells.batch(part).to(device)
        attention, valid = attention_of(
            pretraining, expression(batch.counts, batch.depth, pretraining.transform)
        )
        some = valid.sum(dim=1) > 1  # a cell without genes has no attention to compare
        attention, valid = attention[some], valid[some]
        cosines.append(_mean_pair(torch.nn.functional.normalize(attention, dim=-1)))
        correlations.append(_correlation(attention, valid))
        jaccards.append(_jaccard(attention, valid))
    cosine, correlation, jaccard = (torch.cat(parts) for parts in (cosines, correlations, jaccards))
    if not len(cosine):
        return None
    known = correlation[~correlation.isnan()]
    return Overlap(
        float(cosine.mean()),
        float(known.mean()) if len(known) else None,
        float(jaccard.mean()),
        len(cosine),
    )


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
    latents = pretraining.strategy.latents
    if latents.input_dim is None:
        valid = torch.ones_like(values, dtype=torch.bool)
        query, key = (
            latents.slopes(torch.float64).to(values.dtype)[..., None],
            values[..., None, None].expand(-1, -1, latents.num_heads, 1),
        )
        scale = 1.0
    else:
        there = gather(values, values != 0)
        valid, scale = there.valid, latents.head_dim**-0.5
        query, key = latents.queries_and_keys(
            pretraining.model.embedding(there.gene_ids, there.values)
        )
    attention = values.new_zeros(len(values), latents.num_latents, valid.shape[1])
    for head in range(
        latents.num_heads
    ):  # one at a time, so that memory does not grow with the heads
        scores = scale * torch.einsum("nd,bld->bnl", query[:, head], key[:, :, head])
        attention += torch.softmax(
            scores.masked_fill(~valid[:, None], -torch.inf), dim=-1
        ).nan_to_num()
    return attention, valid


def _mean_pair(unit: Tensor) -> Tensor:
    """(B, N, L) vectors of length 1 to the mean product over pairs of different ones, (B,)."""
    count = unit.shape[1]
    return (unit.sum(dim=1).square().sum(dim=-1) - unit.square().sum(dim=(1, 2))) / (
        count * (count - 1)
    )


def _correlation(attention: Tensor, valid: Tensor) -> Tensor:
    """Mean correlation over pairs of latents, those that attend uniformly left out, (B,); nan where
    fewer than two are left.
    """
    length = valid.sum(dim=1).clamp(min=1)[:, None, None]
    mean = attention.sum(dim=-1, keepdim=True) / length
    centred = (attention - mean) * valid[:, None]
    uneven = (
        centred.abs().amax(dim=-1, keepdim=True) > 1e-5 * mean
    )  # below that there is only rounding
    unit = torch.nn.functional.normalize(centred * uneven, dim=-1, eps=1e-30)
    count = uneven.sum(dim=1)[:, 0].to(unit.dtype)
    pairs = unit.sum(dim=1).square().sum(dim=-1) - count
    return torch.where(count > 1, pairs / (count * (count - 1)), torch.nan)


def _jaccard(attention: Tensor, valid: Tensor) -> Tensor:
    """Mean over pairs of latents of how many of their joint top positions they share, (B,)."""
    top = _top(attention, valid).to(attention.dtype)
    shared = top @ top.mT  # (B, N, N)
    size = top.sum(dim=-1, keepdim=True)
    ratio = shared / (size + size.mT - shared).clamp(min=1)
    count = attention.shape[1]
    return (ratio.sum(dim=(1, 2)) - ratio.diagonal(dim1=1, dim2=2).sum(dim=1)) / (
        count * (count - 1)
    )


def _top(attention: Tensor, valid: Tensor) -> Tensor:
    """The top positions of each latent, (B, N, L) bool; of equal ones those that come first, as
    everywhere in the engine.
    """
    if not len(attention):
        return torch.zeros_like(attention, dtype=torch.bool)
    wanted = (
        torch.ceil(TOP_SHARE * valid.sum(dim=1))
        .long()[:, None, None]
        .expand(-1, attention.shape[1], -1)
    )  # (B, N, 1)
    ranked = attention.masked_fill(~valid[:, None], -1.0)
    largest = ranked.topk(int(wanted.max().clamp(min=1)), dim=-1).values
    threshold = largest.gather(-1, (wanted - 1).clamp(min=0))
    above, equal = ranked > threshold, ranked == threshold
    missing = wanted - above.sum(dim=-1, keepdim=True)
    return (above | (equal & (equal.cumsum(dim=-1) <= missing))) & valid[:, None]
