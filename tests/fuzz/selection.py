"""``sample_without_replacement`` on weights, counts and random words of every kind."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

import mam_kernels as mam

from . import layouts, numbers, oracles
from .source import Source, Wrong


def counts(source: Source, rows: int, positions: int) -> tuple[object, np.ndarray]:
    """``k``: an int, or integers for each row; and the numbers meant."""
    if source.chance(50):
        k = source.between(0, positions)
        return k, np.full(rows, k)
    per_row = source.numbers.integers(0, positions + 1, rows)
    return layouts.integers(source, per_row)


def sample_ids(source: Source, rows: int) -> tuple[torch.Tensor | None, np.ndarray]:
    """None, or the ids of the rows."""
    kind = source.below(3)
    if kind == 0:
        return None, np.arange(rows)
    highest = 100 if kind == 1 else 2**32
    return layouts.integers(source, source.numbers.integers(0, highest, rows))


def random_words(source: Source, rows: int) -> tuple[dict[str, object], oracles.Random]:
    """seed, step and sample ids."""
    seed, seed_word = layouts.word(source, -(2**63), 2**64)
    step, step_word = layouts.word(source, 0, 2**32)
    ids, truth = sample_ids(source, rows)
    arguments = {"seed": seed, "step": step, "sample_ids": ids}
    return arguments, oracles.Random(seed_word, step_word, truth)


def backend(source: Source, dtype: torch.dtype) -> str | None:
    """Which backend is asked for: one that takes the dtype."""
    chosen = source.one_of([None, "cpu", None, "cpu", None, "reference"])
    return chosen if dtype is not torch.float64 or chosen == "reference" else None


@contextlib.contextmanager
def flushing(source: Source) -> Iterator[None]:
    """At times with ``torch.set_flush_denormal``, which changes no result."""
    flush = source.chance(5)
    torch.set_flush_denormal(flush)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def may_be_drawn(weights: np.ndarray) -> np.ndarray:
    """Weights that are finite and positive; from the smallest normal float64 on, as documented."""
    with np.errstate(invalid="ignore"):
        return (weights >= 2.0**-1022) & np.isfinite(weights)


def sample(source: Source) -> str:
    """A draw is the one that the race defines."""
    rows, positions = numbers.shape(source)
    dtype = layouts.DTYPES[source.one_of(["float32", "float32", "float16", "bfloat16", "float64"])]
    with np.errstate(over="ignore"):
        weights, truth = layouts.laid(source, numbers.weights(source, (rows, positions)), dtype)
    valid, exists = layouts.flags(source, (rows, positions))
    k, wanted = counts(source, rows, positions)
    words, random = random_words(source, rows)
    options = {"valid": valid, **words, "backend": backend(source, dtype)}
    source.calling("sample_without_replacement", weights=weights, num_samples=k, **options)
    with flushing(source):
        mask = mam.sample_without_replacement(weights, k, **options)
    if mask.dtype is not torch.bool:
        raise Wrong(f"mask of dtype {mask.dtype}")
    drawable = exists & may_be_drawn(truth)
    oracles.check_draw(mask.numpy(), np.where(drawable, truth, 1.0), drawable, wanted, random)
    return "right"
