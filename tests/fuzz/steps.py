"""The whole masking step: values, CSR or embeddings in, mask, importance, context, penalty out."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import mam_kernels as mam

from . import cells, layouts, numbers, oracles, selection, tokens
from .source import Source, Wrong


class Config(NamedTuple):
    """What a module is made of; one module of each is made in a process."""

    input_dim: int | None
    latent_dim: int
    num_latents: int
    num_heads: int
    mask_ratio: float
    latent_fraction: float | None
    temperature: float
    context_from: str
    eps: float
    backend: str | None
    size: float  # of the parameters
    dtype: torch.dtype


@functools.lru_cache(maxsize=256)
def module_of(config: Config) -> mam.MultinomialAttentionMasking:
    """A module with parameters that no initialisation gives."""
    *arguments, size, dtype = config
    module = mam.MultinomialAttentionMasking(*arguments)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return module.to(dtype)


class Parameters(NamedTuple):
    """The parameters as float64 arrays, by the names of the published equations."""

    latents: np.ndarray
    token_weight: np.ndarray
    token_bias: np.ndarray
    in_weight: tuple[np.ndarray, ...]  # of queries, keys and values
    in_bias: tuple[np.ndarray, ...]
    out_weight: np.ndarray
    out_bias: np.ndarray


def parameters_of(module: mam.MultinomialAttentionMasking) -> Parameters:
    named = {name: x.detach().double().numpy() for name, x in module.named_parameters()}
    return Parameters(
        named["latents"],
        named["input_proj.weight"],
        named["input_proj.bias"],
        tuple(np.split(named["cross_attention.in_proj_weight"], 3)),
        tuple(np.split(named["cross_attention.in_proj_bias"], 3)),
        named["cross_attention.out_proj.weight"],
        named["cross_attention.out_proj.bias"],
    )


class Published(NamedTuple):
    """Multi-head attention of the latents over the projected tokens, as published."""

    score: np.ndarray  # (B, N, H, L)
    logsumexp: np.ndarray  # (B, N, H)
    context: np.ndarray  # (B, Dz)
    penalty: float
    noise: np.ndarray  # (B, N, H): relative error of the attention that is allowed
    context_allowed: np.ndarray  # (B, 1)
    penalty_allowed: float


def published(
    p: Parameters, x: np.ndarray, exists: np.ndarray, heads: int, unit: float, narrow: float
) -> Published:
    """The step's attention in float64, on tokens (B, L, D)."""
    by_head = (heads, p.latents.shape[1] // heads)
    scale = by_head[1] ** -0.5
    x = np.where(exists[..., None], x, 0.0)
    projected = x @ p.token_weight.T + p.token_bias
    query = (p.latents @ p.in_weight[0].T + p.in_bias[0]).reshape(len(p.latents), *by_head)
    key, value = (
        (projected @ p.in_weight[i].T + p.in_bias[i]).reshape(*x.shape[:2], *by_head)
        for i in (1, 2)
    )
    attended = oracles.attention(query, key, value, exists, scale, unit, narrow)
    flat = attended.output.reshape(*attended.output.shape[:2], p.latents.shape[1])
    output = flat @ p.out_weight.T + p.out_bias  # (B, N, Dz)
    rows = max(len(x), 1)

    # The same sums over magnitudes say how large the parts are of which rounding loses a share.
    large = np.abs(x) @ np.abs(p.token_weight).T + np.abs(p.token_bias)
    size = np.abs(p.latents) @ np.abs(p.in_weight[0]).T + np.abs(p.in_bias[0])
    keys = large @ np.abs(p.in_weight[1]).T
    steep = scale * np.einsum(
        "nhd,blhd->bnh",
        size.reshape(-1, *by_head),
        keys.reshape(*x.shape[:2], *by_head).max(axis=1, keepdims=True, initial=0.0),
    )
    noise = 16 * (unit + narrow) * (4 + steep)
    values = (large @ np.abs(p.in_weight[2]).T + np.abs(p.in_bias[2])).max(axis=1, initial=0.0)
    reach = values @ np.abs(p.out_weight).T + np.abs(p.out_bias)  # (B, Dz)
    share = np.minimum(noise.max(axis=(1, 2), initial=0.0), 2.0)[:, None] + oracles.FLOOR
    context_allowed = share * reach.max(axis=1, keepdims=True, initial=0.0)
    squares = (reach**2).sum(axis=1) * len(p.latents)
    penalty_allowed = 2 * float((share[:, 0] * squares).sum()) / rows
    penalty = float((output**2).sum()) / rows
    context = output.mean(axis=1)
    return Published(
        attended.score,
        attended.logsumexp,
        context,
        penalty,
        noise,
        context_allowed,
        penalty_allowed,
    )


def config(source: Source, input_dim: int | None, dtype: torch.dtype) -> Config:
    """A module; few enough differ that each is made once."""
    width, heads = source.one_of([(8, 2), (6, 3), (4, 1)])
    eps = source.one_of([1e-8, 1e-8, 1e-8, 1e-3, 1e6, 1e-30, 2.0**-99, 2.0**-101, 5e-324])
    return Config(
        input_dim, width, source.one_of([4, 1, 7]), heads, source.one_of([0.3, 0.0, 0.5, 0.9, 1.0]),
        source.one_of([None, 1.0]), source.one_of([1.0, 1.0, 0.5, 3.0, 1e-6, 1e6]),
        source.one_of(["all", "visible"]), eps,
        selection.backend(source, dtype), source.one_of([0.3, 1.5]),
        torch.float64 if dtype is torch.float64 else torch.float32,
    )  # fmt: skip


def values(source: Source) -> str:
    """A step over scalar values, dense or CSR, is the published one."""
    rows, positions = numbers.shape(source)
    dtype = cells.value_dtype(source)
    made = config(source, None, dtype)
    x, truth = cells.matrix(source, numbers.values(source, (rows, positions)), dtype)
    return _step(source, made, x, truth[..., None], dtype)


def embeddings(source: Source) -> str:
    """A step over embeddings is the published one."""
    rows, positions = source.between(0, 3), source.one_of([1, 0, 2, 3, 7, 16, 17, 33])
    dtype = layouts.DTYPES[source.one_of(["float32", "float32", "float64"])]
    made = config(source, source.one_of([3, 1, 8]), dtype)
    array = source.one_of([1.0, 0.1]) * source.numbers.standard_normal(
        (rows, positions, made.input_dim)
    )
    x, truth = layouts.laid(source, array, dtype)
    return _step(source, made, x, truth, dtype)


def _step(source: Source, made: Config, x: Tensor, truth: np.ndarray, dtype: torch.dtype) -> str:
    rows, positions = truth.shape[:2]
    module = module_of(made)
    valid, exists = layouts.flags(source, (rows, positions))
    maskable, may_be_hidden = layouts.flags(source, (rows, positions))
    may_be_hidden = may_be_hidden & exists
    apart, zeros, others = {}, None, may_be_hidden
    if made.input_dim is None and source.chance(30):
        zero = may_be_hidden & (truth[..., 0] == 0)
        others = may_be_hidden & ~zero
        apart, zeros = _amount(source, "num_zeros", "zero_ratio", zero)
    asked, wanted = {}, _floors(made.mask_ratio, others)
    if source.chance(40):
        asked, wanted = _amount(source, "num_masked", "mask_ratio", others)
    words, random = selection.random_words(source, rows)
    latents, chosen = None, None
    if source.chance(40):
        chosen = source.numbers.permutation(made.num_latents)[: source.between(1, made.num_latents)]
        latents = tokens.strided_indices(source, chosen)
    arguments = {
        "valid": valid,
        "maskable": maskable,
        "latents": latents,
        **words,
        **asked,
        **apart,
    }
    mode = source.one_of([torch.enable_grad, torch.no_grad, torch.inference_mode])
    source.calling("module", config=made, tokens=x, mode=mode.__name__, **arguments)
    with mode():
        out = module(x, **arguments)
    if chosen is None:
        share = made.mask_ratio if made.latent_fraction is None else made.latent_fraction
        drawn = min(made.num_latents, max(1, math.floor(made.num_latents * share)))
        chosen = oracles.drawn_latents(made.num_latents, drawn, random.seed, random.step)
    check_step(out, made, module, truth, exists, may_be_hidden, wanted, random, chosen, zeros)
    return "right"


def _floors(ratio: float, positions: np.ndarray) -> np.ndarray:
    return np.floor(ratio * positions.sum(axis=1)).astype(np.int64)


def _amount(
    source: Source, number: str, ratio: str, positions: np.ndarray
) -> tuple[dict[str, object], np.ndarray]:
    """How many of some positions are hidden, as a number or a ratio; and the numbers meant."""
    if source.chance(50):
        given, wanted = selection.counts(source, *positions.shape)
        return {number: given}, wanted
    share = source.one_of([0.0, 0.05, 0.3, 1.0])
    return {ratio: share}, _floors(share, positions)


def check_step(
    out: mam.MaskingOutput,
    made: Config,
    module: mam.MultinomialAttentionMasking,
    x: np.ndarray,
    exists: np.ndarray,
    may_be_hidden: np.ndarray,
    counts: np.ndarray,
    random: oracles.Random,
    chosen: np.ndarray,
    zeros: np.ndarray | None = None,
) -> None:
    """Hold mask, importance, context and penalty against the published computation; ``zeros`` are
    the numbers of zeros that are drawn apart.

    Raises:
        Wrong: one of them is another.
    """
    mask, importance, context, penalty = layouts.fields(*out)
    unit = 2.0**-53 if made.dtype is torch.float64 else 2.0**-24
    parameters = parameters_of(module)
    broken = (~np.isfinite(x) & exists[..., None]).any(axis=(1, 2))
    with np.errstate(all="ignore"):
        huge = np.abs(np.where(exists[..., None], x, 0.0)).max(axis=(1, 2), initial=0.0) > 1e15
        undefined = (broken | huge)[:, None]
        every = published(parameters, x, exists, made.num_heads, unit, 0.0)
        right = oracles.importance_of_scores(
            every.score[:, chosen], every.logsumexp[:, chosen], exists, unit
        )
        share = np.minimum(every.noise.max(axis=(1, 2), initial=0.0), 2.0)[:, None]
        allowed = right.allowed + share * right.values
        left, apart = exists & ~mask, np.zeros_like(mask)
        if zeros is not None:
            zero = exists & (x[..., 0] == 0)
            if (importance[zero] != 0).any():
                raise Wrong("importance: not 0 at a zero that is drawn apart")
            apart = zero & may_be_hidden
            oracles.check_draw(mask & apart, np.ones(mask.shape), apart, zeros, random)
            mask, importance = mask & ~apart, np.where(zero, right.values, importance)
        # a cell with a value that is not finite has no softmax: any importance stands for one
        parts = (x[~broken] for x in (importance, right.values, allowed, undefined))
        oracles.check_near("importance", *parts)
        if (importance[~exists] != 0).any():
            raise Wrong("importance: not 0 where there is no token")
        weights = importance + (made.eps if made.eps >= 2.0**-100 else 0.0)  # as documented
        drawable = may_be_hidden & ~apart & selection.may_be_drawn(weights)
        # eps is added, and the power taken, in float32: at these few digits are left of a key
        decided = made.temperature >= 0.05 and 1e-8 <= made.eps <= 1e-3
        oracles.check_draw(
            mask,
            np.where(drawable, weights, 1.0),
            drawable,
            counts,
            random,
            1 / made.temperature,
            decided=decided,
        )
        seen = every
        if made.context_from == "visible":
            seen = published(parameters, x, left, made.num_heads, unit, 0.0)
        oracles.check_near("context", context, seen.context, seen.context_allowed, undefined)
        if not (broken | huge).any():
            at_once = (
                np.array([penalty]),
                np.array([seen.penalty]),
                np.array([seen.penalty_allowed]),
            )
            oracles.check_near("penalty", *at_once, np.array([False]))
