"""Batches of other loaders (scDataset, annbatch, AnnLoader, one's own) as the batches that the
objective takes.
"""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from ..sequences import CellBatch
from .matrix import as_tensor, canonical


def cell_batch(counts: Any, cell_ids: Any, *, depth: Any = None, labels: Any = None) -> CellBatch:
    """A batch for `scmam.objective.Pretraining`, from the batch of another loader.

    Args:
        counts: (B, G) raw counts: scipy sparse, a torch tensor, sparse CSR or dense, or what numpy
            takes. Sparse stays sparse.
        cell_ids: (B,) integers in [0, 2**32), a stable id of each cell, such as its row in the
            file: masks depend on it.
        depth: (B,) total count of each cell, over all genes of its file; None: over those that are
            here.
        labels: (B,) integers, code of the cell's class; None: -1, no class.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    matrix = _matrix(counts)
    rows = matrix.shape[0]
    ids = _vector("cell_ids", cell_ids, rows)
    if ids.is_floating_point():
        raise TypeError(f"cell_ids: expected integers; got {ids.dtype}")
    if rows and not 0 <= int(ids.min()) <= int(ids.max()) < 2**32:
        raise ValueError(
            f"cell_ids: expected integers in [0, 2**32); got {int(ids.min())} to {int(ids.max())}"
        )
    total = _sums(matrix) if depth is None else _vector("depth", depth, rows).float()
    codes = torch.full((rows,), -1) if labels is None else _vector("labels", labels, rows).long()
    return CellBatch(matrix, total, ids.long(), codes)


def _matrix(counts: Any) -> Tensor:
    """(B, G) float32, sparse CSR or dense."""
    if scipy.sparse.issparse(counts):
        return as_tensor(canonical(scipy.sparse.csr_matrix(counts, copy=True)))
    matrix = counts if isinstance(counts, Tensor) else torch.as_tensor(np.asarray(counts))
    if matrix.dim() != 2 or matrix.layout not in (torch.strided, torch.sparse_csr):
        raise ValueError(
            f"counts: expected (B, G), dense or sparse CSR; got shape {tuple(matrix.shape)},"
            f" {matrix.layout}"
        )
    return matrix.float()


def _vector(name: str, values: Any, rows: int) -> Tensor:
    vector = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    if vector.shape != (rows,):
        raise ValueError(
            f"{name}: expected one for each of the {rows} cells; got shape {tuple(vector.shape)}"
        )
    return vector


def _sums(matrix: Tensor) -> Tensor:
    if matrix.layout == torch.strided:
        return matrix.sum(dim=1)
    lengths = matrix.crow_indices().diff()
    return torch.segment_reduce(matrix.values(), "sum", lengths=lengths)
