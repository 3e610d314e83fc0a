"""The kind of a matrix's values (raw counts, their logarithm, scaled values), and the conversion
to counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from scipy.sparse import csr_matrix

# Totals of cells normalised to the same sum differ by less than this share of their median.
EQUAL = 1e-3
LARGEST_LOG = 15.0  # natural logarithm of 3 million; normalised counts are smaller
# Recovered counts: nearly all are this close to a whole number, and none further than the second.
# Values that are no counts are 0.25 from one on average.
TIGHT, LOOSE = 0.05, 0.25
FEW = 0.01  # the share that may be further than `TIGHT`


@dataclass
class Look:
    """Statistics of a matrix's values, accumulated by `add` over blocks of rows."""

    smallest: float = np.inf  # of the stored values
    largest: float = -np.inf
    fractions: int = 0  # stored values that are no whole numbers
    not_finite: int = 0
    stored: int = 0
    cells: int = 0
    sums: list[np.ndarray] = field(default_factory=list)  # of each cell's values
    unlogged_sums: list[np.ndarray] = field(default_factory=list)  # of expm1 of them

    def add(self, rows: csr_matrix) -> "Look":
        data = rows.data
        self.cells += rows.shape[0]
        self.stored += len(data)
        finite = np.isfinite(data)
        self.not_finite += int(len(data) - np.count_nonzero(finite))
        data = data if finite.all() else data[finite]
        if len(data):
            self.smallest = min(self.smallest, float(data.min()))
            self.largest = max(self.largest, float(data.max()))
            self.fractions += int(np.count_nonzero(data != np.rint(data)))
        if not self.not_finite:
            self.sums.append(row_sums(rows))
            if self.fractions and self.smallest >= 0 and self.largest <= LARGEST_LOG:
                unlogged = _with_data(rows, np.expm1(rows.data.astype(np.float64)))
                self.unlogged_sums.append(row_sums(unlogged))
        return self

    @property
    def kind(self) -> str:
        """``"unusable"`` (NaN, infinite), ``"empty"``, ``"scaled"`` (negative values),
        ``"counts"``, ``"normalised"`` (equal sums), ``"log1p"`` (of a range that fits), or
        ``"fractional"`` (none of these)."""
        if self.not_finite:
            return "unusable"
        if not self.stored:
            return "empty"
        if self.smallest < 0:
            return "scaled"
        if not self.fractions:
            return "counts"
        if equal_total(self.sums) is not None:
            return "normalised"
        is_log = self.largest <= LARGEST_LOG and self.fractions > self.stored / 2
        return "log1p" if is_log else "fractional"

    def in_words(self) -> str:
        """The kind in words; it continues a sentence that begins with the place."""
        spread = f"{self.smallest:.4g} to {self.largest:.4g}" if self.stored else ""
        return {
            "unusable": f"holds {self.not_finite} values that are NaN or infinite",
            "empty": "holds nothing but zeros",
            "scaled": f"holds negative values (smallest {self.smallest:.3g}), so it was scaled",
            "counts": f"holds raw counts, whole numbers (non-zeros {spread})",
            "normalised": f"holds cells normalised to equal sums (non-zeros {spread})",
            "log1p": f"holds log-normalised values (non-zeros {spread})",
            "fractional": f"holds fractions that are not normalised (non-zeros {spread})",
        }[self.kind]


def look_at(blocks: Iterable[csr_matrix]) -> Look:
    """Statistics of the values of blocks of rows."""
    return reduce(Look.add, blocks, Look())


def row_sums(rows: csr_matrix) -> np.ndarray:
    """(n,) float64 sums of the rows."""
    return np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()


def equal_total(sums: list[np.ndarray]) -> float | None:
    """The sum that all cells share, or None; cells without any value are left out."""
    total = np.concatenate(sums) if sums else np.empty(0)
    total = total[total > 0]
    if len(total) < 2:
        return None
    median = float(np.median(total))
    return median if np.ptp(total) <= EQUAL * median else None


@dataclass(frozen=True)
class Conversion:
    """From normalised values to counts (exact, by rounding), or to counts per 10k.

    Attributes:
        log: values are ``log(1 + normalised) / log_of_base``; else they are normalised counts as
            they are.
        log_of_base: natural logarithm of the logarithm's base.
        scale: what a normalised count is multiplied with: a number, or (cells of the file,)
            float64.
        rounded: whether the result is rounded to whole numbers.
    """

    log: bool
    scale: np.ndarray | float
    rounded: bool
    log_of_base: float = 1.0

    def exact(self, rows: csr_matrix, cells: np.ndarray) -> csr_matrix:
        """Converted rows before any rounding, float64.

        Args:
            rows: (n, genes) as stored.
            cells: (n,) int64, their rows in the file.
        """
        data, scale = rows.data.astype(np.float64), self.scale
        if self.log:
            data = np.expm1(data * self.log_of_base)
        if isinstance(scale, np.ndarray):
            scale = np.repeat(scale[cells], np.diff(rows.indptr))
        return _with_data(rows, data * scale)

    def __call__(self, rows: csr_matrix, cells: np.ndarray) -> csr_matrix:
        """Converted rows, float32 without stored zeros."""
        converted = self.exact(rows, cells)
        if self.rounded:
            np.rint(converted.data, out=converted.data)
        converted = converted.astype(np.float32)
        converted.eliminate_zeros()
        return converted


@dataclass
class Rounding:
    """How far from whole numbers recovered counts are, before they are rounded; fed by `add`."""

    largest: float = 0.0
    loose: int = 0
    values: int = 0
    vanished: int = 0  # non-zeros that would become 0

    def add(self, rows: csr_matrix) -> None:
        if not rows.nnz:
            return
        nearest = np.rint(rows.data)
        deviation = np.abs(rows.data - nearest)
        self.largest = max(self.largest, float(deviation.max()))
        self.loose += int(np.count_nonzero(deviation > TIGHT))
        self.vanished += int(np.count_nonzero(nearest == 0))
        self.values += rows.nnz

    @property
    def tight(self) -> bool:
        """Whether the values are whole numbers to rounding."""
        return (
            self.values > 0
            and not self.vanished
            and self.largest <= LOOSE
            and self.loose <= FEW * self.values
        )


def _with_data(rows: csr_matrix, data: np.ndarray) -> csr_matrix:
    return csr_matrix((data, rows.indices.copy(), rows.indptr.copy()), shape=rows.shape)
