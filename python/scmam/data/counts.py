"""Where the raw counts of an AnnData are, and how they are recovered where only their logarithm is
there.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import CellsError
from .columns import listing, total_columns
from .matrix import Matrix
from .source import Source
from .values import COUNTS_PER, Conversion, Look, Rounding, equal_total, look_at

COUNT_LAYERS = (
    *("counts", "count", "rawcounts", "rawcount", "rawdata", "raw"),
    *("umi", "umis", "umicounts", "matrix"),
)
PART_LAYERS = ("spliced", "unspliced", "ambiguous")  # counts, but not all of a cell's
SAMPLED = 2000  # cells that a first look takes, spread over the file
SAMPLE_BLOCKS = 16

COUNTS = "counts"
RECOVERED = "counts recovered from log1p of counts per 10k"
RECOVERED_LINEAR = "counts recovered from normalised counts"
PER_10K = "counts per 10k (no raw counts there)"
FRACTIONS = "counts (not whole numbers)"


@dataclass(frozen=True)
class Found:
    """The values that are taken, and how they become counts."""

    place: str  # "X", "raw" or a layer's name
    matrix: Matrix
    conversion: Conversion | None
    look: Look  # at all of the values as they are stored
    # (cells of the file,) float64: total of the counts over all genes of the place.
    sums: np.ndarray
    # (cells of the file,) float64: total count of each cell, over genes that are not in the file
    # too where it is known
    depth: np.ndarray
    unit: str
    notes: tuple[str, ...]


def find_counts(
    source: Source,
    place: str = "auto",
    *,
    prepare: Callable[[Matrix], Matrix] = lambda matrix: matrix,
) -> Found:
    """Choose among X, `.raw` and the layers.

    Whole non-negative numbers win, in the order of `places_in_order`; else log-normalised values
    are converted.

    Args:
        source: where cells come from.
        place: "auto", "X", "raw", or the name of a layer.
        prepare: called with the matrix that is looked at whole, to read it into memory where that
            is wanted.

    Raises:
        CellsError: nothing there is counts or can be converted to them; the message says what each
            place holds, and what to do.
    """
    if not source.places:
        raise CellsError(
            f"{source.name}: holds no values, neither X nor .raw nor a layer; write them into X"
        )
    if place != "auto":
        require_place(source, place)
    order = places_in_order(source) if place == "auto" else (place,)
    if not any(source.matrix(name).shape[1] for name in order):
        raise CellsError(
            f"{source.name}: has {len(source.obs)} cells but no genes; filter less, or give"
            " another file"
        )
    first_looks = {name: first_look(source.matrix(name)) for name in order}
    for wanted in ("counts", "log1p", "normalised", "fractional"):
        for name in order:
            if first_looks[name].kind != wanted:
                continue
            matrix = prepare(source.matrix(name))
            look = look_at(rows for _, rows in matrix.blocks())
            if look.kind == wanted:
                return _converted(source, name, matrix, look)
            first_looks[name] = look  # some cells further on are of another kind
    raise CellsError(_refusal(source, place, first_looks))


def places_in_order(source: Source) -> tuple[str, ...]:
    """Layers that are named for counts, `.raw`, X, then other layers but those that hold a part of
    the counts.
    """
    named = [layer for layer in source.layers if _plain(layer) in COUNT_LAYERS]
    others = [
        layer for layer in source.layers if layer not in named and _plain(layer) not in PART_LAYERS
    ]
    return (
        *named,
        *(("raw",) if source.has_raw else ()),
        *(("X",) if source.has_x else ()),
        *others,
    )


def require_place(source: Source, place: str) -> None:
    """Raise a `CellsError` unless there is such a place."""
    if place in source.refused:
        raise CellsError(f"{source.name}: data.counts names {place!r}, and {source.refused[place]}")
    if place not in source.places:
        raise CellsError(
            f"{source.name}: data.counts names {place!r}, which is not there; there are"
            f" {listing(list(source.places))}, or auto"
        )


def first_look(matrix: Matrix) -> Look:
    """Statistics of the values of a bounded number of cells, spread over the matrix."""
    return look_at(_sample(matrix))


def _sample(matrix: Matrix) -> Iterator[csr_matrix]:
    cells = matrix.shape[0]
    if cells <= SAMPLED:
        yield from (rows for _, rows in matrix.blocks())
        return
    length = SAMPLED // SAMPLE_BLOCKS
    for start in np.linspace(0, cells - length, SAMPLE_BLOCKS).astype(int).tolist():
        yield matrix.span(start, start + length)


def _converted(source: Source, place: str, matrix: Matrix, look: Look) -> Found:
    where = source.where(place)
    found = f"{where} {look.in_words()}"
    sums = np.concatenate(look.sums)
    if look.kind in ("counts", "fractional"):
        total, words = _known_totals(source, sums)
        taken = (
            ", and is taken."
            if look.kind == "counts"
            else "; they are taken as counts, as expected or corrected counts are."
        )
        unit = COUNTS if look.kind == "counts" else FRACTIONS
        return Found(
            place,
            matrix,
            None,
            look,
            sums,
            sums if total is None else total,
            unit,
            (found + taken, words),
        )
    logged = look.kind == "log1p"
    log_of_base = float(np.log(source.log_base)) if logged and source.log_base else 1.0
    shared = equal_total(
        look.sums if not logged else [] if log_of_base != 1.0 else look.unlogged_sums
    )
    target = shared or COUNTS_PER
    recovered, reasons = _recovered(source, matrix, logged, log_of_base, target)
    if recovered is not None:
        conversion, sums, totals, words = recovered
        unit = RECOVERED if logged else RECOVERED_LINEAR
        return Found(place, matrix, conversion, look, sums, totals, unit, (f"{found}. {words}",))
    conversion = Conversion(logged, COUNTS_PER / target, rounded=False, log_of_base=log_of_base)
    sums = _sums(matrix, conversion)
    proof = "" if shared else ", which cannot be told from these values: not all genes are there"
    words = (
        f"There are no raw counts to be had{reasons}; the values are taken as counts per"
        f" 10,000{proof}, and every cell's depth as 10,000."
    )
    return Found(
        place,
        matrix,
        conversion,
        look,
        sums,
        np.full(len(sums), COUNTS_PER),
        PER_10K,
        (f"{found}.", words),
    )


def _known_totals(source: Source, sums: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Totals of a column of .obs that can be the totals of these counts, and a sentence on the
    depth.
    """
    columns = total_columns(source.obs)
    for column in columns:
        totals = source.obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(totals).all() and (totals >= sums * (1 - 1e-4)).all():
            return totals, f"The depth of a cell is obs[{column!r}]."
    refused = f" ({listing(columns)} of .obs is smaller for some cells)" if columns else ""
    return (
        None,
        f"The depth of a cell is the sum of its counts over all genes of the file{refused}.",
    )


def _recovered(
    source: Source, matrix: Matrix, logged: bool, log_of_base: float, target: float
) -> tuple[tuple[Conversion, np.ndarray, np.ndarray, str] | None, str]:
    """Counts recovered by the totals in .obs where they are whole numbers; otherwise the reason."""
    columns = total_columns(source.obs)
    if not columns:
        return None, ", since .obs has no column with the cells' totals"
    reasons = []
    for column in columns:
        totals = source.obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if not (np.isfinite(totals).all() and (totals > 0).all()):
            reasons.append(f"obs[{column!r}] is not positive everywhere")
            continue
        conversion = Conversion(logged, totals / target, rounded=True, log_of_base=log_of_base)
        rounding, sums = Rounding(), []
        for cells, rows in matrix.blocks():
            rounding.add(conversion.exact(rows, cells))
            sums.append(np.asarray(conversion(rows, cells).sum(axis=1, dtype=np.float64)).ravel())
        if rounding.tight:
            words = (
                f"Counts are recovered with the totals in obs[{column!r}]: before rounding no"
                f" value is further than {rounding.largest:.2g} from a whole number. The depth of"
                f" a cell is obs[{column!r}]."
            )
            return (conversion, np.concatenate(sums), totals, words), ""
        reasons.append(
            f"with obs[{column!r}] values come out up to {rounding.largest:.2g} from a whole number"
        )
    return None, f" ({'; '.join(reasons)})"


def _sums(matrix: Matrix, conversion: Conversion) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(conversion(rows, cells).sum(axis=1, dtype=np.float64)).ravel()
            for cells, rows in matrix.blocks()
        ]
    )


def _refusal(source: Source, place: str, looks: dict[str, Look]) -> str:
    said = "; ".join(f"{source.where(name)} {look.in_words()}" for name, look in looks.items())
    if any(look.kind == "unusable" for look in looks.values()):
        advice = "remove these genes or cells first"
    elif all(look.kind == "empty" for look in looks.values()):
        advice = "take another file"
    else:
        advice = (
            "counts cannot be had back from scaled values: give a file with raw counts in X, in"
            " .raw or in a layer named counts"
        )
    others = {
        name: first_look(source.matrix(name)).kind
        for name in places_in_order(source)
        if name not in looks
    }
    usable = [
        name
        for kind in ("counts", "log1p", "normalised")
        for name, is_kind in others.items()
        if is_kind == kind
    ]
    if usable:
        advice = f"set data.counts to {' or '.join(usable)}, or to auto"
    return f"{source.name}: {said}; {advice}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
