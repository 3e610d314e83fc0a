"""``inclusion_probabilities`` and its gradient."""

import numpy as np
import torch

import mam_kernels as mam

from . import layouts, numbers, oracles, selection
from .source import Source, Wrong

HALVINGS = 70


def probabilities(source: Source) -> str:
    """``1 - exp(-w t)`` that sum to ``k``, and their derivative."""
    rows, positions = numbers.shape(source)
    dtype = layouts.DTYPES[source.one_of(["float32", "float32", "float16", "bfloat16", "float64"])]
    with np.errstate(over="ignore"):
        weights, truth = layouts.laid(source, numbers.weights(source, (rows, positions)), dtype)
    valid, exists = layouts.flags(source, (rows, positions))
    k, wanted = selection.counts(source, rows, positions)
    options = {"valid": valid, "backend": source.one_of([None, "reference"])}
    source.calling("inclusion_probabilities", weights=weights, num_samples=k, **options)
    differentiable = source.chance(50)
    given = weights.detach().requires_grad_() if differentiable else weights
    got = mam.inclusion_probabilities(given, k, **options)
    drawable = exists & selection.may_be_drawn(truth)
    (ours,) = layouts.fields(got)
    heaviest = np.where(drawable, truth, 0.0).max(axis=1, keepdims=True, initial=0.0)
    with np.errstate(all="ignore"):
        relative = np.maximum(truth / heaviest, oracles.SMALLEST_RELATIVE_WEIGHT)
    relative = np.where(drawable, relative, 0.0)
    time = arrival_time(relative, wanted)
    right = np.where(drawable, -np.expm1(-relative * time[:, None]), 0.0)
    unit = 2.0**-53 if dtype is torch.float64 else 2.0**-24
    # where nearly all that is heavy has arrived, float64 sums do not tell the time apart
    u = np.where(drawable, relative * time[:, None], 0.0)
    with np.errstate(over="ignore", divide="ignore"):
        vague = 2.0**-48 * (wanted + 1) / (u * np.exp(-u)).sum(axis=1)
    share = np.minimum((1e-9 if dtype is torch.float64 else 1e-6) + vague, 1.0)
    allowed = share[:, None] * right + 1e-44
    oracles.check_near("probability", ours, right, allowed, np.zeros_like(drawable))
    sums = np.minimum(wanted, drawable.sum(axis=1))
    if (np.abs(ours.sum(axis=1) - sums) > 8 * unit * np.sqrt(positions + 1) * sums + 1e-9).any():
        raise Wrong(f"probabilities sum to {ours.sum(axis=1).tolist()}, not {sums.tolist()}")
    if differentiable and positions:
        slope = source.numbers.standard_normal(ours.shape)
        got.backward(torch.from_numpy(slope).to(got.dtype))
        _check_gradient(given.grad, truth, drawable, heaviest, relative, time, slope)
    return "right"


def arrival_time(relative: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``t`` with ``sum 1 - exp(-w t) = k``; infinite where all of a row are drawn; (B,)."""
    available = (relative > 0).sum(axis=1)
    low, high = np.full(len(counts), -50.0), np.full(len(counts), 120.0)  # of log t
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            u = relative * np.exp(middle)[:, None]
        # ones apart: what is small decides where as many as are drawn are far heavier
        late = u > 0.5
        rest = np.where(late, np.exp(-u), np.expm1(-u)).sum(axis=1)
        early = rest > late.sum(axis=1) - counts
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    time = np.exp((low + high) / 2)
    # so large that every weight has arrived, and not so large that 0 times it would be undefined
    return np.where(counts >= available, 1e300, np.where(counts == 0, 0.0, time))


def _check_gradient(
    got: torch.Tensor,
    weights: np.ndarray,
    drawable: np.ndarray,
    heaviest: np.ndarray,
    relative: np.ndarray,
    time: np.ndarray,
    slope: np.ndarray,
) -> None:
    """``dpi_l / dw_j = g_l (1[l = j] - g_j / sum g) / w_j`` with ``g = u exp(-u)``, ``u = w t``."""
    (ours,) = layouts.fields(got)
    if (ours[~drawable] != 0).any():
        raise Wrong("gradient: not 0 where nothing is drawn")
    with np.errstate(all="ignore"):
        u = relative * time[:, None]
        g = u * np.exp(-u)
        total = g.sum(axis=1, keepdims=True)
        average = np.where(total > 0, (slope * g).sum(axis=1, keepdims=True) / total, 0.0)
        scale = np.where(drawable, g / np.where(drawable, weights, 1.0), 0.0)
        right = scale * (slope - average)
        reach = scale * (np.abs(slope) + np.abs(average))
        narrow = layouts.UNITS[got.dtype]
        # what a range of weights too wide for the documented clamp makes of it is not looked at
        lightest = np.where(drawable, weights, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        clear = (lightest > 1e-30 * heaviest) & (total > 1e-6) & (reach < 1e30)
        clear &= reach > (1e-30 if got.dtype in (torch.float32, torch.bfloat16) else 1e-3)
        if got.dtype is torch.float16:
            clear &= reach < 1e4
        wrong = clear & ~(np.abs(ours - right) <= (1e-4 + 8 * narrow) * reach)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        raise Wrong(f"gradient: {ours[at]!r} at {at}, not {right[at]!r}")
