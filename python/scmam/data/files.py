"""Several `.h5ad` files as one: their cells one after another, their genes matched by name."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse
from pandas import DataFrame
from scipy.sparse import csr_matrix

from ..errors import CellsError, listing
from .counts import look_at
from .genes import gene_names
from .matrix import Matrix, canonical
from .source import Source, open_file

LOOKED_AT = 64  # first cells of each file, by which the kind of its values is decided
SHOWN = 3  # genes or files that a message names at most


def open_source(path: Path | Sequence[Path] | None) -> Source:
    """The AnnData of a file, of all `.h5ad` files of a folder, in the order of their names, or of a
    list of files; None: the example.

    Raises:
        CellsError: no such file, not an AnnData file, a folder without any, or files that do not go
            together.
    """
    if path is None:
        return open_file(None)
    if not isinstance(path, (str, Path)):
        files = [Path(file) for file in path]
        name = listing([file.name for file in files], 1)
        if repeated := [str(file) for file in dict.fromkeys(files) if files.count(file) > 1]:
            raise CellsError(
                f"data.path: names {listing(repeated, SHOWN)} more than once; name each file once"
            )
    elif Path(path).is_dir():
        files, name = sorted(Path(path).glob("*.h5ad")), Path(path).name
        if not files:
            raise CellsError(
                f"{path}: a folder without .h5ad files; give one that has some, or a file, as"
                " data.path"
            )
    else:
        files, name = [Path(path)], ""
    sources = [open_file(file) for file in files]
    return sources[0] if len(sources) == 1 else JoinedSource(sources, name)


class JoinedSource(Source):
    """Several sources as one. Only places that all of them have, of the same genes and the same
    kind of values, are its places.

    Args:
        sources: at least one; the genes are in the order of the first.
        name: for messages.

    Raises:
        CellsError: no place is common to all.
    """

    def __init__(self, sources: Sequence[Source], name: str) -> None:
        self.sources, self.name = tuple(sources), name
        self._columns: dict[str, list[np.ndarray]] = {}
        places = dict.fromkeys(place for source in sources for place in source.places)
        self.refused = {place: why for place in places if (why := self._refusal(place)) is not None}
        if places and len(self.refused) == len(places):
            raise CellsError(
                f"{name}: its {len(sources)} files do not go together:"
                f" {'; '.join(self.refused.values())}"
            )
        self.places = tuple(self._columns)
        self.log_base = self.sources[0].log_base

    @cached_property
    def obs(self) -> DataFrame:

        with warnings.catch_warnings():
            # Of names that occur in several files: cells are told apart by their row.
            warnings.simplefilter("ignore")
            return anndata.concat(
                [anndata.AnnData(obs=source.obs) for source in self.sources], join="outer"
            ).obs

    def matrix(self, place: str) -> Matrix:
        return JoinedMatrix([source.matrix(place) for source in self.sources], self._columns[place])

    def var(self, place: str) -> DataFrame:
        return self.sources[0].var(place)

    def _refusal(self, place: str) -> str | None:
        """Why a place cannot be taken from all files as one. None where it can: then the order of
        its genes in each file is noted.
        """
        where = self.where(place)
        without = [source.name for source in self.sources if place not in source.places]
        if without:
            return f"{where} is not in {listing(without, SHOWN)}"
        try:
            genes = [
                gene_names(source.var(place), f"{where} of {source.name}")
                for source in self.sources
            ]
        except CellsError as error:
            return str(error)
        for source, names in zip(self.sources, genes, strict=True):
            missing, added = set(genes[0]) - set(names), set(names) - set(genes[0])
            if missing or added:
                return (
                    f"{where} of {source.name} has other genes than that of {self.sources[0].name}"
                    f" ({len(missing)} are missing{_named(missing)}, {len(added)} are there beside"
                    f" them{_named(added)}); bring all files to the same genes"
                )
        first_cells = [_first_cells(source.matrix(place)) for source in self.sources]
        kinds: dict[str, str] = {}
        for source, cells in zip(self.sources, first_cells, strict=True):
            kinds.setdefault(look_at([cells]).kind, source.name)
        kinds.pop("empty", None)
        if len(kinds) > 1:
            said = " and ".join(f"{kind} in {name}" for kind, name in kinds.items())
            return f"{where} holds values of different kinds ({said}); bring all files to the same"
        if "normalised" in kinds and look_at(first_cells).kind != "normalised":
            return (
                f"{where} holds cells normalised to a sum that is not the same in all files; bring"
                " all to the same"
            )
        if "counts" not in kinds and len({source.log_base for source in self.sources}) > 1:
            return (
                f"{where} holds logarithms of different bases (uns['log1p']['base']); bring all"
                " files to the same"
            )
        order = {gene: column for column, gene in enumerate(genes[0])}
        self._columns[place] = [
            np.array([order[gene] for gene in names], dtype=np.int32) for names in genes
        ]
        return None


class JoinedMatrix(Matrix):
    """Matrices one below the other.

    Args:
        parts: at least one.
        columns: of each part, (genes,) int32: which column of the whole each of its columns is.
    """

    def __init__(self, parts: Sequence[Matrix], columns: Sequence[np.ndarray]) -> None:
        self.parts, self.columns = tuple(parts), tuple(columns)
        self.shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
        storages = {part.storage for part in parts}
        self.storage = "csc" if "csc" in storages else parts[0].storage
        self.stored, self.key = sum(part.stored for part in parts), parts[0].key
        self.in_memory = all(part.in_memory for part in parts)
        self._first = np.cumsum([0, *(part.shape[0] for part in parts)])

    def take(self, rows: np.ndarray) -> csr_matrix:
        part_of = np.searchsorted(self._first, rows, side="right") - 1
        taken = [
            self._ordered(part, self.parts[part].take(rows[part_of == part] - self._first[part]))
            for part in np.unique(part_of)
        ]
        by_part = np.argsort(part_of, kind="stable")  # row numbers in the order of `taken`
        return self._below(taken)[np.argsort(by_part)]

    def span(self, start: int, stop: int) -> csr_matrix:
        first = self._first[:-1]
        starts, stops = np.maximum(start - first, 0), np.minimum(stop, self._first[1:]) - first
        return self._below(
            [
                self._ordered(part, self.parts[part].span(int(starts[part]), int(stops[part])))
                for part in np.flatnonzero(starts < stops).tolist()
            ]
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _ordered(self, part: int, rows: csr_matrix) -> csr_matrix:
        """Rows of a part, their genes in the order of the whole."""
        columns = self.columns[part]
        if np.array_equal(columns, np.arange(len(columns))):
            return rows
        return canonical(
            csr_matrix((rows.data, columns[rows.indices], rows.indptr), shape=rows.shape)
        )

    def _below(self, parts: list[csr_matrix]) -> csr_matrix:
        if not parts:
            return csr_matrix((0, self.shape[1]), dtype=np.float32)
        return parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr")


def _first_cells(matrix: Matrix) -> csr_matrix:
    rows = matrix.span(0, min(LOOKED_AT, matrix.shape[0]))
    matrix.close()
    return rows


def _named(genes: set[str]) -> str:
    return f": {listing(sorted(genes), SHOWN)}" if genes else ""
