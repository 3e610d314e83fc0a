"""Attention over scalar values, dense and CSR."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

import mam_kernels as mam

from . import layouts, numbers, oracles
from .selection import backend, flushing
from .source import Source, Wrong


def dense(source: Source, array: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """A dense matrix of values of some layout."""
    with np.errstate(over="ignore"):
        return layouts.laid(source, array, dtype)


def csr(source: Source, array: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """The same as CSR: entries in any order, zeros among them, its parts of any layout."""
    rows, positions = array.shape
    generator = source.numbers
    keep = array != 0
    if source.chance(30):
        keep = keep | (generator.random(array.shape) < 0.2)  # stored zeros
    crow = np.concatenate([[0], keep.sum(axis=1).cumsum()]).astype(np.int64)
    col = np.nonzero(keep)[1]
    entries = array[keep]
    if source.chance(30):
        for b in range(rows):
            span = slice(crow[b], crow[b + 1])
            order = generator.permutation(crow[b + 1] - crow[b])
            col[span], entries[span] = col[span][order], entries[span][order]
    with np.errstate(over="ignore"):
        data, stored = layouts.laid(source, entries, dtype)
    index = source.one_of([torch.int64, torch.int32])
    # an index that is expanded or overlaps would be another matrix
    parts = [as_index(source, x, index) for x in (crow, col)]
    matrix = torch.sparse_csr_tensor(*parts, data, (rows, positions), check_invariants=False)
    truth = np.zeros(array.shape)
    for b in range(rows):
        span = slice(crow[b], crow[b + 1])
        truth[b, col[span]] = stored[span]
    return matrix, truth


def as_index(source: Source, array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """One of the two index arrays, strided or not."""
    x = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
    kind = source.below(4)
    if kind == 0:
        return x
    step = source.between(1, 3)
    wide = torch.full((len(x) * step + kind,), 10**6, dtype=dtype)
    view = wide[kind::step][: len(x)]
    view.copy_(x)
    return view


def matrix(source: Source, array: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """Values, dense or CSR, and what they stand for."""
    return (csr if source.chance(45) else dense)(source, array, dtype)


def value_dtype(source: Source) -> torch.dtype:
    return layouts.DTYPES[source.one_of(["float32", "float32", "float16", "bfloat16", "float64"])]


def unit_of(dtype: torch.dtype) -> float:
    """Rounding unit of what is computed for values of a dtype."""
    return 2.0**-53 if dtype is torch.float64 else 2.0**-24


def attend(source: Source) -> str:
    """The moments are those of a softmax."""
    rows, positions = numbers.shape(source)
    dtype = value_dtype(source)
    values, x = matrix(source, numbers.values(source, (rows, positions)), dtype)
    size = source.between(1, 5), source.between(1, 3)
    computed = torch.promote_types(dtype, torch.float32)
    slope_dtype = source.one_of([torch.float32, torch.float64, torch.float16])
    with np.errstate(over="ignore"):
        slope, a = layouts.laid(source, numbers.slopes(source, size), slope_dtype)
        if computed is torch.float32:
            a = a.astype(np.float32).astype(np.float64)
    valid, exists = layouts.flags(source, (rows, positions))
    options = {"valid": valid, "backend": backend(source, dtype)}
    source.calling("value_attention", values=values, slope=slope, **options)
    if source.chance(1):
        return refuses_tangents(lambda x: mam.value_attention(values, x, **options), slope)
    with flushing(source):
        got = mam.value_attention(values, slope, **options)
    if any(part.dtype is not computed for part in got):
        raise Wrong(f"moments of dtypes {[part.dtype for part in got]}")
    check_moments(layouts.fields(*got), x, exists, a, unit_of(dtype))
    return "right"


def refuses_tangents(call: Callable[[Tensor], object], x: Tensor) -> str:
    """That a call refuses forward-mode differentiation.

    Raises:
        Wrong: it was computed, and the tangent lost.
    """
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach().clone(), torch.ones(x.shape, dtype=x.dtype))
        try:
            call(dual)
        except NotImplementedError:
            return "refused"
    raise Wrong("a tangent was lost")


def check_moments(
    got: list[np.ndarray], x: np.ndarray, exists: np.ndarray, slope: np.ndarray, unit: float
) -> None:
    """Hold the moments of cells (B, L) against the softmax.

    A cell with a value that is not finite has none: its mean and variance are never finite.
    """
    truth = oracles.moments(x, exists, slope, unit)
    broken = (~np.isfinite(x) & exists).any(axis=1)
    names = ("log_partition", "mean", "variance")
    undefined = truth.undefined | broken[:, None, None]
    parts = zip(names, got, truth.values, truth.allowed, strict=True)
    for name, ours, right, allowed in parts:
        oracles.check_near(name, ours, right, allowed, undefined)
        finite = np.isfinite(ours) & broken[:, None, None]
        if name != "log_partition" and finite.any():
            at = tuple(np.argwhere(finite)[0])
            raise Wrong(f"{name}: {ours[at]} of a cell with a value that is not finite")
