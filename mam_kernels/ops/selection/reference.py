"""Sampling without replacement as an exponential race, one equation a line.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..._core import philox
from ..._core.call import AS_GIVEN, Draw, Weighting

SMALLEST_RELATIVE_WEIGHT = 1e-37
"""Weights further below the largest of their row than this count as this much of it, so that every
drawable key is finite in float32.
"""


def widened(weights: Tensor) -> Tensor:
    """The same numbers in float64, those below the smallest normal float32 too where
    ``torch.set_flush_denormal`` makes them zeros: by their bits.
    """
    wide = weights.to(torch.float64)
    if weights.dtype not in (torch.float32, torch.bfloat16) or not weights.is_cpu:
        return wide
    bits = weights.detach().to(torch.float32).contiguous().view(torch.int32)
    if weights.dtype == torch.bfloat16:
        bits = weights.detach().contiguous().view(torch.int16).to(torch.int32) << 16
    magnitude = bits & 0x7FFFFFFF
    small = torch.where(bits < 0, -1.0, 1.0) * magnitude.to(torch.float64) * 2.0**-149
    # the difference is 0, and carries the gradient
    return torch.where(magnitude < 0x00800000, small + (wide - wide.detach()), wide)


def relative_weights(
    weights: Tensor, valid: Tensor | None, eps: float, inverse_temperature: float
) -> Tensor:
    """``((w + eps) / (max w + eps)) ** (1 / T)`` where a position can be drawn, 0 where not;
    (B, L) float64.
    """
    weights = widened(weights)
    tiny = torch.finfo(torch.float64).tiny
    drawable = (weights >= 0) & (weights + eps >= tiny) & torch.isfinite(weights)
    if valid is not None:
        drawable &= valid
    shifted = torch.where(drawable, weights + eps, 0.0)
    ratio = (
        shifted / shifted.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(shifted.dtype).tiny)
    ) ** inverse_temperature
    return torch.where(drawable, ratio.clamp(min=SMALLEST_RELATIVE_WEIGHT), 0.0)


def race_keys(weights: Tensor, bits: Tensor) -> Tensor:
    """``E / w`` with ``E = -log1p(-v)`` standard exponential; infinite where ``w`` is 0."""
    exponential = -torch.log1p(-philox.uniforms(bits).to(weights.dtype))
    return torch.where(weights > 0, exponential / weights, torch.inf)


def smallest(keys: Tensor, count: Tensor) -> Tensor:
    """True at the ``count[b]`` smallest finite keys of each row; equal keys go to the lower
    index.
    """
    order = torch.argsort(keys, dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(keys.shape[-1], device=keys.device).expand_as(order)
    )
    return (rank < count[:, None]) & torch.isfinite(keys)


def select(
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    draw: Draw,
    weighting: Weighting = AS_GIVEN,
) -> Tensor:
    """``num_samples[b]`` positions of each row, drawn in proportion to ``(weights + eps) **
    inverse_temperature``; (B, L) bool.
    """
    rows, positions = weights.shape
    seed, step = draw.words()
    ids = torch.arange(rows, device=weights.device) if draw.sample_ids is None else draw.sample_ids
    bits = philox.random_bits(positions, ids, step, seed, philox.STREAM_POSITIONS)
    relative = relative_weights(weights, valid, *weighting)
    return smallest(race_keys(relative, bits), num_samples)


def draw_latents(num_latents: int, size: int, draw: Draw, device: torch.device) -> Tensor:
    """``size`` of ``num_latents`` indices, uniformly without replacement, ascending; int64
    (size,).
    """
    sample_id = torch.zeros(1, dtype=torch.int64, device=device)
    seed, step = draw.words()
    bits = philox.random_bits(num_latents, sample_id, step, seed, philox.STREAM_LATENTS)[0]
    order = torch.argsort(philox.uniforms(bits), stable=True)
    return order[:size].sort().values
