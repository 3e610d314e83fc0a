"""Matrices of cells × genes whose rows are read when they are asked for, from memory or from an
`.h5ad` file.
"""

import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor

from ..errors import CellsError
from ..sequences import csr_tensor

# Stored values that a pass over a file holds at a time: 8 MiB with their indices.
BLOCK_VALUES = 2**20
# Stored values between two rows that are read along: a second request to HDF5 costs more.
GAP = 2**12


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


def encoding(node: Any) -> str:
    """What a group or a dataset of a file says it is, such as "dataframe"; "" where it does not
    say.
    """
    said = node.attrs.get("encoding-type", "")
    # Fixed-length strings, as other languages write them.
    return said.decode() if isinstance(said, bytes) else str(said)


def _sizes(shape: Iterable[Any]) -> tuple[int, int]:
    """A shape as plain integers; the matrix in a file checks that they are two."""
    return cast(tuple[int, int], tuple(map(int, shape)))


class MemoryMatrix(Matrix):
    """A matrix in memory: dense, or sparse of any layout; `name` is for errors."""

    def __init__(self, values: Any, name: str = "matrix") -> None:
        _require_numbers(values.dtype, name)
        self.name = name
        self.storage = values.format if scipy.sparse.issparse(values) else "dense"
        self.shape = _sizes(values.shape)
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
                reason = " ".join(str(error).split())
                raise CellsError(f"{self.name} is no sparse matrix ({reason})") from error
        return self._rows


class FileMatrix(Matrix):
    """A matrix in an `.h5ad` file. Rows are read from it one request at a time; a process that
    inherits it opens the file for itself.

    Only a matrix stored by columns has to be read whole, on first use.
    """

    in_memory = False

    def __init__(self, path: Path, key: str) -> None:
        import h5py

        self.path, self.key = Path(path), key
        self._file: Any = None  # h5py.File
        self._opened_by: int | None = None
        self._starts: np.ndarray | None = None
        self._columns_read: csr_matrix | None = None
        with h5py.File(path, "r") as file:
            node = file[key]
            if isinstance(node, h5py.Group):
                self._open_sparse(node)
            else:
                self.storage, self.shape = "dense", _sizes(node.shape)
                self.stored = math.prod(self.shape)
                _require_numbers(node.dtype, f"{path}: {key}")
            if len(self.shape) != 2:
                raise CellsError(f"{path}: {key} is no matrix; its shape is {self.shape}")

    def _open_sparse(self, node: Any) -> None:
        """Take the sizes of a sparse matrix, and refuse parts that cannot belong to one.

        Raises:
            CellsError: what is wrong with which part.
        """
        where = f"{self.path}: {self.key}"
        self.storage = encoding(node).removesuffix("_matrix")
        if self.storage not in ("csr", "csc"):
            raise CellsError(f"{where} is a {self.storage}; expected a matrix, dense, CSR or CSC")
        self.shape = _sizes(node.attrs["shape"])
        data, indices, indptr = (node[name] for name in ("data", "indices", "indptr"))
        for part in (data, indices, indptr):
            if part.ndim != 1:
                raise CellsError(f"{where}: {part.name} has shape {part.shape}; expected (n,)")
        for part in (indices, indptr):
            if part.dtype.kind not in "iu":
                raise CellsError(f"{where}: {part.name} holds {part.dtype}; expected integers")
        _require_numbers(data.dtype, where)
        if len(data) != len(indices):
            raise CellsError(f"{where}: has {len(data)} values and {len(indices)} indices")
        self.stored = len(data)

    def take(self, rows: np.ndarray) -> csr_matrix:
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.span(int(rows[0]), int(rows[-1]) + 1)
        with self._reading() as node:
            if self.storage == "csc":
                return canonical(self._whole(node)[rows])
            starts = self._row_starts(node)
            first, last = _runs(np.unique(rows), starts)  # a file is read forwards, every row once
            read = np.concatenate(
                [np.arange(*run) for run in zip(first.tolist(), last.tolist(), strict=True)]
                or [rows]
            )
            return canonical(self._rows(node, starts, first, last)[np.searchsorted(read, rows)])

    def span(self, start: int, stop: int) -> csr_matrix:
        with self._reading() as node:
            if self.storage == "csc":
                return canonical(self._whole(node)[start:stop])
            return canonical(
                self._rows(node, self._row_starts(node), np.array([start]), np.array([stop]))
            )

    def close(self) -> None:
        if self._file is not None and self._opened_by == os.getpid():
            self._file.close()
        self._file = self._starts = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """The matrix in the file, open."""
        try:
            if self._file is None or self._opened_by != os.getpid():
                import h5py

                self._file, self._opened_by = h5py.File(self.path, "r"), os.getpid()
            yield self._file[self.key]
        except (OSError, LookupError, ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise CellsError(
                f"{self.path}: {self.key} cannot be read ({reason}); the file is damaged or has"
                " changed: copy it again"
            ) from error

    def _whole(self, node: Any) -> csr_matrix:
        """All rows of a matrix that is stored by columns."""
        if self._columns_read is None:
            starts = self._row_starts(node)
            columns = csc_matrix((node["data"][:], node["indices"][:], starts), shape=self.shape)
            columns.check_format(full_check=True)
            self._columns_read = csr_matrix(columns)
        return self._columns_read

    def _row_starts(self, node: Any) -> np.ndarray:
        """(cells + 1,) int64: where each row begins among the stored values, and where the last one
        ends; of a matrix stored by columns (genes + 1,), of its columns.
        """
        if self._starts is not None:
            return self._starts
        if self.storage == "dense":
            self._starts = np.arange(self.shape[0] + 1) * self.shape[1]
            return self._starts
        starts = node["indptr"][:].astype(np.int64)
        number, what = (
            (self.shape[0], "cells") if self.storage == "csr" else (self.shape[1], "genes")
        )
        if len(starts) != number + 1:
            raise ValueError(f"indptr is of {len(starts) - 1} {what}, and there are {number}")
        if starts[0] != 0 or starts[-1] != self.stored or (np.diff(starts) < 0).any():
            raise ValueError(
                f"indptr goes from {starts[0]} to {starts[-1]}"
                f"{', and falls' if (np.diff(starts) < 0).any() else ''}; expected that it rises"
                f" from 0 to the number of values, {self.stored}"
            )
        self._starts = starts
        return starts

    def _rows(
        self, node: Any, starts: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> csr_matrix:
        """The rows of all runs, from `first` to before `last`, one after another."""
        if self.storage == "dense":
            return csr_matrix(_read(node, first, last))
        values, columns = (
            _read(node[name], starts[first], starts[last]) for name in ("data", "indices")
        )
        if len(columns) and not 0 <= columns.min() <= columns.max() < self.shape[1]:
            wrong = columns.max() if columns.min() >= 0 else columns.min()
            raise ValueError(f"a column of {self.shape[1]} is numbered {wrong}")
        lengths = [
            np.diff(starts[start : stop + 1]) for start, stop in zip(first, last, strict=True)
        ]
        ends = np.concatenate([[0], *lengths]).cumsum()
        return csr_matrix((values, columns, ends), shape=(len(ends) - 1, self.shape[1]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_opened_by": None, "_starts": None}


def _runs(rows: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of neighbouring rows that hold all of the ascending `rows`, and no more than `GAP`
    values between two of them.
    """
    breaks = np.flatnonzero(starts[rows[1:]] - starts[rows[:-1] + 1] > GAP)
    return rows[np.append(0, breaks + 1)[: len(rows)]], rows[
        np.append(breaks, len(rows) - 1)[: len(rows)]
    ] + 1


def _read(dataset: Any, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Parts of an HDF5 dataset along its first dimension, one after another."""
    places = np.concatenate([[0], np.cumsum(last - first)]).tolist()
    read = np.empty((places[-1], *dataset.shape[1:]), dtype=dataset.dtype)
    for start, stop, place, end in zip(
        first.tolist(), last.tolist(), places[:-1], places[1:], strict=True
    ):
        if stop > start:
            dataset.read_direct(read, np.s_[start:stop], np.s_[place:end])
    return read


def _require_numbers(dtype: np.dtype, where: str) -> None:
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
    crow, columns = (
        torch.from_numpy(index.astype(np.int64)) for index in (rows.indptr, rows.indices)
    )
    return csr_tensor(crow, columns, torch.from_numpy(rows.data), rows.shape)


class Rows:
    """Raw counts of chosen cells and genes: rows of a matrix, converted to counts and cut to the
    genes when they are read.

    Attributes:
        shape: (cells, genes) chosen.
    """

    def __init__(
        self,
        matrix: Matrix,
        cells: np.ndarray,
        columns: np.ndarray | None = None,
        conversion: Any = None,
    ) -> None:
        """
        Args:
            matrix: as stored.
            cells: (cells,) int64 rows of the matrix.
            columns: (genes,) int64 columns of the matrix, -1 for a gene that it does not have and
                that is zero throughout; None takes all.
            conversion: `scmam.data.values.Conversion` to counts; None where the matrix holds them.
        """
        self.matrix, self.cells, self.columns, self.conversion = matrix, cells, columns, conversion
        self.shape = (len(cells), matrix.shape[1] if columns is None else len(columns))
        self._places = None if columns is None else _places(columns, matrix.shape[1])
        self._nonzero: int | None = None

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

    def blocks(self) -> Iterator[csr_matrix]:
        """All rows in pieces of bounded size."""
        step = self.matrix.starts().step
        for start in range(0, len(self.cells), step):
            yield self.take(np.arange(start, min(start + step, len(self.cells))))

    def whole(self) -> csr_matrix:
        """All rows at once."""
        return self.take(np.arange(len(self.cells)))

    @property
    def nonzero(self) -> int:
        """How many values are not zero. One pass over the file where the rows are in one."""
        if self._nonzero is None:
            self._nonzero = sum(block.nnz for block in self.blocks())
        return self._nonzero

    def cells_of(self, values: int) -> int:
        """How many cells have about so many stored values, at least 1."""
        return max(1, values * max(1, self.matrix.shape[0]) // max(1, self.matrix.stored))

    def subset(self, indices: np.ndarray) -> "Rows":
        """Some of the cells; nothing is copied."""
        return Rows(
            self.matrix,
            self.cells[np.asarray(indices, dtype=np.int64)],
            self.columns,
            self.conversion,
        )

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
        chosen = csr_matrix(
            (rows.data[taken], columns[taken], ends), shape=(len(cells), self.shape[1])
        )
        chosen.sort_indices()
        return chosen


def _places(columns: np.ndarray, genes: int) -> np.ndarray:
    places = np.full(genes, -1, dtype=np.int32)
    there = columns >= 0
    places[columns[there]] = np.flatnonzero(there)
    return places
