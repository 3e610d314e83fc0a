"""Matrices in `.h5ad` files, whose rows are read when they are asked for.

anndata's backed matrices read scattered rows one by one; here neighbouring rows are one request.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from ..errors import CellsError, one_line
from .matrix import Matrix, canonical, require_numbers, sizes_of

GAP = 2**12  # stored values between two rows that are read too: a second request costs more


def encoding(node: Any) -> str:
    """The encoding that a group or dataset of a file declares, such as "dataframe"; "" for none."""
    said = node.attrs.get("encoding-type", "")
    # Fixed-length strings, as other languages write them.
    return said.decode() if isinstance(said, bytes) else str(said)


class FileMatrix(Matrix):
    """A matrix in an `.h5ad` file. Rows are read from it one request at a time; a process that
    inherits it opens the file for itself.

    Only a matrix stored by columns has to be read whole, on first use.
    """

    in_memory = False

    def __init__(self, path: Path, key: str) -> None:
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
                self.storage, self.shape = "dense", sizes_of(node.shape)
                self.stored = math.prod(self.shape)
                require_numbers(node.dtype, f"{path}: {key}")
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
        self.shape = sizes_of(node.attrs["shape"])
        data, indices, indptr = (node[name] for name in ("data", "indices", "indptr"))
        for part in (data, indices, indptr):
            if part.ndim != 1:
                raise CellsError(f"{where}: {part.name} has shape {part.shape}; expected (n,)")
        for part in (indices, indptr):
            if part.dtype.kind not in "iu":
                raise CellsError(f"{where}: {part.name} holds {part.dtype}; expected integers")
        require_numbers(data.dtype, where)
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
            runs = [np.arange(*run) for run in zip(first.tolist(), last.tolist(), strict=True)]
            read = np.concatenate(runs or [rows])
            return canonical(self._rows(node, starts, first, last)[np.searchsorted(read, rows)])

    def span(self, start: int, stop: int) -> csr_matrix:
        with self._reading() as node:
            if self.storage == "csc":
                return canonical(self._whole(node)[start:stop])
            starts = self._row_starts(node)
            return canonical(self._rows(node, starts, np.array([start]), np.array([stop])))

    def close(self) -> None:
        if self._file is not None and self._opened_by == os.getpid():
            self._file.close()
        self._file = self._starts = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """The matrix in the file, open."""
        try:
            if self._file is None or self._opened_by != os.getpid():
                self._file, self._opened_by = h5py.File(self.path, "r"), os.getpid()
            yield self._file[self.key]
        except (OSError, LookupError, ValueError, TypeError, OverflowError) as error:
            raise CellsError(
                f"{self.path}: {self.key} cannot be read ({one_line(error)}); the file is damaged"
                " or has changed: copy it again"
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
        axis, what = (0, "cells") if self.storage == "csr" else (1, "genes")
        if len(starts) != self.shape[axis] + 1:
            raise ValueError(
                f"indptr is of {len(starts) - 1} {what}, and there are {self.shape[axis]}"
            )
        falls = bool((np.diff(starts) < 0).any())
        if starts[0] != 0 or starts[-1] != self.stored or falls:
            raise ValueError(
                f"indptr goes from {starts[0]} to {starts[-1]}{', and falls' * falls}; expected"
                f" that it rises from 0 to the number of values, {self.stored}"
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
        runs = zip(first, last, strict=True)
        lengths = [np.diff(starts[start : stop + 1]) for start, stop in runs]
        ends = np.concatenate([[0], *lengths]).cumsum()
        return csr_matrix((values, columns, ends), shape=(len(ends) - 1, self.shape[1]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_opened_by": None, "_starts": None}


def _runs(rows: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of neighbouring rows that hold all of the ascending `rows`, and no more than `GAP`
    values between two of them: (first rows, rows after the last).
    """
    breaks = np.flatnonzero(starts[rows[1:]] - starts[rows[:-1] + 1] > GAP)
    first, last = np.append(0, breaks + 1), np.append(breaks, len(rows) - 1)
    return rows[first[: len(rows)]], rows[last[: len(rows)]] + 1


def _read(dataset: Any, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Parts of an HDF5 dataset along its first dimension, one after another."""
    places = np.concatenate([[0], np.cumsum(last - first)]).tolist()
    read = np.empty((places[-1], *dataset.shape[1:]), dtype=dataset.dtype)
    ends = zip(first.tolist(), last.tolist(), places[:-1], places[1:], strict=True)
    for start, stop, place, end in ends:
        if stop > start:
            dataset.read_direct(read, np.s_[start:stop], np.s_[place:end])
    return read
