"""Cells from AnnData as sparse tensors.

A file is looked at once, here, so that whatever is wrong with it is one clear line and not a NaN in somebody's training.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse
import torch
from torch import Tensor


class CellsError(ValueError):
    """The data cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class Cells:
    """Expression values of cells."""

    values: Tensor  # sparse CSR (cells, genes) float32; a missing entry is a zero
    genes: tuple[str, ...]
    source: str  # where the values were taken from, for a report
    unit: str = "as stored"  # of the values, likewise

    @property
    def density(self) -> float:
        """Share of the values that are not zero."""
        return self.values.values().numel() / max(1, self.values.shape[0] * self.values.shape[1])

    def mean_expression(self) -> Tensor:
        """Mean value of every gene over the cells, zeros included; (genes,) float64."""
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        total.index_add_(0, self.values.col_indices().long(), self.values.values().double())
        return total / self.values.shape[0]


def read_cells(path: str | Path, source: str | None = None) -> Cells:
    """Read an `.h5ad` file.

    Args:
        path: the file.
        source: ``"X"``, ``"raw"`` or the name of a layer; None takes ``.raw.X`` where there is one, else ``X``, because a file
            that keeps a ``.raw`` usually holds scaled values in ``X``.

    Raises:
        CellsError: no such file, not an AnnData file, no cells or genes, or values that are negative or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CellsError(f"{path}: no such file; give the path of an .h5ad file")
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise anything from OSError to KeyError on a file that is something else
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CellsError(f"{path}: not an AnnData file ({reason}); write one with anndata's write_h5ad") from error
    return cells_of(data, source, name=path.name)


def example_cells() -> Cells:
    """The 700 blood cells and 765 genes of scanpy's `pbmc68k_reduced`, log1p of counts per 10k; they come with the package scanpy."""
    import scanpy  # slow to import, and needed for these cells alone

    cells = cells_of(scanpy.datasets.pbmc68k_reduced(), "raw", name="pbmc68k_reduced")
    return replace(cells, unit="log1p of counts per 10k")


def cells_of(data: anndata.AnnData, source: str | None = None, *, name: str = "AnnData") -> Cells:
    """Take the values of an AnnData in memory, as `read_cells` does."""
    if not isinstance(data, anndata.AnnData):
        raise CellsError(f"{name}: expected an AnnData, got {type(data).__name__}; read one with anndata.read_h5ad")
    matrix, genes, taken = _matrix(data, source, name)
    where = f"{name}: {taken}"
    if 0 in matrix.shape:
        raise CellsError(f"{where} has {matrix.shape[0]} cells and {matrix.shape[1]} genes; filter less, so that some are left")
    matrix = scipy.sparse.csr_matrix(matrix, dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    _require_expression(matrix, where)
    return Cells(_as_tensor(matrix), tuple(map(str, genes)), where)


def _as_tensor(matrix: scipy.sparse.csr_matrix) -> Tensor:
    indices = (torch.from_numpy(index.astype(np.int64)) for index in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")  # nothing a user could do about
        return torch.sparse_csr_tensor(*indices, torch.from_numpy(matrix.data), size=matrix.shape, check_invariants=True)


def _matrix(data: anndata.AnnData, source: str | None, name: str) -> tuple[object, object, str]:
    if source is None:
        source = "X" if data.raw is None else "raw"
    if source == "raw":
        if data.raw is None:
            raise CellsError(f"{name}: there is no .raw; ask for X or one of the layers {sorted(data.layers)}")
        return data.raw.X, data.raw.var_names, ".raw.X"
    if source == "X":
        if data.X is None:
            raise CellsError(f"{name}: X is empty; ask for one of the layers {sorted(data.layers)}")
        return data.X, data.var_names, "X"
    if source not in data.layers:
        raise CellsError(f"{name}: there is no layer {source!r}; ask for X, raw or one of the layers {sorted(data.layers)}")
    return data.layers[source], data.var_names, f"layers[{source!r}]"


def _require_expression(matrix: scipy.sparse.csr_matrix, where: str) -> None:
    if not matrix.nnz:
        raise CellsError(f"{where} holds nothing but zeros; take another layer, or another file")
    unusable = int(np.count_nonzero(~np.isfinite(matrix.data)))
    if unusable:
        raise CellsError(f"{where} holds {unusable} values that are NaN or infinite; remove these genes or cells first")
    if matrix.data.min() < 0:
        raise CellsError(
            f"{where} holds negative values (smallest {matrix.data.min():.3g}), so it was scaled; take counts or log1p of counts,"
            " often kept in .raw or in a layer"
        )
