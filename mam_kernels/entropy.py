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
    logits = torch.log(importance + eps)
    if temperature != 1.0:
        logits = logits / temperature
    return logits.masked_fill(importance <= 0, -torch.inf)


def drawing_entropy(importance: Tensor, eps: float, temperature: float) -> DrawingEntropy:
    """Entropy of the first draw of each row; arguments as in `drawing_logits`.

    With the shares ``p`` of the weights it is ``-sum p log p``. Shares have the dtype of the
    importance, and the sums are float64.
    """
    logits = drawing_logits(importance, eps, temperature)
    drawable = (importance > 0).sum(dim=1, dtype=torch.float64)
    terms = torch.special.entr(logits.softmax(dim=1))  # NaN where a row has nothing to draw
    entropy = torch.where(drawable > 0, terms.sum(dim=1, dtype=torch.float64), 0.0)
    return DrawingEntropy(entropy, drawable)
