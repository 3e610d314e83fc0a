"""Inclusion probabilities of the race at a fixed time, one equation a line.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..selection.reference import relative_weights, widened

MAX_STEPS = 60
"""Weights within a factor of 1000 need 3 to 7, those over 34 decades 23; see the README."""

ROUNDING = 2e-15
"""Of a sum in float64, relative."""


def arrival_time(weights: Tensor, count: Tensor) -> Tensor:
    """``t`` with ``sum_l 1 - exp(-w_l t) = k``, for ``k`` below the number of positive weights;
    elsewhere infinite. Weights (B, L) in float64, the largest of a row 1; (B,).

    By Newton's method on the sum, which is concave in ``t``, and on ``log(sum_l exp(-w_l t))``,
    which is convex and falls: from below, neither goes beyond the solution, so the longer of the
    two steps is taken. The second begins where equal weights would end.
    """
    there = weights > 0
    available = there.sum(dim=-1)
    finite = count < available
    left_over = torch.where(finite, available - count, 1.0)
    mean = weights.sum(dim=-1) / available.clamp(min=1)
    time = torch.where(finite, torch.log(available / left_over), 0.0) / mean.clamp(min=1e-300)
    for _ in range(MAX_STEPS):
        left = torch.where(there, torch.exp(-weights * time[:, None]), 0.0)
        arrived = -torch.expm1(-weights * time[:, None])
        rate = (weights * left).sum(dim=-1).clamp(min=1e-300)
        missing = count - arrived.sum(dim=-1)
        sure = finite & (missing.abs() > ROUNDING * count)
        step, left = missing / rate, left.sum(dim=-1)
        alike = torch.log(left / left_over) * left / rate
        step = torch.where((missing > 0) & (alike > step), alike, step)
        time = torch.where(sure, time + step, time)
        # On a GPU, asking would wait for it.
        if time.device.type == "cpu" and not bool(sure.any()):
            break
    return torch.where(finite, time, torch.inf)


def probabilities(
    weights: Tensor, num_samples: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pi_l = 1 - exp(-w_l t)`` with ``sum_l pi_l = k``, (B, L) float32 (float64 for float64), and
    ``t`` of the weights as given, (B,) float64; infinite where every position is drawn.

    torch differentiates ``t`` through a last step of Newton's method.
    """
    dtype = torch.promote_types(weights.dtype, torch.float32)
    relative = relative_weights(weights, valid, 0.0, 1.0)
    count = num_samples.clamp(min=0).to(torch.float64)
    time = arrival_time(relative.detach(), count)
    finite = torch.isfinite(time)
    start = torch.where(finite, time, 1.0)[:, None]
    arrived = -torch.expm1(-relative * start)
    rate = (relative * torch.exp(-relative * start)).detach().sum(dim=-1, keepdim=True)
    error = arrived.sum(dim=-1, keepdim=True) - count[:, None]
    step = torch.where(finite[:, None] & (rate > 0), error / rate.clamp(min=1e-300), 0.0)
    drawn = -torch.expm1(-relative * (start - step))
    drawn = torch.where(finite[:, None], drawn, (relative > 0).to(drawn.dtype))
    largest = torch.where(relative > 0, widened(weights), 0.0).amax(dim=-1)
    return drawn.to(dtype), (time / largest.clamp(min=torch.finfo(torch.float64).tiny)).detach()


def backward(grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor) -> Tensor:
    """``t exp(-u) (G - sum G g / sum g)`` with ``u = w t`` and ``g = u exp(-u)``; (B, L), 0 where a
    position is never drawn, whatever its probability is said to be, and in rows that are drawn
    whole.
    """
    finite, dtype, weights = torch.isfinite(time)[:, None], weights.dtype, widened(weights)
    drawn = (probability > 0) & (weights > 0) & (weights < torch.inf) & finite
    weights = torch.where(drawn, weights, 0.0)
    time = torch.where(finite, time[:, None], 0.0)
    u = weights * time
    g = u * torch.exp(-u)
    average = (grad * g).sum(dim=-1, keepdim=True) / g.sum(dim=-1, keepdim=True).clamp(min=1e-300)
    return torch.where(drawn, time * torch.exp(-u) * (grad - average), 0.0).to(dtype)
