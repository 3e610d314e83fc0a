"""Strategies with knowledge of the genes: fixed weights of genes, modules of genes that are hidden
together, and weights that follow the loss.

All draw among the non-zeros of a cell; zeros are drawn uniformly, at another share. The knowledge
is a buffer, so that it is saved with the other weights.
"""

import torch
from torch import Tensor

from ._core import philox
from .ops.selection.ops import sample_without_replacement
from .shares import Draw, Share, ids_of
from .strategies import CellValues, Masking, MaskingStrategy, Uniform

__all__ = ["GeneModules", "GeneWeights", "HarderFirst", "ranked"]

SPREAD = 3.0
"""Natural logarithm of the ratio between the largest and the smallest weight of ranked genes."""
MODULES = 20
MODULE_STREAM = 5
"""Of the random bits; `mam_kernels.shares` names those before it."""
MODULE_STEP = 3.0
"""Natural logarithm of the ratio between the weights of one module and the next: a gene of a later
module is hidden before one of an earlier module about once in 20 times.
"""
FORGET = 0.02
"""Weight of a step in the running mean of the errors of `HarderFirst`."""


class GeneWeights(MaskingStrategy):
    """Non-zeros in proportion to a fixed weight of their gene.

    Args:
        weights: (G,) float32 >= 0.
        ratio: share of the non-zeros.
        zero_ratio: share of the zeros, drawn uniformly; None: none.
    """

    weights: Tensor
    share: Share

    def __init__(
        self, weights: Tensor, ratio: float | Share, zero_ratio: float | Share | None = None
    ) -> None:
        super().__init__(ratio)
        self.register_buffer("weights", weights.float().clone())
        self.zeros = Uniform(0.0, 0.0 if zero_ratio is None else zero_ratio)

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        nonzero = cells.among(cells.values != 0)
        weights = self.weights_of(cells, draw) * nonzero
        counts = self.share.count(cells.values, nonzero, draw)
        mask = sample_without_replacement(weights, counts, **draw._asdict())
        return Masking(mask | self.zeros(cells, draw).mask, weights, None, None)

    def weights_of(self, cells: CellValues, draw: Draw) -> Tensor:
        """(G,) or (B, G) float32: the non-zeros are drawn in proportion to it."""
        return self.weights


class GeneModules(GeneWeights):
    """Modules of genes one after the other, in a random order for each cell, until the share of the
    non-zeros is hidden.

    Args:
        modules: (G,) int64: the module of each gene, from 0.
        ratio, zero_ratio: as of `GeneWeights`.
    """

    module_of: Tensor

    def __init__(
        self, modules: Tensor, ratio: float | Share, zero_ratio: float | Share | None = None
    ) -> None:
        super().__init__(torch.ones(len(modules)), ratio, zero_ratio)
        self.register_buffer("module_of", modules.long().clone())

    def weights_of(self, cells: CellValues, draw: Draw) -> Tensor:
        device = cells.values.device
        seed = torch.as_tensor(draw.seed, device=device)
        step = torch.as_tensor(draw.step, device=device)
        bits = philox.random_bits(MODULES, ids_of(cells.values, draw), step, seed, MODULE_STREAM)
        rank = bits.argsort(dim=1).argsort(dim=1).float()  # (B, MODULES)
        return torch.exp(-MODULE_STEP * rank)[:, self.module_of]


class HarderFirst(GeneWeights):
    """Genes that are predicted worse are hidden more often: weight ``exp(SPREAD * rank)``, the rank
    in [0, 1] of the running mean of the gene's squared error over its variance.

    Args:
        variances: (G,) float32: of the values of each gene.
        ratio, zero_ratio: as of `GeneWeights`.
    """

    variances: Tensor
    errors: Tensor

    def __init__(
        self, variances: Tensor, ratio: float | Share, zero_ratio: float | Share | None = None
    ) -> None:
        super().__init__(torch.ones(len(variances)), ratio, zero_ratio)
        self.register_buffer("variances", variances.float().clone())
        self.register_buffer("errors", torch.ones(len(variances)))

    @torch.no_grad()
    def observe(self, errors: Tensor, mask: Tensor, gene_ids: Tensor | None = None) -> None:
        """Take in the errors of a step.

        Args:
            errors: (B, M) squared errors.
            mask: (B, M) bool: of which positions.
            gene_ids: (B, M) int64: whose errors they are; None: of all G genes.
        """
        if gene_ids is None:
            there, total = mask.sum(dim=0), (errors * mask).sum(dim=0)
        else:
            places = gene_ids[mask]
            there = torch.bincount(places, minlength=len(self.errors))
            total = torch.zeros_like(self.errors).index_add_(0, places, errors[mask].float())
        mean = total / there.clamp(min=1)
        standardised = mean / self.variances.clamp(min=1e-6)
        moved = self.errors + FORGET * (standardised - self.errors)
        self.errors.copy_(torch.where(there > 0, moved, self.errors))
        self.weights.copy_(ranked(self.errors))


def ranked(scores: Tensor) -> Tensor:
    """(G,) weights ``exp(SPREAD * rank)`` of scores (G,), ranks in [0, 1]; equal scores in the
    order of the genes.
    """
    rank = scores.argsort(stable=True).argsort().float() / max(1, len(scores) - 1)
    return torch.exp(SPREAD * rank)
