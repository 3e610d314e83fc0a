"""Padded sequences of genes: the positions of each cell that a model reads, side by side."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """The genes of each cell that are taken, in the order of their ids, padded to the longest cell
    of the batch.
    """

    gene_ids: Tensor  #: (B, T) int64; 0 in the padding
    values: Tensor  #: (B, T) float32; 0 in the padding
    valid: Tensor  #: (B, T) bool, True = a gene, False = padding


def gather(values: Tensor, taken: Tensor) -> Sequences:
    """The positions of each cell that are ``taken``, side by side.

    Args:
        values: (B, G).
        taken: (B, G) bool.

    Returns:
        Sequences of (B, T), T the most that any cell takes, at least 1.
    """
    lengths = taken.sum(dim=1)
    rows, genes = taken.nonzero(as_tuple=True)
    slots = torch.arange(len(rows), device=values.device) - (lengths.cumsum(0) - lengths)[rows]
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    gene_ids = torch.zeros(len(values), longest, dtype=torch.int64, device=values.device)
    gene_ids[rows, slots] = genes
    valid = torch.arange(longest, device=values.device) < lengths[:, None]
    return Sequences(gene_ids, values.gather(1, gene_ids).masked_fill(~valid, 0.0), valid)
