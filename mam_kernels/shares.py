"""How many positions of a cell are hidden: a ratio, how it is rounded, and whether it is drawn.

A count is a function of (seed, step, cell id), as the mask is.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._core import checks, philox
from ._core.call import word_tensor

ROUNDINGS = ("floor", "ceil", "bernoulli")
DRAWN_PER = ("cell", "batch")

RATIO_STREAM, POSITION_STREAM = 3, 4
"""Of the random bits; 0 and 1 are those of positions and latents, 2 those of corruption."""


class Draw(NamedTuple):
    """Which draw a strategy makes for a batch: the same three give the same masks."""

    seed: int | Tensor  #: or int64 of 0 dims, on the CPU or on the device of the data
    step: int | Tensor  #: likewise
    sample_ids: Tensor | None  #: (B,) integers, of the cells; None: the index of the row


class Share:
    """How many of the ``n`` positions of a cell that may be hidden are.

    Args:
        ratio: in [0, 1]; several, of which each draw takes one, each as likely.
        rounding: of ``ratio * n``: "floor"; "ceil"; "bernoulli": as many as ``n`` coins of chance
            ``ratio`` give, so that each position is hidden by itself.
        at_least: positions that are hidden wherever there are as many.
        per: whether several ratios are drawn for each "cell", or once for the "batch".

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(
        self,
        ratio: float | Sequence[float],
        *,
        rounding: str = "floor",
        at_least: int = 0,
        per: str = "cell",
    ) -> None:
        ratios = tuple(ratio) if isinstance(ratio, Sequence) else (ratio,)
        if not ratios:
            raise ValueError("ratio: expected at least one number; got none")
        self.ratios = tuple(checks.require_number("ratio", one, 0.0, 1.0) for one in ratios)
        self.low: float | None = None  # of a range, in place of the ratios: see between
        self.high: float | None = None
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding: expected one of {', '.join(ROUNDINGS)}; got {rounding!r}")
        if per not in DRAWN_PER:
            raise ValueError(f"per: expected one of {', '.join(DRAWN_PER)}; got {per!r}")
        self.rounding, self.per = rounding, per
        self.at_least = checks.require_count("at_least", at_least, 0)

    @classmethod
    def between(cls, low: float, high: float, **options: Any) -> "Share":
        """A ratio drawn uniformly in [low, high]; options as of the class."""
        share = cls((low, high), **options)
        if low > high:
            raise ValueError(f"low: expected at most high = {high}; got {low}")
        share.low, share.high = share.ratios
        return share

    def __repr__(self) -> str:
        ratio = self.ratios[0] if len(self.ratios) == 1 else self.ratios
        name = "Share" if self.low is None else "Share.between"
        return (
            f"{name}({ratio}, rounding={self.rounding!r}, at_least={self.at_least}, "
            f"per={self.per!r})"
        )

    @property
    def plain(self) -> float | None:
        """The ratio, where it is one for all, rounded down and nothing more; else None."""
        simple = len(self.ratios) == 1 and self.rounding == "floor" and not self.at_least
        return self.ratios[0] if simple else None

    def count(self, like: Tensor, positions: Tensor | None, draw: Draw) -> int | Tensor:
        """How many are hidden of each cell.

        Args:
            like: (B, G), whose shape and device the batch has.
            positions: (B, G) bool, True where a position may be hidden; None: everywhere.
            draw: of the batch.

        Returns:
            An int, or int64 (B,).
        """
        fixed = len(self.ratios) == 1
        if fixed and positions is None and self.rounding != "bernoulli":
            return min(like.shape[1], max(self.at_least, self._rounded(like.shape[1])))
        number = (
            torch.full((len(like),), like.shape[1], dtype=torch.float64, device=like.device)
            if positions is None
            else positions.sum(dim=1, dtype=torch.float64)
        )
        ratio = self.ratios[0] if fixed else self._drawn(like, draw)
        if self.rounding == "bernoulli":
            counts = self._coins(like, positions, ratio, draw)
        else:
            counts = getattr(torch, self.rounding)(number * ratio)
        if self.at_least:
            counts = torch.minimum(counts.clamp(min=self.at_least), number)
        return counts.to(torch.int64)

    def _rounded(self, number: int) -> int:
        return getattr(math, self.rounding)(self.ratios[0] * number)

    def _drawn(self, like: Tensor, draw: Draw) -> Tensor:
        """(B,) or (1,) float64."""
        # Word 0 of the counter tells the two apart: a batch has no sample id.
        of_batch = self.per == "batch"
        ids = like.new_zeros(1, dtype=torch.int64) if of_batch else ids_of(like, draw)
        seed, step = _words(draw, like.device)
        zero = torch.zeros_like(ids)
        bits = philox.philox4x32(
            seed, (zero + int(of_batch), ids, zero + step, zero + RATIO_STREAM)
        )
        uniform = bits[0].double() * 2.0**-32
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) * uniform
        ratios = torch.tensor(self.ratios, dtype=torch.float64, device=like.device)
        return ratios[(uniform * len(self.ratios)).long()]

    def _coins(
        self, like: Tensor, positions: Tensor | None, ratio: float | Tensor, draw: Draw
    ) -> Tensor:
        seed, step = _words(draw, like.device)
        bits = philox.random_bits(like.shape[1], ids_of(like, draw), step, seed, POSITION_STREAM)
        if isinstance(ratio, Tensor):
            ratio = ratio[:, None]
        heads = bits.double() * 2.0**-32 < ratio
        return (heads if positions is None else heads & positions).sum(dim=1).double()


def share_of(name: str, ratio: float | Share) -> Share:
    """A ``Share``, or one of a number, rounded down."""
    if isinstance(ratio, Share):
        return ratio
    return Share(checks.require_number(name, ratio, 0.0, 1.0))


def ids_of(like: Tensor, draw: Draw) -> Tensor:
    """(B,) int64, of the cells of a batch ``like`` (B, G)."""
    if draw.sample_ids is None:
        return torch.arange(len(like), device=like.device)
    return draw.sample_ids.to(torch.int64)


def _words(draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
    """Seed and step as int64 of 0 dims on ``device``."""
    seed, step = word_tensor(draw.seed), word_tensor(draw.step)
    return seed.to(device), step.to(device)
