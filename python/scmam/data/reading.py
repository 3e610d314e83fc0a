"""From an `.h5ad` file to cells for training: counts are found, cells and genes are chosen, and
each step is noted in a sentence.
"""

import numpy as np
from anndata import AnnData
from pandas import DataFrame

from ..errors import CellsError, listing
from ..settings import Data
from .cells import Cells
from .columns import as_text, label_column, require_column
from .counts import Found, find_counts
from .files import open_source
from .genes import gene_names, numbered, read_vocabulary, variable_genes, vocabulary_columns
from .rows import Rows
from .source import MemorySource, Source
from .splits import require_classes

DEFAULTS = Data()
BLOCK = 16  # cells that are drawn together from a large matrix, unless the settings say otherwise
MITOCHONDRIAL = "MT-"
SHOWN = 10  # classes that a message lists at most


def open_cells(data: Data = DEFAULTS, *, need_label: bool = False) -> Cells:
    """Read the cells that the settings describe.

    Args:
        data: the settings; those of its columns, filters and genes that are not given leave
            everything as it is.
        need_label: whether labels of at least two classes are required.

    Raises:
        CellsError: the file cannot be used as it is, or not with these settings; the message says
            why and what to do.
    """
    source = open_source(data.path)
    if data.backed == "always" and isinstance(source, MemorySource):
        raise CellsError(
            f"{source.name}: data.backed is always, but the file has the layout of an old anndata,"
            " which can only be read whole; write it again with"
            " anndata.read_h5ad(...).write_h5ad(...), or set data.backed to auto"
        )
    return _cells(source, data, need_label)


def from_anndata(
    adata: AnnData, data: Data = DEFAULTS, *, need_label: bool = False, name: str = "AnnData"
) -> Cells:
    """Read the cells of an AnnData in memory, which is not changed; `data.path` and `data.backed`
    are ignored.
    """
    return _cells(MemorySource(adata, name), data, need_label)


def _cells(source: Source, data: Data, need_label: bool) -> Cells:
    obs = source.obs
    if not len(obs):
        raise CellsError(f"{source.name}: has no cells; give a file that has some")
    labelled = need_label or data.min_class > 0
    label, sentence = label_column(obs, data.label, source.name, required=labelled)
    donor = data.donor
    if donor is not None:
        require_column(obs, donor, "data.donor", source.name)
    found = find_counts(source, data)
    where = f"{source.name}: {source.where(found.place)}"
    var = source.var(found.place)
    names = gene_names(var, where)
    labels = None if label is None else as_text(obs[label])
    notes = [*found.notes, *(f"Not taken: {why}." for why in source.refused.values()), sentence]
    if numbered(names):
        notes.append(
            "The genes have numbers for names, so that no vocabulary and no gene set will fit them."
        )
    if not found.matrix.in_memory:
        notes.append("Rows are read from the file when they are needed.")
    kept, dropped = _kept_cells(found, names, data, labels, where)
    notes += dropped
    columns, genes, chosen = _kept_genes(found, kept, names, data, var, where)
    notes += chosen
    rows = Rows(found.matrix, kept, columns, found.conversion)
    if rows.in_memory and (columns is not None or found.conversion is not None):
        rows = rows.loaded()
    cells = Cells(
        counts=rows,
        genes=genes,
        names=obs.index.to_numpy().astype(str)[kept],
        cell_ids=kept,
        depth=found.depth[kept].astype(np.float32),
        labels=None if labels is None else labels[kept],
        label=label,
        donors=None if donor is None else as_text(obs[donor])[kept],
        donor=donor,
        source=where,
        unit=found.unit,
        block=data.shuffle_block or (BLOCK if source.matrix(found.place).large else 1),
        notes=tuple(notes),
    )
    if need_label:
        _require_classes(cells)
    if donor is not None:
        _require_donors(cells)
    return cells


def _kept_cells(
    found: Found, names: tuple[str, ...], data: Data, labels: np.ndarray | None, where: str
) -> tuple[np.ndarray, list[str]]:
    """Rows of the cells that pass the filters, and a sentence on each filter that dropped some."""
    kept, notes = np.ones(len(found.sums), dtype=bool), []

    def drop(failing: np.ndarray, why: str) -> None:
        count = int(np.count_nonzero(kept & failing))
        kept[failing] = False
        if count:
            notes.append(f"{count} cells are dropped: {why}.")

    drop(found.sums <= 0, "they have no counts at all")
    if data.min_genes or data.max_mito is not None:
        detected, mitochondrial = _qualities(found, names, data, where)
        drop(
            detected < data.min_genes,
            f"fewer than {data.min_genes} non-zero genes (data.min_genes)",
        )
        if data.max_mito is not None:
            share = mitochondrial / np.maximum(found.depth, 1)
            drop(
                share > data.max_mito,
                f"more than {data.max_mito:.0%} of their counts are mitochondrial (data.max_mito)",
            )
    if data.min_class and labels is not None:
        sizes = zip(*np.unique(labels[kept], return_counts=True), strict=True)
        small = {name: size for name, size in sizes if name and size < data.min_class}
        if small:
            said = listing([f"{name} ({size})" for name, size in small.items()], SHOWN)
            drop(
                np.isin(labels, list(small)),
                f"their classes have fewer than {data.min_class} cells (data.min_class): {said}",
            )
    if not kept.any():
        reasons = " ".join(notes)
        raise CellsError(
            f"{where}: no cell is left of {len(kept)}. {reasons} Set data.min_genes, max_mito and"
            " min_class lower"
        )
    return np.flatnonzero(kept), notes


def _qualities(
    found: Found, names: tuple[str, ...], data: Data, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Non-zero genes, and mitochondrial counts, of every cell of the file."""
    mito = np.array([name.upper().startswith(MITOCHONDRIAL) for name in names])
    if data.max_mito is not None and not mito.any():
        raise CellsError(
            f"{where}: data.max_mito needs genes named MT-*, and there are none (names are"
            f" {', '.join(names[:3])}); leave it unset"
        )
    detected, counts = np.zeros(len(found.sums), dtype=np.int64), np.zeros(len(found.sums))
    for cells, rows in found.matrix.blocks():
        rows = rows if found.conversion is None else found.conversion(rows, cells)
        detected[cells] = np.diff(rows.indptr)
        counts[cells] = rows @ mito.astype(np.float64)
    return detected, counts


def _kept_genes(
    found: Found, cells: np.ndarray, names: tuple[str, ...], data: Data, var: DataFrame, where: str
) -> tuple[np.ndarray | None, tuple[str, ...], list[str]]:
    """Columns that are taken (None: all), their names, and a sentence on each choice."""
    if data.genes == "vocabulary":
        if data.min_cells:
            raise CellsError(
                "data.min_cells: drops genes, but data.vocabulary says which there are; set it to 0"
            )
        path = data.vocabulary
        if path is None:
            raise CellsError("data.vocabulary: required by data.genes = vocabulary; got None")
        vocabulary = read_vocabulary(path)
        columns, sentence = vocabulary_columns(vocabulary, names, path=path, where=where, var=var)
        return columns, vocabulary, [sentence]
    columns, notes = np.arange(len(names)), []
    if data.min_cells:
        detected = np.zeros(len(names), dtype=np.int64)
        for block in Rows(found.matrix, cells, None, found.conversion).blocks():
            detected += np.bincount(block.indices, minlength=len(names))
        columns = np.flatnonzero(detected >= data.min_cells)
        notes.append(
            f"{len(names) - len(columns)} genes are dropped: not zero in fewer than"
            f" {data.min_cells} cells (data.min_cells)."
        )
        if not len(columns):
            raise CellsError(
                f"{where}: no gene is left of {len(names)}: none is not zero in {data.min_cells}"
                " cells; set data.min_cells lower"
            )
    if data.genes == "variable":
        rows = Rows(found.matrix, cells, columns, found.conversion)
        chosen, sentence = variable_genes(rows, data.num_genes, found.unit)
        columns = columns[chosen]
        notes.append(sentence)
    if len(columns) == len(names):
        return None, names, notes
    return columns, tuple(names[column] for column in columns.tolist()), notes


def _require_classes(cells: Cells) -> None:
    require_classes(cells)
    labelled = int(np.count_nonzero(cells.codes >= 0))
    if len(cells.classes) > max(2, labelled // 2):
        raise CellsError(
            f"{cells.source}: obs[{cells.label!r}] has {len(cells.classes)} different values in"
            f" {labelled} cells, which are no classes; set data.label to a column with cell types"
        )


def _require_donors(cells: Cells) -> None:
    missing = int(np.count_nonzero(cells.donors == ""))
    if missing:
        raise CellsError(
            f"{cells.source}: obs[{cells.donor!r}] is missing for {missing} cells; fill it, or"
            " leave data.donor unset"
        )
