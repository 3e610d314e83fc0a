"""Cells: raw counts of the chosen cells and genes, with the labels and donors of each cell."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from pandas import Index
from scipy.sparse import csr_matrix

from ..config import digest
from ..sequences import CellBatch
from .matrix import as_tensor
from .rows import Rows


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells that `open_cells` reads, with their counts and labels.

    Nothing here is as large as the file where the counts are read from it.
    """

    counts: Rows  #: (cells, genes); `.take(indices)` gives scipy CSR float32 raw counts
    genes: tuple[str, ...]
    names: np.ndarray  #: (cells,) str, of .obs
    cell_ids: np.ndarray  #: (cells,) int64: row in the file, whatever was dropped
    depth: np.ndarray  #: (cells,) float32: total count over all genes of the file
    labels: np.ndarray | None = None  #: (cells,) str, "" where a cell has none
    label: str | None = None  #: the column of .obs that they come from
    donors: np.ndarray | None = None  #: (cells,) str
    donor: str | None = None
    source: str = ""  #: "pbmc68k_reduced: .raw.X"
    #: or "counts recovered from log1p of counts per 10k", or "counts per 10k (no raw counts there)"
    unit: str = "counts"
    block: int = 1  #: cells next to each other that a loader draws together
    notes: tuple[str, ...] = ()  #: what was found, taken and dropped, in sentences
    #: the labels there are, sorted; a subset keeps them all, so that codes mean the same
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is not None and not self.classes:
            object.__setattr__(self, "classes", tuple(sorted(set(self.labels.tolist()) - {""})))

    @property
    def num_cells(self) -> int:
        return self.counts.shape[0]

    @property
    def num_genes(self) -> int:
        return self.counts.shape[1]

    def __len__(self) -> int:
        return self.num_cells

    @property
    def density(self) -> float:
        """Share of the counts that are not zero."""
        return self.counts.nonzero / max(1, self.num_cells * self.num_genes)

    @cached_property
    def codes(self) -> np.ndarray:
        """(cells,) int64: index into `classes`, -1 where a cell has no label."""
        if self.labels is None:
            return np.full(self.num_cells, -1, dtype=np.int64)
        return Index(self.classes).get_indexer(self.labels).astype(np.int64)

    @property
    def class_sizes(self) -> dict[str, int]:
        """Cells of each class, 0 for a class that a subset has none of."""
        sizes = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, sizes.tolist(), strict=True))

    def fingerprint(self) -> str:
        """A short hash of the chosen cells, genes, depths, labels and donors."""
        donors = () if self.donors is None else self.donors.tolist()
        arrays = (self.cell_ids, self.codes, self.depth)
        content = [np.ascontiguousarray(array).tobytes() for array in arrays]
        content += ["\n".join(x).encode() + b"\0" for x in (self.genes, self.classes, donors)]
        return digest(b"".join(content))

    def batch(self, indices: np.ndarray) -> CellBatch:
        """Some cells, dense.

        Args:
            indices: (B,) int64 positions among these cells.
        """
        indices = np.asarray(indices, dtype=np.int64)
        return self.batch_of(self.counts.take(indices), indices)

    def batch_of(self, rows: csr_matrix, indices: np.ndarray, *, sparse: bool = False) -> CellBatch:
        """A batch of rows that were read already; its counts sparse CSR, or dense."""
        counts = as_tensor(rows) if sparse else torch.from_numpy(rows.toarray())
        depth, cell_ids, labels = (
            torch.from_numpy(x[indices]) for x in (self.depth, self.cell_ids, self.codes)
        )
        return CellBatch(counts, depth, cell_ids, labels)

    def subset(self, indices: np.ndarray) -> "Cells":
        """Some of the cells; their counts are not copied."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            counts=self.counts.subset(indices),
            names=self.names[indices],
            cell_ids=self.cell_ids[indices],
            depth=self.depth[indices],
            labels=None if self.labels is None else self.labels[indices],
            donors=None if self.donors is None else self.donors[indices],
        )
