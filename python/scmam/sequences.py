"""Cells as tensors, from a loader to a model."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

TRANSFORMS = ("log1p_counts", "log1p_cp10k")
COUNTS_PER = 1e4
# Torch says so once in a process, and a user can do nothing about it.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


class CellBatch(NamedTuple):
    """A batch of ``B`` cells over ``G`` genes."""

    counts: Tensor  #: (B, G) float32, dense or sparse CSR: raw counts of the chosen genes
    #: (B,) float32: total count of the cell over all genes of its file, before genes were chosen
    depth: Tensor
    cell_ids: Tensor  #: (B,) int64: the cell's row in its file, which masks depend on
    labels: Tensor  #: (B,) int64: code of its class, -1 where there is none

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CellBatch":
        """The same on another device."""
        return CellBatch(*(x.to(device, non_blocking=non_blocking) for x in self))

    def pin_memory(self) -> "CellBatch":
        """The same in page-locked memory, from which a GPU copies asynchronously."""
        return CellBatch(*(x.pin_memory() for x in self))


def expression(counts: Tensor, depth: Tensor, transform: str) -> Tensor:
    """The values that the model reads, from counts.

    Args:
        counts: (B, G) raw counts, dense or sparse CSR.
        depth: (B,) total count of each cell.
        transform: "log1p_counts": ``log(1 + count)``; "log1p_cp10k": ``log(1 + 10000 count /
            depth)``.

    Returns:
        (B, G) of the layout of the counts, zero where the count is.
    """
    if counts.layout == torch.sparse_csr:
        crow, columns, stored = counts.crow_indices(), counts.col_indices(), counts.values()
        scale = depth.repeat_interleave(crow.diff(), output_size=len(stored))
        return csr_tensor(
            crow, columns, expression(stored[:, None], scale, transform)[:, 0], counts.shape
        )
    if transform == "log1p_counts":
        return torch.log1p(counts)
    if transform == "log1p_cp10k":
        return torch.log1p(counts * (COUNTS_PER / depth.clamp(min=1.0))[:, None])
    raise ValueError(f"transform: expected one of {', '.join(TRANSFORMS)}; got {transform!r}")


def csr_tensor(crow: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A sparse CSR tensor of parts that fit; they are not checked.

    Args:
        crow: (B + 1,) integers, where each row begins among the values.
        columns: (n,) integers, ascending in each row.
        values: (n,).
        shape: (B, G).
    """
    return torch.sparse_csr_tensor(crow, columns, values, size=shape, check_invariants=False)
