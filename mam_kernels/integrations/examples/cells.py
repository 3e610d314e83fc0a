"""Real cells for the examples, as frameworks encode them: scanpy's ``pbmc68k_reduced``; where
scanpy is not installed, cells drawn at random.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

CELLS, GENES = 128, 100


@cache
def values() -> Tensor:
    """(128, 100) float32 log-normalised expression of the most variable genes; each cell has at
    least ten.
    """
    try:
        from scanpy.datasets import pbmc68k_reduced
    except ImportError:
        expression = _drawn()
    else:
        matrix = pbmc68k_reduced().raw.X.toarray()
        genes = np.sort(np.argsort(-matrix.var(axis=0), kind="stable")[:GENES])
        expression = torch.from_numpy(matrix[:, genes].astype(np.float32))
    return expression[(expression > 0).sum(dim=1) >= 10][:CELLS]


def _drawn() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(4, GENES, generator=generator).pow(2) * 3
    rate = kinds[torch.arange(2 * CELLS) % 4]
    return torch.log1p(torch.poisson(rate, generator=generator))


def counts() -> Tensor:
    """(128, 100) whole counts of about these values."""
    return torch.expm1(values()).round()


def pairs(cls: int, pad: int, pad_value: float, first_gene: int) -> tuple[Tensor, Tensor]:
    """Each cell's non-zero genes behind a first special token: ids (B, L) int64 and values (B, L),
    padded at the right; the first token has the value 0.
    """
    rows = [row.nonzero()[:, 0] for row in values()]
    longest = 1 + max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    expression = torch.full((len(rows), longest), float(pad_value))
    ids[:, 0], expression[:, 0] = cls, 0.0
    for cell, genes in enumerate(rows):
        ids[cell, 1 : 1 + len(genes)] = genes + first_gene
        expression[cell, 1 : 1 + len(genes)] = values()[cell, genes]
    return ids, expression


def ranked(first_gene: int, begin: list[int], end: list[int], pad: int) -> Tensor:
    """(B, L) int64: each cell's genes from the highest expression down, relative to the gene's
    mean, between special tokens, padded at the right.
    """
    relative = values() / values().mean(dim=0).clamp(min=1e-6)
    rows = [
        torch.tensor(
            begin
            + (
                row.argsort(descending=True, stable=True)[: int((row > 0).sum())] + first_gene
            ).tolist()
            + end
        )
        for row in relative
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
