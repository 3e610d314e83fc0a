"""Gene tokens: the identity of a gene plus its value."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SoftBins(nn.Module):
    """A value as a mixture of learned bins (the value embedding of xTrimoGene and scFoundation).

    ``a = leaky_relu(w x + b)``, ``v = softmax(W a + alpha a)`` over the bins, and the embedding is
    ``v E``: neighbouring values share bins, so the embedding is smooth in the value, which hard
    bins are not.

    Args:
        bins: number of bins.
        width: of the embedding.
    """

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        self.spread = nn.Linear(1, bins)
        self.mix = nn.Linear(bins, bins)
        self.alpha = nn.Parameter(torch.ones(()))
        self.bins = nn.Parameter(torch.empty(bins, width))
        nn.init.normal_(self.bins, std=width**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        """(...,) values to (..., width)."""
        spread = F.leaky_relu(self.spread(values[..., None]))
        return torch.softmax(self.mix(spread) + self.alpha * spread, dim=-1) @ self.bins


class ExpressionEmbedding(nn.Module):
    """Gene identity plus soft-binned value: the token and position embeddings of single-cell
    transformers.

    Args:
        num_genes: number of genes.
        bins: soft bins of the value.
        width: of the embeddings.
    """

    def __init__(self, num_genes: int, bins: int, width: int) -> None:
        super().__init__()
        self.gene = nn.Embedding(num_genes, width)
        nn.init.normal_(self.gene.weight, std=width**-0.5)
        self.value = SoftBins(bins, width)

    def forward(self, gene_ids: Tensor, values: Tensor) -> Tensor:
        """(B, T) gene ids and (B, T) values to (B, T, width)."""
        return self.gene(gene_ids) + self.value(values)
