"""Matrices of cells × genes that are read by rows, and those in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ..errors import CellsError, one_line
from ..sequences import csr_tensor

BLOCK_VALUES = 2**20  # stored values that a pass over a file holds: 8 MiB with their indices
IN_MEMORY = 2 * 2**30  # bytes of a matrix that is read whole, unless the settings say otherwise


class Matrix(ABC):
    """Cells × genes, read by rows.

    Attributes:
        shape: (cells, genes).
        storage: ``"csr"``, ``"csc"`` or ``"dense"``, as it is kept.
        stored: number of values that are kept, zeros of a dense matrix included.
        key: where it is in its file.
        in_memory: whether a row costs no reading.
    """

    shape: tuple[int, int]
    storage: str
    stored: int
    key: str = ""
    in_memory: bool = True

    @abstractmethod
    def take(self, rows: np.ndarray) -> csr_matrix:
        """Rows in the order that is asked for, repetitions included; (len(rows), genes) float32
        without stored zeros.
        """

    @abstractmethod
    def span(self, start: int, stop: int) -> csr_matrix:
        """Rows ``start`` to ``stop``, the last not included."""

    def whole(self) -> csr_matrix:
        """All of it."""
        return self.span(0, self.shape[0])

    @property
    def nbytes(self) -> int:
        """Approximate size in memory, in bytes."""
        return self.stored * (4 if self.storage == "dense" else 8) + 8 * (self.shape[0] + 1)

    @property
    def large(self) -> bool:
        """Whether it takes more memory than `IN_MEMORY`."""
        return self.nbytes > IN_MEMORY

    def starts(self) -> range:
        """First rows of the blocks of a pass, each of which holds about `BLOCK_VALUES` values."""
        cells = max(1, self.shape[0])
        return range(0, self.shape[0], max(1, int(BLOCK_VALUES * cells / max(1, self.stored))))

    def blocks(self) -> Iterator[tuple[np.ndarray, csr_matrix]]:
        """All rows in pieces of bounded size: (row numbers, rows)."""
        starts = self.starts()
        for start in starts:
            stop = min(start + starts.step, self.shape[0])
            yield np.arange(start, stop), self.span(start, stop)

    def close(self) -> None:  # noqa: B027  nothing is open in memory
        """Close an open file; reading rows opens it again."""


def sizes_of(shape: Iterable[Any]) -> tuple[int, int]:
    """A shape as plain integers, not checked to be two."""
    return cast(tuple[int, int], tuple(map(int, shape)))


class MemoryMatrix(Matrix):
    """A matrix in memory: dense, or sparse of any layout; `name` is for errors."""

    def __init__(self, values: Any, name: str = "matrix") -> None:
        require_numbers(values.dtype, name)
        self.name = name
        self.storage = values.format if scipy.sparse.issparse(values) else "dense"
        self.shape = sizes_of(values.shape)
        self.stored = int(values.nnz if scipy.sparse.issparse(values) else np.prod(self.shape))
        self._given, self._rows = values, None

    def take(self, rows: np.ndarray) -> csr_matrix:
        return self.whole()[rows]

    def span(self, start: int, stop: int) -> csr_matrix:
        return self.whole()[start:stop]

    def whole(self) -> csr_matrix:
        if self._rows is None:
            try:
                if scipy.sparse.issparse(self._given) and self.storage in ("csr", "csc"):
                    self._given.check_format(full_check=True)
                self._rows, self._given = canonical(csr_matrix(self._given)), None
            except ValueError as error:
                raise CellsError(f"{self.name} is no sparse matrix ({one_line(error)})") from error
        return self._rows


def prepared(matrix: Matrix, backed: str, source: str) -> Matrix:
    """A matrix in memory, or one that is read row by row from its file.

    Args:
        matrix: as it is.
        backed: "always", "never", or "auto", which reads a large one from its file.
        source: named in the error.

    Raises:
        CellsError: rows were asked for of a file that cannot give them.
    """
    if matrix.in_memory:
        return matrix
    by_columns = matrix.storage == "csc"
    if backed == "always" and by_columns:
        raise CellsError(
            f"{source}: data.backed is always, but {matrix.key} is stored by genes (CSC), so that"
            " a cell cannot be read alone; write it with adata.X = adata.X.tocsr(), or set"
            " data.backed to never"
        )
    if backed == "always" or (backed == "auto" and matrix.large and not by_columns):
        return matrix
    loaded = MemoryMatrix(matrix.whole())
    matrix.close()
    return loaded


def require_numbers(dtype: np.dtype, where: str) -> None:
    """Raise a `CellsError` unless values are real numbers."""
    if dtype.kind not in "biuf":
        raise CellsError(f"{where} holds {dtype}; expected real numbers")


def canonical(rows: csr_matrix) -> csr_matrix:
    """The same values as float32, each stored once, by column, and no zero stored."""
    if rows.dtype != np.float32:
        rows = rows.astype(np.float32)
    rows.sum_duplicates()
    if rows.nnz and not rows.data.all():
        rows.eliminate_zeros()
    return rows


def as_tensor(rows: csr_matrix) -> Tensor:
    """The same as a torch tensor, sparse CSR with int64 indices; the values are not copied."""
    parts = (rows.indptr, rows.indices)
    crow, columns = (torch.from_numpy(part.astype(np.int64)) for part in parts)
    return csr_tensor(crow, columns, torch.from_numpy(rows.data), rows.shape)
