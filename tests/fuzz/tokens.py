"""Attention over tokens: ``latent_attention`` and ``attention_importance``."""

import numpy as np
import torch

import mam_kernels as mam

from . import layouts, numbers, oracles
from .cells import refuses_tangents
from .selection import backend
from .source import Source, Wrong


class Tokens:
    """Queries, keys and values of some layout, and what they stand for."""

    def __init__(self, source: Source) -> None:
        self.rows, self.positions = source.between(0, 3), source.one_of([1, 0, 2, 3, 7, 16, 17, 33])
        if source.chance(3):
            self.positions = source.one_of([64, 65, 130, 257])
        self.latents, self.heads = source.between(1, 5), source.between(1, 3)
        self.width = source.one_of([4, 1, 2, 3, 5, 8, 16, 17])
        name = source.one_of(["float32", "float32", "float16", "bfloat16", "float64"])
        self.dtype = layouts.DTYPES[name]
        size_of = source.one_of([1.0, 0.1, 0.0, 4.0])
        tokens = (self.rows, self.positions, self.heads, self.width)
        self.query, self.q = self._laid(source, (self.latents, self.heads, self.width), size_of)
        self.key, self.k = self._laid(source, tokens, size_of)
        self.value, self.v = self._laid(source, tokens, 1.0)
        self.valid, self.exists = layouts.flags(source, tokens[:2])
        self.scale = source.one_of([None, 1.0, 0.25, 0.0, -0.5])
        self.factor = self.width**-0.5 if self.scale is None else self.scale
        self.backend = backend(source, self.dtype)

    def _laid(self, source: Source, shape: tuple[int, ...], size: float):
        array = size * source.numbers.standard_normal(shape)
        if source.chance(5):
            array = numbers.spoiled(source, array)
        with np.errstate(over="ignore"):
            return layouts.laid(source, array, self.dtype)

    @property
    def unit(self) -> float:
        """Rounding unit of what is accumulated."""
        return 2.0**-53 if self.dtype is torch.float64 else 2.0**-24

    @property
    def options(self) -> dict[str, object]:
        return {"valid": self.valid, "scale": self.scale, "backend": self.backend}

    def truth(self) -> oracles.Attended:
        units = self.unit, layouts.UNITS[self.dtype]
        return oracles.attention(self.q, self.k, self.v, self.exists, self.factor, *units)

    def broken(self) -> np.ndarray:
        """(B,): cells with something that is not finite where there is a token."""
        there = self.exists[..., None, None]
        bad = (~np.isfinite(self.k) | ~np.isfinite(self.v)) & there
        return bad.any(axis=(1, 2, 3)) | ~np.isfinite(self.q).all()


def attend(source: Source) -> str:
    """Output and log-sum-exp are those of a softmax."""
    case = Tokens(source)
    source.calling(
        "latent_attention", query=case.query, key=case.key, value=case.value, **case.options
    )
    if source.chance(1):
        given = {"key": case.key, "value": case.value, **case.options}
        return refuses_tangents(lambda x: mam.latent_attention(x, **given), case.query)
    output, logsumexp = mam.latent_attention(case.query, case.key, case.value, **case.options)
    if output.dtype is not case.dtype:
        raise Wrong(f"output of dtype {output.dtype}")
    truth = case.truth()
    got, sums = layouts.fields(output, logsumexp)
    undefined = truth.undefined | case.broken()[:, None, None]
    oracles.check_near("logsumexp", sums, truth.logsumexp, truth.logsumexp_allowed, undefined)
    # infinite scores have no softmax, and any answer stands for them
    defined = ~case.broken()
    parts = (x[defined] for x in (got, truth.output, truth.output_allowed, undefined[..., None]))
    oracles.check_near("output", *parts)
    return "right"


def importance(source: Source) -> str:
    """Importance is the attention summed over the given latents and all heads."""
    case = Tokens(source)
    truth = case.truth()
    computed = torch.promote_types(case.dtype, torch.float32)
    with np.errstate(over="ignore"):
        logsumexp, sums = layouts.laid(source, truth.logsumexp, computed)
    latents = source.numbers.permutation(case.latents)[: source.between(1, case.latents)]
    chosen = strided_indices(source, latents)
    arguments = {"query": case.query, "key": case.key, "logsumexp": logsumexp, "latents": chosen}
    source.calling("attention_importance", **arguments, **case.options)
    got = mam.attention_importance(**arguments, **case.options)
    right = oracles.importance_of_scores(
        truth.score[:, latents], sums[:, latents], case.exists, case.unit
    )
    (ours,) = layouts.fields(got)
    steep = np.where(truth.undefined, np.inf, np.abs(sums)).max(axis=(1, 2), initial=0.0)
    undefined = case.broken()[:, None] | right.undefined | ~np.isfinite(steep)[:, None]
    noise = truth.logsumexp_allowed.max(axis=(1, 2), initial=0.0)[:, None] * right.values
    allowed = np.nan_to_num(right.allowed + noise, nan=np.inf)
    oracles.check_near("importance", ours, right.values, allowed, undefined)
    if (ours[~case.exists] != 0).any():
        raise Wrong("importance: not 0 where there is no token")
    return "right"


def strided_indices(source: Source, array: np.ndarray) -> torch.Tensor:
    """Distinct int64 indices, strided or not."""
    x = torch.from_numpy(np.ascontiguousarray(array)).to(torch.int64)
    step = source.between(1, 3)
    wide = torch.full((len(x) * step + 1,), 10**9)
    view = wide[1::step][: len(x)]
    view.copy_(x)
    return view
