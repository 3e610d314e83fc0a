"""What a model sees at a hidden position: nearly always a mask token, sometimes a wrong value,
sometimes the true one.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ._core import philox
from .randomness import substream
from .sequences import gather

CORRUPTIONS: dict[
    str, tuple[float, float]
] = {  # shares of the mask token and of a random value; the rest is left as it is
    "all": (1.0, 0.0),
    "80/10/10": (0.8, 0.1),
    "90/10": (0.9, 0.1),
}
RANDOM_VALUES = ("observed", "uniform")


class Corrupted(NamedTuple):
    """The input of a model."""

    values: Tensor  # (B, G)
    token: Tensor  # (B, G) bool: behind a mask token


class Outcomes(NamedTuple):
    """The new content of hidden positions; unchanged where neither."""

    token: Tensor  # bool: the mask token
    wrong: Tensor  # bool: a random value
    which: Tensor  # int64 in [0, 2**32): random bits to choose that value by


def corrupt(
    values: Tensor,
    mask: Tensor,
    scheme: str,
    cell_ids: Tensor,
    *,
    seed: int,
    step: int,
    random_values: str = "observed",
) -> Corrupted:
    """Replace what a mask hides.

    "all": every hidden position becomes the mask token. "80/10/10": 80 % the mask token, 10 % a
    random value, 10 % unchanged. "90/10": 90 % the mask token, 10 % a random value. What a position
    becomes is a function of (seed, step, cell, position) and, for the values themselves, of
    ``random_values``.

    Args:
        values: (B, G) float32.
        mask: (B, G) bool, True = hidden.
        scheme: one of ``CORRUPTIONS``.
        cell_ids: (B,) int64.
        seed, step: of the draw.
        random_values: "observed": a non-zero value of the same cell, each as likely, so that the
            depth of the cell does not give it away; "uniform", as in the published code: ``U``
            times the largest value of the batch, U uniform in (0, 1).
    """
    if random_values not in RANDOM_VALUES:
        raise ValueError(
            f"random_values: expected one of {', '.join(RANDOM_VALUES)}; got {random_values!r}"
        )
    shares = corruption_shares(scheme)
    if shares[0] == 1.0:
        return Corrupted(values, mask)
    rows, genes = mask.nonzero(as_tuple=True)
    seed_word = torch.tensor(substream(seed, "corruption"), device=values.device)
    token_there, wrong, which = draw_outcomes(
        shares, genes, cell_ids[rows], seed=seed_word, step=step
    )
    if random_values == "uniform":
        replacement = philox.uniforms(which) * values.max()
    else:
        there = gather(values, values != 0)
        # a cell of zeros gets 0, which is what its sequence holds
        count = there.valid.sum(dim=1)[rows].clamp(min=1)
        replacement = there.values[rows, which % count]
    corrupted = values.clone()
    corrupted[rows, genes] = torch.where(wrong, replacement, values[rows, genes])
    token = torch.zeros_like(mask)
    token[rows, genes] = token_there
    return Corrupted(corrupted, token)


def corruption_shares(scheme: str | Sequence[float]) -> tuple[float, float]:
    """The shares of the mask token and of a random value, of a name in ``CORRUPTIONS`` or of the
    two shares themselves.
    """
    if isinstance(scheme, str):
        if scheme not in CORRUPTIONS:
            raise ValueError(
                f"corruption: expected one of {', '.join(CORRUPTIONS)}; got {scheme!r}"
            )
        return CORRUPTIONS[scheme]
    token, wrong = scheme
    if min(token, wrong) < 0 or token + wrong > 1:
        raise ValueError(
            "corruption: expected shares of mask token and random value that add up to at most 1; "
            f"got {scheme!r}"
        )
    return token, wrong


def draw_outcomes(
    shares: tuple[float, float],
    positions: Tensor,
    cell_ids: Tensor,
    *,
    seed: Tensor,
    step: int | Tensor,
    stream: int = 0,
) -> Outcomes:
    """Decide what hidden positions become, without a synchronisation: a function of (seed, step,
    cell, position).

    Args:
        shares: of the mask token and of a random value.
        positions, cell_ids: int64, of shapes that broadcast together; outcomes are of the shape
            they broadcast to.
        seed: int64 of 0 dims.
        step: an int or int64 of 0 dims.
        stream: of the random bits; 0 and 1 are those of the masks, for a seed that is also theirs.
    """
    zero = torch.zeros((), dtype=torch.int64, device=positions.device)
    kind, which, _, _ = philox.philox4x32(seed, (positions, cell_ids, zero + step, zero + stream))
    kind = philox.uniforms(kind)
    token_share, random_share = shares
    return Outcomes(
        kind < token_share, (kind >= token_share) & (kind < token_share + random_share), which
    )


class IdSet:
    """A set of token ids, from which random bits choose by arithmetic alone: a table would have to
    follow a module to its device.

    Args:
        ids: integers; one that comes twice counts once.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        ordered = sorted(set(ids))
        if not ordered:
            raise ValueError("random_ids: expected at least one id; got none")
        self.size, self.first = len(ordered), ordered[0]
        steps = (
            (rank, high - low - 1) for rank, (low, high) in enumerate(pairwise(ordered), start=1)
        )
        self.gaps = [
            (rank, gap) for rank, gap in steps if gap
        ]  # from the id of this rank on, so many more are left out

    def choose(self, which: Tensor) -> Tensor:
        """Ids for int64 random bits, each as likely but for the remainder of 2**32."""
        rank = which % self.size
        ids = rank + self.first
        for start, gap in self.gaps:
            ids = ids + gap * (rank >= start)
        return ids
