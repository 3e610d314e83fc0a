"""The parts of a masking call. They travel under these names from ``forward`` to a kernel.

An operation of torch takes a flat list of arguments; ``registration.Operation`` flattens these
structures by the names of their fields, and puts them together again on the other side.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """The values of a batch of cells, dense or sparse, and which positions are attended to."""

    values: Tensor  # (B, L), or the stored entries (S,) of a CSR matrix
    crow: Tensor | None  # (B + 1,) where the entries of each row begin; None: dense
    col: Tensor | None  # (S,) the position of each entry; None: dense
    valid: Tensor | None  # (B, L) bool; None: everywhere
    num_positions: int  # L

    @property
    def rows(self) -> int:
        """``B``."""
        return self.values.shape[0] if self.crow is None else self.crow.shape[0] - 1

    @property
    def nonzero(self) -> Tensor:
        """(B, L) bool, True where the value is not zero."""
        there = self.values != 0
        if self.crow is None or self.col is None:
            return there
        dense = there.new_zeros((self.rows, self.num_positions))
        if there.numel() == 0 or dense.numel() == 0:
            return dense
        # Indices that are not sound are an error elsewhere; here they lead nowhere else.
        entry = torch.arange(len(there), dtype=self.crow.dtype, device=there.device)
        row = torch.searchsorted(self.crow, entry, right=True) - 1
        row = row.clamp(0, self.rows - 1)
        col = self.col.long().clamp(0, self.num_positions - 1)
        return dense.index_put_((row, col), there)

    @property
    def accumulated(self) -> torch.dtype:
        """The type of sums over a cell: float32, or float64 for float64 values."""
        return torch.promote_types(self.values.dtype, torch.float32)


WITH_THE_REST = -1.0
"""The ratio of zeros that are values like others."""


class Choice(NamedTuple):
    """The positions that may be hidden, how many are, and the latents that decide.

    Zeros may be drawn apart, each alike; then ``num_masked`` and ``mask_ratio`` are of the others.
    """

    maskable: Tensor | None  # (B, L) bool, a subset of valid; None: as valid
    num_masked: Tensor | None  # k, (B,) int32; None: floor(mask_ratio * maskable positions)
    mask_ratio: float
    latents: Tensor | None  # R, (|R|,) int64; None: num_drawn of the latents are drawn
    num_drawn: int  # |R|
    # Of scalar values: (B,) int32, zeros to hide; None: floor(zero_ratio * zeros that may be
    # hidden); None, and a ratio below 0: zeros are drawn with the rest
    num_zeros: Tensor | None = None
    zero_ratio: float = WITH_THE_REST

    @property
    def zeros_apart(self) -> bool:
        """Whether zeros are drawn apart."""
        return self.num_zeros is not None or self.zero_ratio >= 0

    def given(self) -> tuple[Tensor, Tensor]:
        """``num_masked`` and ``latents``, for the kernels that need both.

        Raises:
            ValueError: one of them is None.
        """
        if self.num_masked is None or self.latents is None:
            raise ValueError(
                f"choice: expected num_masked and latents as tensors; got {self.num_masked} and "
                f"{self.latents}"
            )
        return self.num_masked, self.latents


class Draw(NamedTuple):
    """The source of the random bits: a mask is a function of these three."""

    seed: Tensor | int  # of 64 bits; a tensor is of 0 dims, on the CPU or the device of the data
    step: Tensor | int  # likewise
    sample_ids: Tensor | None  # (B,) int64; None: the index of the row

    def words(self) -> tuple[Tensor, Tensor]:
        """Seed and step as tensors, as an operation of torch takes them."""
        return word_tensor(self.seed), word_tensor(self.step)


def word_tensor(word: Tensor | int) -> Tensor:
    """A seed or a step as int64 of 0 dims; an int goes to the CPU."""
    if isinstance(word, Tensor):
        return word
    # Half of what torch.tensor takes.
    return torch.scalar_tensor(word, dtype=torch.int64, device="cpu")


class Weighting(NamedTuple):
    """Positions are drawn in proportion to ``(importance + eps) ** inverse_temperature``."""

    eps: float
    inverse_temperature: float


AS_GIVEN = Weighting(0.0, 1.0)
"""Weights as they are."""


class Parameters(NamedTuple):
    """The parameters of the masking module, by the shapes of Linear and MultiheadAttention."""

    latents: Tensor  # (N, Dz)
    in_weight: Tensor  # (3 Dz, Dz)
    in_bias: Tensor  # (3 Dz,)
    token_weight: Tensor  # (Dz, 1), or (Dz, D) for embeddings
    token_bias: Tensor  # (Dz,)
    out_weight: Tensor  # (Dz, Dz)
    out_bias: Tensor  # (Dz,)


class TokenState(NamedTuple):
    """State of the token path for its gradient, of the same meaning on every backend."""

    attended: Tensor  # (B, N, H, d): the attended values, before the output projection
    logsumexp: Tensor  # (B, N, H): of the scores that they come from
    keys_values: Tensor  # (B, L, 2, H, d); (0,) where the backend computes them again
    visible: Tensor  # (B, L) bool: what the context is of; (0,) where it is of all valid tokens
