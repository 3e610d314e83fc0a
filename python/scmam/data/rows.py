"""Raw counts of chosen cells and genes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from .matrix import Matrix, MemoryMatrix
from .values import Conversion


@dataclass(eq=False, repr=False)
class Rows:
    """Raw counts of chosen cells and genes: rows of a matrix, converted to counts and cut to the
    genes when they are read.

    Args:
        matrix: as stored.
        cells: (cells,) int64 rows of the matrix.
        columns: (genes,) int64 columns of the matrix, -1 for a gene that it does not have and that
            is zero throughout; None takes all.
        conversion: to counts; None where the matrix holds them.

    Attributes:
        shape: (cells, genes) chosen.
    """

    matrix: Matrix
    cells: np.ndarray
    columns: np.ndarray | None = None
    conversion: Conversion | None = None

    def __post_init__(self) -> None:
        matrix, cells, columns = self.matrix, self.cells, self.columns
        self.shape = (len(cells), matrix.shape[1] if columns is None else len(columns))
        self._places: np.ndarray | None = None  # of each column of the matrix, among the genes
        if columns is not None:
            self._places = np.full(matrix.shape[1], -1, dtype=np.int32)
            there = columns >= 0
            self._places[columns[there]] = np.flatnonzero(there)

    @property
    def in_memory(self) -> bool:
        """Whether a row costs no reading."""
        return self.matrix.in_memory

    def take(self, indices: np.ndarray) -> csr_matrix:
        """Rows in the order that is asked for; (len(indices), genes) float32 raw counts.

        Args:
            indices: (n,) int64 positions among the chosen cells.
        """
        cells = self.cells[np.asarray(indices, dtype=np.int64)]
        return self._counts(self.matrix.take(cells), cells)

    __getitem__ = take  # a data set of torch, whose items are asked for by their positions

    def blocks(self) -> Iterator[csr_matrix]:
        """All rows in pieces of bounded size."""
        step = self.matrix.starts().step
        for start in range(0, len(self.cells), step):
            yield self.take(np.arange(start, min(start + step, len(self.cells))))

    def whole(self) -> csr_matrix:
        """All rows at once."""
        return self.take(np.arange(len(self.cells)))

    @cached_property
    def nonzero(self) -> int:
        """How many values are not zero. One pass over the file where the rows are in one."""
        return sum(block.nnz for block in self.blocks())

    def cells_of(self, values: int) -> int:
        """How many cells have about so many stored values, at least 1."""
        return max(1, values * max(1, self.matrix.shape[0]) // max(1, self.matrix.stored))

    def subset(self, indices: np.ndarray) -> "Rows":
        """Some of the cells; nothing is copied."""
        cells = self.cells[np.asarray(indices, dtype=np.int64)]
        return Rows(self.matrix, cells, self.columns, self.conversion)

    def loaded(self) -> "Rows":
        """The same rows in memory, converted to counts and limited to the chosen genes."""
        return Rows(MemoryMatrix(self.whole()), np.arange(len(self.cells)))

    def close(self) -> None:
        """Close an open file; reading rows opens it again."""
        self.matrix.close()

    def _counts(self, rows: csr_matrix, cells: np.ndarray) -> csr_matrix:
        if self.conversion is not None:
            rows = self.conversion(rows, cells)
        if self._places is None:
            return rows
        columns = self._places[rows.indices]
        taken = columns >= 0
        ends = np.concatenate([[0], np.cumsum(taken)])[rows.indptr]
        shape = (len(cells), self.shape[1])
        chosen = csr_matrix((rows.data[taken], columns[taken], ends), shape=shape)
        chosen.sort_indices()
        return chosen
