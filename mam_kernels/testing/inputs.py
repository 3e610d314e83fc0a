"""Inputs like those of real steps: values like those of cells, padding, and the layouts in which
torch may hand them over.
"""

import itertools
import warnings

import torch
from torch import Tensor


def expression(
    rows: int, positions: int, density: float, generator: torch.Generator, *, largest: float = 6.0
) -> Tensor:
    """Values (B, L) like log-normalised counts: mostly zeros, the rest skewed towards the small;
    float32.
    """
    present = torch.rand(rows, positions, generator=generator) < density
    size = -torch.log1p(-torch.rand(rows, positions, generator=generator))
    return torch.where(present, (0.3 + size).clamp(max=largest), 0.0)


def ragged(rows: int, positions: int, generator: torch.Generator) -> Tensor:
    """Padding (B, L): rows of different lengths with holes; the last of several rows has no valid
    position at all.
    """
    lengths = torch.randint(1, positions + 1, (rows, 1), generator=generator)
    valid = (torch.arange(positions) < lengths) & (
        torch.rand(rows, positions, generator=generator) < 0.9
    )
    valid[:, 0] = True
    if rows > 1:
        valid[-1] = False
    return valid


def strided(x: Tensor) -> Tensor:
    """The same numbers (B, L, ...) at other addresses: every other column of a larger, column-major
    storage.
    """
    storage = torch.full((x.shape[1] * 2, x.shape[0], *x.shape[2:]), 7.0, dtype=x.dtype).transpose(
        0, 1
    )
    storage[:, ::2] = x
    return storage[:, ::2]


def transposed(flags: Tensor) -> Tensor:
    """The same flags (B, L) in column-major storage."""
    return flags.t().contiguous().t()


def to_csr(x: Tensor) -> Tensor:
    """The matrix in CSR, without torch's warning that its sparse tensors are in beta: the user who
    validates a machine cannot act on it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return x.to_sparse_csr()


def shuffled(csr: Tensor, generator: torch.Generator) -> Tensor:
    """The same CSR matrix with the entries of each row in another order, as the format allows."""
    order = torch.cat(
        [
            start + torch.randperm(stop - start, generator=generator)
            for start, stop in itertools.pairwise(csr.crow_indices().tolist())
        ]
    )
    return torch.sparse_csr_tensor(
        csr.crow_indices(),
        csr.col_indices()[order],
        csr.values()[order],
        csr.shape,
        check_invariants=False,
    )


def ids(rows: int) -> Tensor:
    """Sample ids (B,) that no row has by default: 32-bit words with the top bit set, descending."""
    return 2**32 - 5 - 3 * torch.arange(rows)
