"""CSR matrices that break their invariants: each is refused by name, or it is none of these and the
answer is right.
"""

import numpy as np
import torch

import mam_kernels as mam

from . import cells, layouts, numbers, oracles, selection, steps
from .refusals import refused
from .source import Source, Wrong

PARTS = ("crow", "col", "CSR")  # what a message may name besides the argument


def read(
    crow: np.ndarray,
    col: np.ndarray,
    data: np.ndarray,
    rows: int,
    positions: int,
    *,
    summed: bool = False,
) -> np.ndarray | None:
    """The dense matrix that three arrays stand for; None if they stand for none.

    A column twice in a row is none, or the sum of both where they are ``summed``.
    """
    if crow.ndim != 1 or col.ndim != 1 or data.ndim != 1 or len(crow) != rows + 1:
        return None
    if (
        not len(crow)
        or len(col) != len(data)
        or crow[0] != 0
        or crow[-1] != len(col)
        or (np.diff(crow) < 0).any()
    ):
        return None
    if ((col < 0) | (col >= positions)).any():
        return None
    dense = np.zeros((rows, positions))
    for b in range(rows):
        span = slice(crow[b], crow[b + 1])
        if not summed and len(set(col[span].tolist())) < crow[b + 1] - crow[b]:
            return None
        np.add.at(dense[b], col[span].astype(np.int64), data[span])
    return dense


def attend(source: Source) -> str:
    """Moments, or a whole step, of a matrix that may be broken."""
    rows, positions = source.between(1, 4), source.one_of([6, 1, 2, 16, 17, 40, 300])
    array = numbers.values(source, (rows, positions))
    dtype = cells.value_dtype(source)
    keep = array != 0
    crow = np.concatenate([[0], keep.sum(axis=1).cumsum()]).astype(np.int64)
    col = np.nonzero(keep)[1].astype(np.int64)
    data = array[keep]
    for _ in range(source.between(0, 2)):
        crow, col, data = BREAKS[source.below(len(BREAKS))](source, crow, col, data, positions)
    index = source.one_of([torch.int64, torch.int32])
    with np.errstate(over="ignore"):
        entries = torch.from_numpy(np.ascontiguousarray(data)).to(dtype)
    parts = [cells.as_index(source, x, index) for x in (crow, col)]
    at = source.below(2)
    parts[at], exotic = _exotic(source, parts[at])
    try:
        matrix = torch.sparse_csr_tensor(*parts, entries, (rows, positions), check_invariants=False)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return "refused by torch"
    # what torch kept, which is what is read
    kept = [x.contiguous().to(torch.int64).numpy() for x in parts]
    dense = None if exotic else read(*kept, entries.double().numpy(), rows, positions)
    valid, exists = layouts.flags(source, (rows, positions))
    backend = selection.backend(source, dtype)
    run = _moments if source.chance(50) else _step
    return run(source, matrix, dense, valid, exists, backend, dtype)


def _moments(source, matrix, dense, valid, exists, backend, dtype) -> str:
    a = numbers.slopes(source, (source.between(1, 3), 2)).astype(np.float32)
    slope = torch.from_numpy(a)
    options = {"valid": valid, "backend": backend}
    source.calling("value_attention", values=matrix, slope=slope, **options)
    try:
        got = mam.value_attention(matrix, slope, **options)
    except Exception as error:
        return refused(error, ("values", *PARTS), may_refuse=dense is None)
    if dense is None:
        raise Wrong("a broken CSR was taken")
    cells.check_moments(layouts.fields(*got), dense, exists, a.astype(float), cells.unit_of(dtype))
    return "right"


def _step(source, matrix, dense, valid, exists, backend, dtype) -> str:
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    made = steps.Config(
        None, 8, 4, 2, 0.5, None, 1.0, source.one_of(["all", "visible"]), 1e-8, backend, 0.3, exact
    )
    module = steps.module_of(made)
    k = source.one_of([None, 1])
    ratio = source.one_of([None, 0.2])
    options = {"valid": valid, "num_masked": k, "zero_ratio": ratio, "seed": 5}
    source.calling("module", config=made, tokens=matrix, **options)
    try:
        out = module(matrix, **options)
    except Exception as error:
        return refused(error, ("tokens", "values", *PARTS), may_refuse=dense is None)
    if dense is None:
        raise Wrong("a broken CSR was taken")
    rows = len(dense)
    zero = exists & (dense == 0)
    others = exists if ratio is None else exists & ~zero
    counts = np.floor(0.5 * others.sum(axis=1)).astype(int) if k is None else np.full(rows, k)
    zeros = None if ratio is None else np.floor(ratio * zero.sum(axis=1)).astype(int)
    random, chosen = oracles.Random(5, 0, np.arange(rows)), oracles.drawn_latents(4, 2, 5, 0)
    x = dense[..., None]
    steps.check_step(out, made, module, x, exists, exists, counts, random, chosen, zeros)
    return "right"


def _exotic(source: Source, part: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """An index array that is none, at times."""
    kind = source.below(40)
    if kind == 39:
        return part.to(source.one_of([torch.int16, torch.float32, torch.uint8, torch.bool])), True
    if kind == 38:
        return part[None], True
    return part, False


def _break_crow(source, crow, col, data, positions):
    if not len(crow):
        return crow, col, data
    crow = crow.copy()
    at = source.below(len(crow))
    crow[at] += source.one_of([1, -1, 2, -2, 1000, -1000, 2**31 - 10, -(2**31) + 10, 2**30])
    return crow, col, data


def _huge_crow(source, crow, col, data, positions):
    if not len(crow):
        return crow, col, data
    crow = crow.copy()
    crow[source.below(len(crow))] = source.one_of([2**62, 2**63 - 1, -(2**63), 2**40, -1, 2**32])
    return crow, col, data


def _length_of_crow(source, crow, col, data, positions):
    longer = np.concatenate([crow, crow[-1:]])
    return source.one_of([crow[:-1], longer, crow[:0]]), col, data


def _break_col(source, crow, col, data, positions):
    if not len(col):
        return crow, col, data
    col = col.copy()
    wild = [positions, -1, positions + 1, 10**6, -(10**6), 2**31 - 1, -(2**31), 2**32, 2**62]
    col[source.below(len(col))] = source.one_of(wild)
    return crow, col, data


def _duplicate(source, crow, col, data, positions):
    if len(col) < 2:
        return crow, col, data
    col = col.copy()
    at = source.between(1, len(col) - 1)
    col[at] = col[at - source.between(1, at)]
    return crow, col, data


def _crowded(source, crow, col, data, positions):
    """A row with more entries than there are columns."""
    more = source.one_of([1, 7, 100, 5000]) + positions
    extra = source.numbers.integers(0, positions, more)
    crow = np.concatenate([crow[:-1], crow[-1:] + more])
    return crow, np.concatenate([col, extra]), np.concatenate([data, np.ones(more)])


def _fewer_entries(source, crow, col, data, positions):
    return crow, col, data[: len(data) - source.between(1, 3)] if len(data) > 3 else data[:0]


def _fewer_columns(source, crow, col, data, positions):
    return crow, col[: len(col) // 2], data


def _both_shorter(source, crow, col, data, positions):
    return crow, col[: len(col) // 2], data[: len(col) // 2]


def _all_in_one(source, crow, col, data, positions):
    """All entries in the first row."""
    crow = np.where(np.arange(len(crow)) > 0, len(col), 0)
    return crow, col, data


def _reversed(source, crow, col, data, positions):
    return crow[::-1].copy(), col, data


BREAKS = (
    _break_crow, _break_col, _duplicate, _crowded, _huge_crow, _length_of_crow, _fewer_entries,
    _fewer_columns, _both_shorter, _all_in_one, _reversed,
)  # fmt: skip
