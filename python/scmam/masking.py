"""The masking of a study: from its settings to a strategy of the engine."""

from typing import Any

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels import strategies
from mam_kernels.gene_strategies import GeneModules, GeneWeights, HarderFirst
from mam_kernels.shares import Share

BY_GENE = {
    "modules": GeneModules,
    "harder": HarderFirst,
    "labels": GeneWeights,
    "replayed": GeneWeights,
    "permuted": GeneWeights,
}


def build_strategy(
    settings: Any,
    embed_dim: int,
    num_genes: int,
    *,
    schedule: Tensor | None = None,
    knowledge: Tensor | None = None,
) -> strategies.MaskingStrategy:
    """The strategy of the `masking` section of a configuration.

    Args:
        settings: an object with the names of that section.
        embed_dim: width of the embeddings, for "mam-embedding".
        num_genes: G.
        schedule: (steps, 2), for "matched".
        knowledge: (G,) what a strategy of `mam_kernels.gene_strategies` knows of the genes; None:
            it is filled in with the weights of a run.
    """
    ratio, zero_ratio = _shares(settings)
    if settings.strategy == "none":
        return strategies.Nothing()
    if settings.strategy == "mam":
        return strategies.ValueAttention(_latents(settings, None), ratio, zero_ratio)
    if settings.strategy == "mam-embedding":
        return strategies.EmbeddingAttention(_latents(settings, embed_dim), ratio, zero_ratio)
    if settings.strategy == "uniform":
        selection: strategies.MaskingStrategy = strategies.Uniform(ratio, zero_ratio)
    elif settings.strategy == "expression":
        selection = strategies.ExpressionSampling(ratio, zero_ratio)
    elif settings.strategy in BY_GENE:
        known = torch.zeros(num_genes) if knowledge is None else knowledge
        selection = BY_GENE[settings.strategy](known, ratio, zero_ratio)
    else:
        if schedule is None:
            raise ValueError(f"schedule: required by the strategy {settings.strategy!r}; got None")
        selection = strategies.MatchedFractions(schedule)
    if settings.injection == "none":
        return selection
    return strategies.ContextOnly(
        selection, _latents(settings, None), settings.context_from == "visible"
    )


def _shares(settings: Any) -> tuple[float | Share, float | Share | None]:
    """Of the non-zeros (or of all) and of the zeros: the same for all cells, or drawn by each cell,
    both by one random number.
    """
    if settings.ratio_to is None:
        return settings.ratio, settings.zero_ratio
    share = Share.between(settings.ratio, settings.ratio_to)
    if settings.zero_ratio is None:
        return share, None
    scale = settings.ratio_to / settings.ratio if settings.ratio else 1.0
    return share, Share.between(settings.zero_ratio, min(1.0, settings.zero_ratio * scale))


def _latents(settings: Any, input_dim: int | None) -> mam.MultinomialAttentionMasking:
    alike = ["latent_dim", "num_latents", "latent_fraction", "temperature", "context_from"]
    alike += ["slope_norm"] if input_dim is None else []
    latents = mam.MultinomialAttentionMasking(
        input_dim,
        num_heads=settings.latent_heads,
        mask_ratio=settings.ratio,
        **{name: getattr(settings, name) for name in alike},
    )
    latents.reset_parameters(settings.latent_start)
    return latents
