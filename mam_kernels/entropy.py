"""Entropy of the distribution that masks are drawn from."""

from typing import NamedTuple

import torch
from torch import Tensor


class DrawingEntropy(NamedTuple):
    """Of each row; both 0 where nothing can be drawn."""

    entropy: Tensor  #: (B,) float64, in nats
    drawable: Tensor  #: (B,) float64: how many positions can be drawn


def drawing_logits(importance: Tensor, eps: float, temperature: float) -> Tensor:
    """Logarithms of the weights that positions are drawn by, up to a constant.

    Args:
        importance: (B, L) >= 0; positions of importance 0 are never drawn.
        eps, temperature: the weights are ``(importance + eps) ** (1 / temperature)``.

    Returns:
        (B, L) of the same dtype; -inf where a position is never drawn.
    """
    logits = torch.log(importance + eps) / temperature
    return logits.masked_fill(importance <= 0, -torch.inf)


def drawing_entropy(importance: Tensor, eps: float, temperature: float) -> DrawingEntropy:
    """Entropy of the first draw of each row; arguments as in `drawing_logits`.

    With weights ``w`` of sum ``Z`` it is ``log Z - sum w log w / Z``. Terms have the dtype of the
    importance, and their sums are float64.
    """
    logits = drawing_logits(importance, eps, temperature)
    never = logits == -torch.inf
    logits = logits - logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = logits.exp()
    total = weights.sum(dim=1, dtype=torch.float64)
    product = (weights * logits.masked_fill(never, 0.0)).sum(dim=1, dtype=torch.float64)
    drawable = (~never).sum(dim=1, dtype=torch.float64)
    entropy = torch.where(drawable > 0, total.log() - product / total, 0.0)
    return DrawingEntropy(entropy, drawable)
