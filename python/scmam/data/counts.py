"""Find the raw counts of an AnnData, or recover them from their logarithm."""

import re
from dataclasses import dataclass

import numpy as np

from ..errors import CellsError, listing
from ..sequences import COUNTS_PER
from ..settings import Data
from .columns import SHOWN, total_columns
from .matrix import Matrix, prepared
from .source import FIXED, Source
from .values import Conversion, Look, Rounding, equal_total, look_at, row_sums

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


def find_counts(source: Source, data: Data) -> Found:
    """Choose among X, `.raw` and the layers.

    Whole non-negative numbers win, in the order of `places_in_order`; else log-normalised values
    are converted.

    Args:
        source: where cells come from.
        data: `counts` says where to look, `backed` whether the values are read into memory.

    Raises:
        CellsError: nothing there is counts or can be converted to them; the message says what each
            place holds, and what to do.
    """
    if not source.places:
        raise CellsError(
            f"{source.name}: holds no values, neither X nor .raw nor a layer; write them into X"
        )
    order = places_in_order(source) if data.counts == "auto" else (require_place(source, data),)
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
            matrix = prepared(source.matrix(name), data.backed, source.name)
            look = look_at(rows for _, rows in matrix.blocks())
            if look.kind == wanted:
                return _converted(source, name, matrix, look)
            first_looks[name] = look  # some cells further on are of another kind
    raise CellsError(_refusal(source, first_looks))


def places_in_order(source: Source) -> tuple[str, ...]:
    """Layers that are named for counts, `.raw`, X, then other layers but those that hold a part of
    the counts.
    """
    layers = [place for place in source.places if place not in FIXED]
    named = [layer for layer in layers if _plain(layer) in COUNT_LAYERS]
    others = [x for x in layers if x not in named and _plain(x) not in PART_LAYERS]
    return (*named, *(place for place in ("raw", "X") if place in source.places), *others)


def require_place(source: Source, data: Data) -> str:
    """The place that the settings name.

    Raises:
        CellsError: there is none of that name.
    """
    place = data.counts
    if place in source.refused:
        raise CellsError(f"{source.name}: data.counts names {place!r}, and {source.refused[place]}")
    if place not in source.places:
        raise CellsError(
            f"{source.name}: data.counts names {place!r}, which is not there; there are"
            f" {listing(source.places, SHOWN)}, or auto"
        )
    return place


def first_look(matrix: Matrix) -> Look:
    """Statistics of the values of a bounded number of cells, spread over the matrix."""
    cells, length = matrix.shape[0], SAMPLED // SAMPLE_BLOCKS
    if cells <= SAMPLED:
        return look_at(rows for _, rows in matrix.blocks())
    starts = np.linspace(0, cells - length, SAMPLE_BLOCKS).astype(int).tolist()
    return look_at(matrix.span(start, start + length) for start in starts)


def _converted(source: Source, place: str, matrix: Matrix, look: Look) -> Found:
    found = f"{source.where(place)} {look.in_words()}"
    if look.kind in ("counts", "fractional"):
        sums = np.concatenate(look.sums)
        depth, words = _known_totals(source, sums)
        taken, unit = ", and is taken.", COUNTS
        if look.kind == "fractional":
            taken = "; they are taken as counts, as expected or corrected counts are."
            unit = FRACTIONS
        return Found(place, matrix, None, look, sums, depth, unit, (found + taken, words))
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
        f"Raw counts cannot be recovered{reasons}; the values are taken as counts per"
        f" 10,000{proof}, and every cell's depth as 10,000."
    )
    depth = np.full(len(sums), COUNTS_PER)
    return Found(place, matrix, conversion, look, sums, depth, PER_10K, (f"{found}.", words))


def _known_totals(source: Source, sums: np.ndarray) -> tuple[np.ndarray, str]:
    """Totals of these counts, from a column of .obs where it can hold them, and a sentence."""
    columns = total_columns(source.obs)
    for column in columns:
        totals = source.obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(totals).all() and (totals >= sums * (1 - 1e-4)).all():
            return totals, f"The depth of a cell is obs[{column!r}]."
    refused = f" ({listing(columns, SHOWN)} of .obs is smaller for some cells)" if columns else ""
    return (
        sums,
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
        rounding = Rounding()
        sums = _sums(matrix, conversion, rounding)
        if rounding.tight:
            words = (
                f"Counts are recovered with the totals in obs[{column!r}]: before rounding no"
                f" value is further than {rounding.largest:.2g} from a whole number. The depth of"
                f" a cell is obs[{column!r}]."
            )
            return (conversion, sums, totals, words), ""
        reasons.append(
            f"with obs[{column!r}] values come out up to {rounding.largest:.2g} from a whole number"
        )
    return None, f" ({'; '.join(reasons)})"


def _sums(matrix: Matrix, conversion: Conversion, rounding: Rounding | None = None) -> np.ndarray:
    """(cells,) float64 totals of converted counts; `rounding` is fed with them unrounded."""
    sums = []
    for cells, rows in matrix.blocks():
        if rounding is not None:
            rounding.add(conversion.exact(rows, cells))
        sums.append(row_sums(conversion(rows, cells)))
    return np.concatenate(sums)


def _refusal(source: Source, looks: dict[str, Look]) -> str:
    said = "; ".join(f"{source.where(name)} {look.in_words()}" for name, look in looks.items())
    if any(look.kind == "unusable" for look in looks.values()):
        advice = "remove these genes or cells first"
    elif all(look.kind == "empty" for look in looks.values()):
        advice = "take another file"
    else:
        advice = (
            "counts cannot be recovered from scaled values: give a file with raw counts in X, in"
            " .raw or in a layer named counts"
        )
    others = [name for name in places_in_order(source) if name not in looks]
    kinds = {name: first_look(source.matrix(name)).kind for name in others}
    wanted = ("counts", "log1p", "normalised")
    if usable := [name for kind in wanted for name in others if kinds[name] == kind]:
        advice = f"set data.counts to {' or '.join(usable)}, or to auto"
    return f"{source.name}: {said}; {advice}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
