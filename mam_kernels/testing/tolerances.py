"""How far a backend may be from the reference: tolerances as data, each with its reason, and the
measures they bound.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import philox
from ..ops.selection import reference as selection

FACTOR = 2.0
"""A backend's error against the float64 reference may be this many times that of the same equations
in plain PyTorch at its precision: another order of summation is as good as torch's, and one bit is
left for it."""

FLOORS = {
    torch.float64: 1e-12,  # the reference against itself, or against torch's own attention
    # 16 roundings of float32: plain PyTorch may be exact by luck on a small case
    torch.float32: 2e-6,
    # 2 roundings of float16, in which inputs, probabilities and outputs are held
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,  # 2 roundings of bfloat16
}
"""Added to the above, relative to the largest value of a row."""

KEY_MARGIN = 4e-6
"""Relative distance of a key from the threshold within which float32 may decide either way: 32
roundings, for a logarithm, a quotient, and the collapse of the zeros' group through ``expm1``."""

EXPONENT_MARGIN = 2.5e-7
"""The same for each unit of ``|log(relative weight)| / temperature``: float32 computes that
exponent to 2 roundings before ``exp``.
"""


@dataclass(frozen=True)
class Comparison:
    """One compared quantity: its error and what is allowed."""

    quantity: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """NaN does not hold."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.quantity}: error {self.error:.1e}, allowed {self.allowed:.1e}"


def row_error(got: Tensor, truth: Tensor) -> float:
    """Largest error, relative to the largest magnitude in its row (the first dimension); infinities
    must stand in the same places.
    """
    if got.shape != truth.shape:
        return math.inf
    if truth.numel() == 0:
        return 0.0
    got, truth = got.to(torch.float64).flatten(1), truth.to(torch.float64).flatten(1)
    finite = torch.isfinite(truth)
    if not torch.equal(got[~finite], truth[~finite]):
        return math.inf
    got, truth = torch.where(finite, got, 0.0), torch.where(finite, truth, 0.0)
    scale = truth.abs().amax(dim=1, keepdim=True)
    error = ((got - truth).abs() / torch.where(scale > 0, scale, 1.0)).amax()
    return math.inf if torch.isnan(error) else float(error)


def element_error(got: Tensor, truth: Tensor) -> float:
    """Largest relative error of any element; zeros must be zeros.

    For importance: a rare gene's counts as much as a common one's.
    """
    if got.shape != truth.shape or not torch.equal(got == 0, truth == 0):
        return math.inf
    got, truth = got.to(torch.float64).flatten(), truth.to(torch.float64).flatten()
    kept = truth != 0
    if not bool(kept.any()):
        return 0.0
    error = ((got[kept] - truth[kept]) / truth[kept]).abs().amax()
    return math.inf if torch.isnan(error) else float(error)


def compare(
    quantity: str, got: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype, measure=row_error
) -> Comparison:
    """Hold ``got`` against ``truth`` (float64), allowing ``FACTOR`` times the error of ``plain``
    and the floor of ``dtype``.
    """
    return Comparison(quantity, measure(got, truth), FACTOR * measure(plain, truth) + FLOORS[dtype])


def misplaced(
    mask: Tensor,
    weights: Tensor,
    counts: Tensor,
    *,
    valid: Tensor | None = None,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    eps: float = 0.0,
    temperature: float = 1.0,
) -> int:
    """How many positions of a draw (B, L) are on the wrong side of the race of ``weights``, run in
    float64.

    Counted are positions whose key is further than rounding from the threshold, and every position
    too many or too few.
    """
    rows, positions = mask.shape
    if mask.numel() == 0:
        return 0
    step, seed = (torch.as_tensor(word, dtype=torch.int64) for word in (step, seed))
    ids = (
        torch.arange(rows, device=mask.device) if sample_ids is None else sample_ids.to(torch.int64)
    )
    bits = philox.random_bits(positions, ids, step, seed, philox.STREAM_POSITIONS)
    relative = selection.relative_weights(weights, valid, eps, 1.0 / temperature)
    keys = selection.race_keys(relative, bits)
    counts = counts.to(mask.device).long().minimum(torch.isfinite(keys).sum(dim=1))
    padded = torch.cat([keys.new_zeros(rows, 1), keys.sort(dim=1).values], dim=1)
    threshold = padded.gather(1, counts[:, None])
    exponent = torch.where(relative > 0, relative.log().abs(), 0.0)
    margin = KEY_MARGIN + EXPONENT_MARGIN * exponent
    hidden_too_late = mask & ~(keys <= threshold * (1 + margin))
    shown_too_early = ~mask & (keys < threshold * (1 - margin))
    miscounted = (mask.sum(dim=1) - counts).abs().sum()
    return int(hidden_too_late.sum() + shown_too_early.sum() + miscounted)


def compare_mask(
    quantity: str, mask: Tensor, weights: Tensor, counts: Tensor, **draw
) -> Comparison:
    """No position of a draw may be misplaced, by the race of the backend's own weights; ``draw`` as
    in ``misplaced``.
    """
    return Comparison(quantity, float(misplaced(mask, weights, counts, **draw)), 0.0)
