"""Inspection of a file before any run."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CellsError, listing
from ..settings import Data
from .columns import as_text, donor_columns, label_column, label_columns, require_column
from .counts import Found, find_counts, first_look, places_in_order, require_place
from .files import open_source
from .genes import gene_names, numbered, sampled, variable_genes
from .reading import DEFAULTS
from .rows import Rows
from .source import Source

FOLDS = 5  # of the evaluation, by default
SHOWN = 12  # classes and columns that the text lists at most
GENES = 300
"""The most variable genes, which the benchmark ran on: all genes of two files do not compare."""
SPARSE, DENSE = 0.235, 0.335
"""Shares of non-zeros: of the densest set where hiding fewer zeros was ahead, and of the sparsest
where it was not.
"""


@dataclass(frozen=True)
class Place:
    """Values that a file holds."""

    where: str  # "X", ".raw.X", "layers['counts']"
    shape: tuple[int, int]
    storage: str  # "csr", "csc" or "dense"
    mebibytes: float  # in memory
    holds: str  # in words
    taken: bool


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Quantiles are (minimum, lower quartile, median, upper quartile, maximum) over the cells.
    """

    name: str
    cells: int
    genes: int  # of the place that is taken; of the first, where none can be
    places: tuple[Place, ...]
    counts: str | None  # as `Cells.unit`; None where there are none
    density: float | None  # share of the values that are not zero
    variable_density: float | None  # the same, of the 300 most variable genes
    depth: tuple[float, ...] | None  # quantiles of the total count
    detected: tuple[float, ...] | None  # quantiles of the non-zero genes
    label: str | None  # the column that would be taken
    labels: dict[str, dict[str, int]]  # columns that may hold labels: cells of each class
    donors: dict[str, dict[str, int]]  # columns that may hold donors or batches, likewise
    masking: str | None  # which masking to begin with, by the benchmark of maskings
    notes: tuple[str, ...]
    warnings: tuple[str, ...]  # what stands in the way of a run, or may

    @property
    def usable(self) -> bool:
        """Whether there are counts, or values that convert to them."""
        return self.counts is not None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        lines = [f"{self.name}: {self.cells:,} cells, {self.genes:,} genes", "", "Values"]
        for place in self.places:
            mark, (cells, genes) = "*" if place.taken else " ", place.shape
            size = f"{cells:,} x {genes:,}, {place.storage}, {place.mebibytes:,.0f} MiB"
            lines.append(f" {mark} {place.where} ({size}) {place.holds}")
        if self.depth is not None and self.detected is not None:
            lines += ["   * is taken", ""]
            lines += [f"Counts: {self.counts}; {self.density:.1%} are not zero"]
            lines += [_quantiles("Total count of a cell", self.depth)]
            lines += [_quantiles("Non-zero genes of a cell", self.detected)]
        for kind, columns in {"labels": self.labels, "donors or batches": self.donors}.items():
            found = [_classes(name, sizes, name == self.label) for name, sizes in columns.items()]
            lines += ["", f"Columns that may be {kind}", *(found or ["   none"])]
        if self.masking is not None:
            lines += ["", "Masking", f" - {self.masking}"]
        for title, sentences in (("Notes", self.notes), ("Warnings", self.warnings)):
            if sentences:
                lines += ["", title, *(f" - {sentence}" for sentence in sentences)]
        return "\n".join(lines)


def inspect(path: str | Path | None = None, settings: Data = DEFAULTS) -> Inspection:
    """Look at a file: where its counts are and why, how deep and how sparse they are, which masking
    that speaks for, and which columns could be labels and donors.

    Args:
        path: an .h5ad file, or a folder of them; None takes `settings.path`, and scanpy's
            pbmc68k_reduced where that is None too.
        settings: `counts`, `label`, `donor` and `backed` are heeded. Filters and the choice of
            genes are not.

    Raises:
        CellsError: no such file, not an AnnData file, no cells, or a place or column that is asked
            for by a name it does not have.
    """
    source = open_source(settings.path if path is None else Path(path))
    if not len(source.obs):
        raise CellsError(f"{source.name}: has no cells; give a file that has some")
    label, sentence = label_column(source.obs, settings.label, source.name, required=False)
    if settings.donor is not None:
        require_column(source.obs, settings.donor, "data.donor", source.name)
    warnings = [f"Not taken: {why}." for why in source.refused.values()]
    found = _found(source, settings, warnings)
    _look_at_genes(source, found, warnings)
    labels = {
        column: _sizes(source, column)
        for column in dict.fromkeys([*([label] if label else []), *label_columns(source.obs)])
    }
    if label is None:
        warnings.append(f"{sentence} Evaluation needs it.")
    else:
        warnings += _look_at_classes(label, labels[label])
    depth = detected = sparsity = None
    shape = (len(source.obs), len(source.var("X")))
    if found is not None:
        shape, depth = found.matrix.shape, _five(found.depth)
        blocks = found.matrix.blocks()
        detected = _five(np.concatenate([np.diff(rows.indptr) for _, rows in blocks]))
        sparsity = variable_density(found)
    elif source.places:
        shape = source.matrix(source.places[0]).shape
    donors = [*([settings.donor] if settings.donor else []), *donor_columns(source.obs)]
    return Inspection(
        name=source.name,
        cells=len(source.obs),
        genes=shape[1],
        places=tuple(
            _place(source, name, found)
            for name in dict.fromkeys((*places_in_order(source), *source.places))
        ),
        counts=None if found is None else found.unit,
        density=None if found is None else found.look.stored / max(1, shape[0] * shape[1]),
        variable_density=sparsity,
        depth=depth,
        detected=detected,
        label=label,
        labels=labels,
        donors={column: _sizes(source, column) for column in dict.fromkeys(donors)},
        masking=None if sparsity is None else advised(sparsity),
        notes=() if found is None else (*found.notes, *([] if label is None else [sentence])),
        warnings=tuple(warnings),
    )


def _found(source: Source, settings: Data, warnings: list[str]) -> Found | None:
    if source.places and settings.counts != "auto":
        require_place(source, settings)  # an error: the name is wrong, not the file
    try:
        found = find_counts(source, settings)
    except CellsError as error:
        warnings.append(f"Not usable as it is. {error}")
        return None
    if empty := int(np.count_nonzero(found.sums <= 0)):
        warnings.append(f"{empty} cells have no counts; they will be dropped.")
    if found.matrix.large and found.matrix.storage == "csc":
        warnings.append(
            "The matrix is stored by genes (CSC) and is read whole; written by cells (tocsr) it"
            " can be read from the file."
        )
    return found


def _look_at_genes(source: Source, found: Found | None, warnings: list[str]) -> None:
    place = found.place if found else "X"
    try:
        names = gene_names(source.var(place), f"{source.name}: {source.where(place)}")
    except CellsError as error:
        warnings.append(f"Not usable as it is. {error}")
        return
    if names and numbered(names):
        warnings.append(
            "The genes have numbers for names: no vocabulary and no gene set will fit them."
        )


def _look_at_classes(label: str, sizes: dict[str, int]) -> list[str]:
    named = {name: size for name, size in sizes.items() if name}
    warnings = []
    if len(named) < 2:
        warnings.append(f"obs[{label!r}] has {len(named)} class; evaluation needs at least two.")
    if small := [f"{name} ({size})" for name, size in named.items() if size < FOLDS]:
        warnings.append(
            f"Classes too small for {FOLDS} folds: {listing(small, SHOWN)}; set data.min_class"
            f" to {FOLDS} to drop them."
        )
    if sizes.get(""):
        warnings.append(
            f"{sizes['']} cells have no label in obs[{label!r}]; they are left out of the"
            " evaluation."
        )
    return warnings


def _place(source: Source, name: str, found: Found | None) -> Place:
    matrix = source.matrix(name)
    taken = found is not None and found.place == name
    look = found.look if found is not None and taken else first_look(matrix)
    matrix.close()
    size = matrix.nbytes / 2**20
    return Place(source.where(name), matrix.shape, matrix.storage, size, look.in_words(), taken)


def _sizes(source: Source, column: str) -> dict[str, int]:
    """Cells of each value, the most frequent first."""
    return dict(Counter(sorted(as_text(source.obs[column]).tolist())).most_common())


def _five(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist())


def _quantiles(what: str, values: tuple[float, ...]) -> str:
    low, lower, median, upper, high = values
    return (
        f"{what}: median {median:,.0f}, quartiles {lower:,.0f} to {upper:,.0f}, range {low:,.0f}"
        f" to {high:,.0f}"
    )


def _classes(column: str, sizes: dict[str, int], taken: bool) -> str:
    shown = listing([f"{name or '(missing)'} {size:,}" for name, size in sizes.items()], SHOWN)
    return f" {'*' if taken else ' '} {column}: {len(sizes)} values: {shown}"


def variable_density(found: Found) -> float:
    """The share of the values of the `GENES` most variable genes that are not zero, over the cells
    that have counts; at most as many cells as choose the genes are read.
    """
    cells = np.flatnonzero(found.sums > 0)
    cells = cells[sampled(len(cells))]
    genes, _ = variable_genes(Rows(found.matrix, cells, None, found.conversion), GENES, found.unit)
    if not len(cells) or not len(genes):
        return 0.0
    rows = Rows(found.matrix, cells, genes, found.conversion)
    return sum(block.nnz for block in rows.blocks()) / (len(cells) * len(genes))


def advised(density: float) -> str:
    """Which masking to begin with, for a `variable_density`, in a sentence or two."""
    if density <= SPARSE:
        said = (
            "Trained on a few hundred genes, hide few zeros (`--arm uniform-half`): the three sets"
            " of the benchmark that are as sparse gained by it. Of thousands, keep the default:"
            " some runs with 2,000 genes fell by ten points when they trained longer."
        )
    elif density < DENSE:
        said = (
            "The benchmark has no set as sparse as this; compare the arms `uniform`, the default,"
            " and `uniform-half`."
        )
    else:
        said = (
            "Keep the default, masks over all positions: the two sets of the benchmark that are as"
            " dense did not gain by hiding few zeros."
        )
    return f"{density:.1%} of the values of the {GENES} most variable genes are not zero. {said}"
