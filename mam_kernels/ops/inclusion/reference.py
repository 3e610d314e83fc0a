"""Inclusion probabilities of the race at a fixed time, one equation a line.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..selection.reference import relative_weights

HALVINGS = 64
"""Of the interval in which the logarithm of the time lies."""


def expected_arrivals(weights: Tensor, log_time: Tensor) -> Tensor:
    """``sum_l 1 - exp(-w_l t)``; (B,)."""
    return -torch.expm1(-weights * log_time.exp()[:, None]).sum(dim=-1)


def arrival_time(weights: Tensor, count: Tensor) -> Tensor:
    """``t`` with ``expected_arrivals(w, t) = k``, for ``k`` below the number of positive weights;
    elsewhere infinite. Weights (B, L) in float64, the largest of a row 1; (B,).
    """
    positive = weights > 0
    available = positive.sum(dim=-1)
    total = weights.sum(dim=-1).clamp(min=1.0)
    smallest = torch.where(positive, weights, 1.0).amin(dim=-1)
    low = torch.log(count.clamp(min=1e-300) / total)  # 1 - exp(-x) <= x
    high = torch.log(torch.log(available.clamp(min=3).to(weights.dtype)) / smallest)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        later = expected_arrivals(weights, middle) < count
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    time = torch.where(count > 0, ((low + high) / 2).exp(), 0.0)
    return torch.where(count < available, time, torch.inf)


def probabilities(
    weights: Tensor, num_samples: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pi_l = 1 - exp(-w_l t)`` with ``sum_l pi_l = k``, (B, L) float32 (float64 for float64), and
    ``t`` of the weights as given, (B,) float64; infinite where every position is drawn.

    torch differentiates ``t`` through a last step of Newton's method.
    """
    dtype = torch.promote_types(weights.dtype, torch.float32)
    relative = relative_weights(weights.to(torch.float64), valid, 0.0, 1.0)
    count = num_samples.to(torch.float64)
    time = arrival_time(relative.detach(), count)
    finite = torch.isfinite(time)
    start = torch.where(finite, time, 1.0)[:, None]
    arrived = -torch.expm1(-relative * start)
    rate = (relative * torch.exp(-relative * start)).detach().sum(dim=-1, keepdim=True)
    error = arrived.sum(dim=-1, keepdim=True) - count[:, None]
    step = torch.where(finite[:, None] & (rate > 0), error / rate.clamp(min=1e-300), 0.0)
    drawn = -torch.expm1(-relative * (start - step))
    drawn = torch.where(finite[:, None], drawn, (relative > 0).to(drawn.dtype))
    largest = torch.where(relative > 0, weights.to(torch.float64), 0.0).amax(dim=-1)
    return drawn.to(dtype), (time / largest.clamp(min=torch.finfo(torch.float64).tiny)).detach()


def probabilities_backward(
    grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor
) -> Tensor:
    """``t exp(-u) (G - sum G g / sum g)`` with ``u = w t`` and ``g = u exp(-u)``; (B, L), 0 where a
    position is never drawn, and in rows that are drawn whole.
    """
    finite = torch.isfinite(time)[:, None]
    drawn = (probability > 0) & finite
    weights = torch.where(drawn, weights, 0.0).to(torch.float64)
    time = torch.where(finite, time[:, None], 0.0)
    u = weights * time
    g = u * torch.exp(-u)
    average = (grad * g).sum(dim=-1, keepdim=True) / g.sum(dim=-1, keepdim=True).clamp(min=1e-300)
    return torch.where(drawn, time * torch.exp(-u) * (grad - average), 0.0)
