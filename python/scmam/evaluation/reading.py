"""Cells as padded gene sequences, straight from their sparse rows: no dense matrix, and little
padding.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from mam_kernels.sequences import Sequences

from ..data import Cells
from ..data.matrix import as_tensor
from ..sequences import expression

CPU_TOKENS = 4096
"""Genes, padding included, that pass through the encoder at a time: few enough for their
activations to stay in a core's cache.
"""
GPU_TOKENS = 65536
"""The same on a GPU, which wants more at a time and has the memory."""

READ_TOGETHER = 4096
"""Cells whose rows are read at once."""


class Part(NamedTuple):
    """Some of the cells that were asked for."""

    positions: np.ndarray  # (B,) int64, which of them
    sequences: Sequences  # (B, T), T the longest of these
    depth: Tensor  # (B,) float32
    shift: Tensor | None  # (B, 1, width), added to the encoder's tokens; without gradient


class SequenceReader:
    """The non-zero genes of cells, as the encoder reads them.

    Args:
        cells: whose genes are the model's.
        transform: one of ``scmam.sequences.TRANSFORMS``.
        limit: genes of a cell that are read at most, those with the largest counts (of equal ones,
            the first). None: all.
        device: where the sequences are put.
        shift: gives `Part.shift` of the values (B, G), sparse CSR, of whole cells. None: no shift.
    """

    def __init__(
        self,
        cells: Cells,
        transform: str,
        limit: int | None,
        device: torch.device,
        shift: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        self._counts = cells.counts.loaded() if cells.counts.in_memory else cells.counts
        self._depth = torch.from_numpy(np.ascontiguousarray(cells.depth))
        self.transform, self.limit, self.device, self.shift = transform, limit, device, shift

    def parts(self, indices: np.ndarray) -> Iterator[Part]:
        """Every cell once, cells of similar length together, a bounded number of tokens at a time.

        Args:
            indices: (n,) int64 positions among the cells.
        """
        for start in range(0, len(indices), READ_TOGETHER):
            for part in self._parts(indices[start : start + READ_TOGETHER]):
                yield part._replace(positions=start + part.positions)

    def _parts(self, indices: np.ndarray) -> Iterator[Part]:
        rows = self._counts.take(indices)
        lengths = np.diff(rows.indptr)
        if self.limit is not None:
            lengths = np.minimum(lengths, self.limit)
        tokens = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        for positions in _alike(lengths + 1, tokens):  # + 1: the cell's own token
            depth = self._depth[indices[positions]]
            sequences = self._cut(_padded(rows[positions]))
            values = expression(sequences.values, depth, self.transform)
            parts = (sequences.gene_ids, values, sequences.valid)
            placed = Sequences(*(x.to(self.device) for x in parts))
            shift = self._shift(rows[positions], depth)
            yield Part(positions, placed, depth.to(self.device), shift)

    @torch.no_grad()
    def _shift(self, rows: csr_matrix, depth: Tensor) -> Tensor | None:
        if self.shift is None:
            return None
        return self.shift(expression(as_tensor(rows), depth, self.transform).to(self.device))

    def _cut(self, sequences: Sequences) -> Sequences:
        if self.limit is None or sequences.values.shape[1] <= self.limit:
            return sequences
        order = sequences.values.argsort(dim=1, descending=True, stable=True)
        kept = order[:, : self.limit].sort(dim=1).values
        return Sequences(*(x.gather(1, kept) for x in sequences))


def token_limit(model_limit: int | None, max_tokens: int | None) -> int | None:
    """The smaller of what the model reads and what the evaluation is to read; None: no limit."""
    given = [limit for limit in (model_limit, max_tokens) if limit is not None]
    return min(given) if given else None


def _padded(rows: csr_matrix) -> Sequences:
    """The stored values of each row, side by side; (B, T) with T at least 1."""
    lengths = np.diff(rows.indptr)
    valid = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    gene_ids = np.zeros(valid.shape, dtype=np.int64)
    values = np.zeros(valid.shape, dtype=np.float32)
    gene_ids[valid], values[valid] = rows.indices, rows.data  # both run through the rows in order
    return Sequences(torch.from_numpy(gene_ids), torch.from_numpy(values), torch.from_numpy(valid))


def _alike(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Positions in the order of their lengths, as many at a time as fit into so many tokens when
    padded to the longest; at least one.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - first) > tokens:
            yield order[first:end]
            first = end
