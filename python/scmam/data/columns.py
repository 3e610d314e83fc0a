"""Columns of `.obs` by what they hold: labels, donors, total counts."""

import difflib
import re

import numpy as np
from pandas import DataFrame, Series
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ..errors import CellsError, listing

# In the order in which they are preferred, written as `_plain` gives them.
LABEL_NAMES = (
    ("celltype",),
    (
        *("celltypes", "celltypelabel", "celllabel", "celllabels", "cellontologyclass"),
        *("bulklabels", "authorcelltype", "celltypeannotation"),
    ),
    (
        *("annotation", "annotations", "label", "labels", "celltypefine", "celltypecoarse"),
        "paul15clusters",
    ),
    ("louvain", "leiden", "cluster", "clusters", "seuratclusters"),
)
DONOR_NAMES = (
    *("donor", "donorid", "patient", "patientid", "individual", "subject", "subjectid", "mouse"),
    *("mouseid", "sample", "sampleid", "origident", "batch", "batchid", "library"),
)
OTHER_NAMES = (
    *("phase", "sex", "tissue", "assay", "disease", "organism", "treatment", "condition"),
    *("stage", "developmentstage", "ethnicity"),
)
TOTAL_NAMES = (
    *("totalcounts", "ncounts", "ncountrna", "numi", "numis", "totalumis", "ncount"),
    *("umicount", "ncountsall"),
)
SHOWN = 30  # columns that an error lists at most


def label_column(
    obs: DataFrame, name: str | None, source: str, *, required: bool
) -> tuple[str | None, str]:
    """The column with the cell types, and a sentence on how it was found.

    Args:
        obs: a row a cell.
        name: the column that was asked for; None looks for the best known name, and takes it only
            if no other fits as well.
        source: named in errors.
        required: whether its absence is an error.

    Raises:
        CellsError: no such column; or none, or several as good, where it is required.
    """
    if name is not None:
        require_column(obs, name, "data.label", source)
        return name, f"Labels are obs[{name!r}], as asked for."
    candidates = categorical_columns(obs)
    for names in LABEL_NAMES:
        fitting = [column for column in candidates if _plain(column) in names]
        if len(fitting) == 1:
            return fitting[0], f"Labels are obs[{fitting[0]!r}], found by its name."
        if fitting:
            candidates = fitting
            break
    else:
        candidates = label_columns(obs)
        if len(candidates) == 1:
            found = f"obs[{candidates[0]!r}], the only categorical column that may hold them"
            return candidates[0], f"Labels are {found}."
    listed = _listing(candidates)
    if not candidates:
        listed = f"none looks like it among {_listing(list(obs.columns))}"
    problem = "data.label is not given, and cannot be told from the names of .obs"
    if required:
        raise CellsError(f"{source}: {problem}; set it to a column: {listed}")
    return None, f"No labels are used: {problem} ({listed})."


def require_column(obs: DataFrame, name: str, setting: str, source: str) -> str:
    """Return the name if there is such a column, or raise an error that lists the columns, the
    most similar first.
    """
    if name in obs.columns:
        return name
    columns = list(map(str, obs.columns))
    raise CellsError(
        f"{source}: {setting} names {name!r}, which is no column of .obs;"
        f" {suggestion(name, columns)}"
    )


def suggestion(name: str, known: list[str]) -> str:
    """The known names that resemble the given one, and the list of all."""
    if not known:
        return "there are none"
    by_plain = {_plain(other): other for other in known}
    similar = difflib.get_close_matches(_plain(name), list(by_plain), n=3, cutoff=0.6)
    close = [by_plain[plain] for plain in similar]
    there = f"here are {_listing(close + [other for other in known if other not in close])}"
    return f"did you mean {' or '.join(map(repr, close))}? T{there}" if close else f"t{there}"


def _listing(names: list[str]) -> str:
    return listing(names, SHOWN) or "no columns"


def categorical_columns(obs: DataFrame) -> list[str]:
    """Columns that may divide the cells into classes: neither numbers nor a name for each cell."""

    found = []
    for column in obs.columns:
        values = obs[column]
        clusters = _plain(column) in LABEL_NAMES[-1]  # their names are often numbers
        if (is_numeric_dtype(values.dtype) and not clusters) or is_bool_dtype(values.dtype):
            continue
        try:
            count = values.nunique()
        except TypeError:  # a column of matrices or lists, which are no classes
            continue
        if 2 <= count <= max(2, len(values) // 2):
            found.append(str(column))
    return found


def label_columns(obs: DataFrame) -> list[str]:
    """Categorical columns whose names do not exclude labels."""
    return [
        column
        for column in categorical_columns(obs)
        if _plain(column) not in DONOR_NAMES + OTHER_NAMES
    ]


def donor_columns(obs: DataFrame) -> list[str]:
    """Columns named after donors, samples or batches, with at least two values."""
    return [
        str(column)
        for column in obs.columns
        if _plain(column) in DONOR_NAMES and obs[column].astype(str).nunique() >= 2
    ]


def total_columns(obs: DataFrame) -> list[str]:
    """Numeric columns named after the total count of a cell, the commonest name first."""

    named = [
        str(column)
        for column in obs.columns
        if _plain(column) in TOTAL_NAMES and is_numeric_dtype(obs[column].dtype)
    ]
    return sorted(named, key=lambda column: TOTAL_NAMES.index(_plain(column)))


def as_text(values: Series) -> np.ndarray:
    """(cells,) str, "" where a value is missing."""
    text = values.astype(object).where(values.notna().to_numpy(), "").map(_text)
    return text.to_numpy(dtype=object).astype(str)


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
