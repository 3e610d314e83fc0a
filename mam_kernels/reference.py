"""The specification: every operation in plain PyTorch, one equation a line, in the precision of its
arguments.

These functions take the arguments of their namesakes in ``mam_kernels`` and nothing else stands
behind them: no dispatch, no kernel, no hand-written gradient, so torch differentiates the equations
themselves. The equations are in ``<operation>/reference.py``.
"""

import torch
from torch import Tensor

from ._core import checks
from ._core.call import Draw
from ._core.philox import philox4x32, random_bits, uniforms
from .ops.inclusion import reference as inclusion
from .ops.inclusion.reward import reward_ascent
from .ops.latent_attention import reference as latent
from .ops.selection import reference as selection
from .ops.selection.reference import race_keys, relative_weights, smallest
from .ops.value_attention import reference as value
from .ops.value_attention.ops import ValueMoments

__all__ = [
    "attention_importance",
    "draw_latents",
    "inclusion_probabilities",
    "latent_attention",
    "philox4x32",
    "race_keys",
    "random_bits",
    "relative_weights",
    "reward_gradient",
    "sample_without_replacement",
    "smallest",
    "uniforms",
    "value_attention",
]


def value_attention(values: Tensor, slope: Tensor, *, valid: Tensor | None = None) -> ValueMoments:
    """``log M``, ``M'/M`` and ``M''/M - (M'/M)**2`` with ``M(a) = sum_l exp(a x_l)``; each (B, N,
    H).
    """
    return ValueMoments(*value.moments(checks.require_cells("values", values, valid), slope))


def latent_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``softmax(scale Q K^T) V`` and the log-sum-exp of the scores; (B, N, H, d) and (B, N, H)."""
    return latent.forward(
        query, key, value, valid, query.shape[-1] ** -0.5 if scale is None else scale
    )


def attention_importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """``s_l = sum_{n in R, h} exp(scale q.k - logsumexp)``; (B, L)."""
    return latent.importance(
        query, key, logsumexp, latents, valid, query.shape[-1] ** -0.5 if scale is None else scale
    )


def sample_without_replacement(
    weights: Tensor,
    num_samples: int | Tensor,
    *,
    valid: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """The ``k`` smallest of ``E_l / w_l``; (B, L) bool."""
    rows, positions = weights.shape
    counts = checks.row_counts("num_samples", num_samples, rows, positions, weights.device)
    draw = checks.draw_source(seed, step, sample_ids, weights.shape[0], weights.device)
    return selection.select(weights, counts, valid, draw)


def inclusion_probabilities(
    weights: Tensor, num_samples: int | Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """``pi_l = 1 - exp(-w_l t)`` with ``sum_l pi_l = k``; (B, L)."""
    rows, positions = weights.shape
    counts = checks.row_counts("num_samples", num_samples, rows, positions, weights.device)
    probability, _ = inclusion.probabilities(weights, counts, valid)
    return probability


def reward_gradient(
    weights: Tensor,
    mask: Tensor,
    reward: Tensor,
    *,
    temperature: float = 1.0,
    num_samples: int | Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """``1[l in mask] (g_l / pi_l) (r_l / tau - log u_l - b)`` with ``b`` for a sum of 0; (B, L)."""
    k = mask.sum(dim=1) if num_samples is None else num_samples
    probability = inclusion_probabilities(weights, k, valid=valid)
    return reward_ascent(probability, mask, reward, temperature)


def draw_latents(
    num_latents: int, size: int, seed: Tensor, step: Tensor, device: torch.device
) -> Tensor:
    """The ``size`` latents of the smallest uniforms, ascending; int64 (size,)."""
    return selection.draw_latents(num_latents, size, Draw(seed, step, None), device)
