"""Cells as one sparse tensor of normalised expression, which the engine takes as it is."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ..errors import CellsError
from ..sequences import COUNTS_PER
from .cells import Cells
from .matrix import as_tensor


@dataclass(frozen=True)
class SparseExpression:
    """Expression values of cells, all in memory."""

    values: Tensor  # sparse CSR (cells, genes) float32; a missing entry is a zero
    genes: tuple[str, ...]
    source: str  # where the values were taken from, for a report
    unit: str = "log1p of counts per 10k"

    @property
    def density(self) -> float:
        """Share of the values that are not zero."""
        return self.values.values().numel() / max(1, self.values.shape[0] * self.values.shape[1])

    def mean_expression(self) -> Tensor:
        """Mean value of every gene over the cells, zeros included; (genes,) float64."""
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        total.index_add_(0, self.values.col_indices().long(), self.values.values().double())
        return total / self.values.shape[0]


def sparse_expression(cells: Cells) -> SparseExpression:
    """log1p of counts per 10k of all cells: ``log(1 + 10000 count / depth)``, the depth being the
    cell's total count.

    Raises:
        CellsError: there is not a single count.
    """
    rows = cells.counts.whole()
    if not rows.nnz:
        raise CellsError(
            f"{cells.source}: holds nothing but zeros for the genes that are taken; take other"
            " genes, or another file"
        )
    scale = COUNTS_PER / np.maximum(cells.depth, 1.0)
    values = np.log1p(rows.data * np.repeat(scale, np.diff(rows.indptr))).astype(np.float32)
    return SparseExpression(
        as_tensor(csr_matrix((values, rows.indices, rows.indptr), shape=rows.shape)),
        cells.genes,
        cells.source,
    )
