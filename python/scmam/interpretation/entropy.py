"""How far the masking distribution is from uniform."""

from dataclasses import dataclass

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels.strategies import ContextOnly, Masking, MaskingStrategy


@dataclass(frozen=True)
class Entropy:
    """Sums over masks; scalars, float64."""

    share: Tensor  # of the entropy over its maximum
    effective: (
        Tensor  # of exp(entropy), the effective number of positions that a mask is drawn from
    )
    drawable: Tensor  # of the number of positions that can be drawn
    masks: Tensor

    @staticmethod
    def none(device: torch.device | str = "cpu") -> "Entropy":
        """Of no masks."""
        return Entropy(*torch.zeros(4, dtype=torch.float64, device=device))

    def __add__(self, other: "Entropy") -> "Entropy":
        return Entropy(
            self.share + other.share,
            self.effective + other.effective,
            self.drawable + other.drawable,
            self.masks + other.masks,
        )

    def means(self) -> tuple[float, float, float] | None:
        """Share of the maximum, effective and drawable positions, each the mean over masks; None
        where there is no distribution.
        """
        return (
            None
            if not self.masks
            else tuple(float(x / self.masks) for x in (self.share, self.effective, self.drawable))
        )


def selecting_latents(strategy: MaskingStrategy) -> mam.MultinomialAttentionMasking | None:
    """The latents whose attention decides the masks; None where there are none, or where they only
    give a context.
    """
    return None if isinstance(strategy, ContextOnly) else strategy.latents


def drawing_weights(
    masking: Masking, latents: mam.MultinomialAttentionMasking | None
) -> Tensor | None:
    """Logarithms of the weights that positions are drawn by, ``log(s + eps) / temperature``, (B, G)
    float32; -inf: never drawn.

    None where the strategy draws uniformly, or nothing.
    """
    weights = masking.importance
    if weights is None:
        return None
    logits = (
        torch.log(weights)
        if latents is None
        else torch.log(weights + latents.eps) / latents.temperature
    )
    return logits.masked_fill(weights <= 0, -torch.inf)


def entropy_of(masking: Masking, latents: mam.MultinomialAttentionMasking | None) -> Entropy:
    """Entropy of the distribution behind each mask; masks with fewer than two positions to draw
    from are left out.

    With weights ``w`` of sum ``Z`` it is ``log Z - sum w log w / Z``: sums in float64, of terms in
    float32.
    """
    logits = drawing_weights(masking, latents)
    if logits is None:
        return Entropy.none(masking.mask.device)
    drawable = logits > -torch.inf
    logits = logits - logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = logits.exp()
    total = weights.sum(dim=1, dtype=torch.float64)
    entropy = (
        total.log()
        - (weights * logits.masked_fill(~drawable, 0.0)).sum(dim=1, dtype=torch.float64) / total
    )
    count = drawable.sum(dim=1, dtype=torch.float64)
    known = count > 1
    parts = (entropy / count.log(), entropy.exp(), count, torch.ones_like(entropy))
    return Entropy(*(x.masked_fill(~known, 0.0).sum() for x in parts))
