"""The masking of a study: from its settings to a strategy of the engine."""

from typing import Any

from torch import Tensor

import mam_kernels as mam
from mam_kernels.strategies import (
    ContextOnly,
    EmbeddingAttention,
    ExpressionSampling,
    MaskingStrategy,
    MatchedFractions,
    Nothing,
    Uniform,
    ValueAttention,
)


def build_strategy(
    settings: Any, embed_dim: int, *, schedule: Tensor | None = None
) -> MaskingStrategy:
    """The strategy of the `masking` section of a configuration.

    Args:
        settings: an object with the names of that section.
        embed_dim: width of the embeddings, for "mam-embedding".
        schedule: (steps, 2), for "matched".
    """
    if settings.strategy == "none":
        return Nothing()
    if settings.strategy == "mam":
        return ValueAttention(_latents(settings, None), settings.ratio, settings.zero_ratio)
    if settings.strategy == "mam-embedding":
        return EmbeddingAttention(
            _latents(settings, embed_dim), settings.ratio, settings.zero_ratio
        )
    if settings.strategy == "uniform":
        selection: MaskingStrategy = Uniform(settings.ratio, settings.zero_ratio)
    elif settings.strategy == "expression":
        selection = ExpressionSampling(settings.ratio, settings.zero_ratio)
    else:
        if schedule is None:
            raise ValueError(f"schedule: required by the strategy {settings.strategy!r}; got None")
        selection = MatchedFractions(schedule)
    if settings.injection == "none":
        return selection
    return ContextOnly(selection, _latents(settings, None), settings.context_from == "visible")


def _latents(settings: Any, input_dim: int | None) -> mam.MultinomialAttentionMasking:
    options = {
        "input_dim": input_dim,
        "latent_dim": settings.latent_dim,
        "num_latents": settings.num_latents,
        "num_heads": settings.latent_heads,
        "mask_ratio": settings.ratio,
        "latent_fraction": settings.latent_fraction,
        "temperature": settings.temperature,
        "context_from": settings.context_from,
    }
    if input_dim is None:
        options["slope_norm"] = settings.slope_norm
    latents = mam.MultinomialAttentionMasking(**options)
    latents.reset_parameters(settings.latent_start)
    return latents
