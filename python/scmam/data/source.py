"""An AnnData, in memory or in a file: the places of possible counts, and the tables of cells and
genes.
"""

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from anndata import AnnData, read_h5ad
from anndata.io import read_elem
from pandas import DataFrame

from ..errors import CellsError, one_line
from .file_matrix import FileMatrix, encoding
from .matrix import Matrix, MemoryMatrix

EXAMPLE = "pbmc68k_reduced"
FIXED = {"X": "X", "raw": "raw/X"}  # places that are no layers, and where files hold them


class Source(ABC):
    """Where cells come from.

    Attributes:
        name: for messages.
        obs: a row a cell.
        places: where values are: "X", "raw", and the names of the layers.
        log_base: base of the logarithm that was taken of X, where the file says so; None: natural.
        refused: places whose values cannot be taken, and why.
    """

    name: str
    obs: DataFrame
    places: tuple[str, ...]
    log_base: float | None
    refused: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def matrix(self, place: str) -> Matrix:
        """The values at one of `places`."""

    @abstractmethod
    def var(self, place: str) -> DataFrame:
        """A row a gene of that place."""

    def where(self, place: str) -> str:
        """A place as users write it."""
        return {"X": "X", "raw": ".raw.X"}.get(place, f"layers[{place!r}]")


class MemorySource(Source):
    """An AnnData in memory."""

    def __init__(self, data: AnnData, name: str = "AnnData") -> None:

        if not isinstance(data, AnnData):
            raise CellsError(
                f"{name}: expected an AnnData, got {type(data).__name__}; read one with"
                " anndata.read_h5ad"
            )
        self.name, self.obs, self._data = name, data.obs, data
        there = {"X": data.X is not None, "raw": data.raw is not None}
        self.places = (*(place for place in there if there[place]), *map(str, data.layers))
        self.log_base = _log_base(data.uns.get("log1p"))
        self._matrices: dict[str, Matrix] = {}

    def matrix(self, place: str) -> Matrix:
        if place not in self._matrices:
            holder = self._data.raw if place == "raw" else self._data
            values = holder.X if place in FIXED else self._data.layers[place]
            self._matrices[place] = MemoryMatrix(values, f"{self.name}: {self.where(place)}")
        return self._matrices[place]

    def var(self, place: str) -> DataFrame:
        return self._data.raw.var if place == "raw" else self._data.var


class FileSource(Source):
    """An `.h5ad` file, of which only the tables are read at first."""

    def __init__(self, path: Path) -> None:

        self.path, self.name = path, path.name
        with h5py.File(path, "r") as file:
            self.obs, self._var = read_elem(file["obs"]), {"X": read_elem(file["var"])}
            self._keys = {
                place: key for place, key in _keys(file).items() if encoding(file[key]) != "null"
            }
            self.places = tuple(self._keys)
            if "raw" in self.places:
                self._var["raw"] = read_elem(file["raw/var"])
            self.log_base = _log_base(read_elem(file["uns/log1p"]) if "uns/log1p" in file else None)
        for place in self.places:
            found, tables = self.matrix(place).shape, (len(self.obs), len(self.var(place)))
            if found != tables:
                raise CellsError(
                    f"{self.path}: {self.where(place)} has {found[0]} cells and {found[1]} genes,"
                    f" and its tables .obs and .var have {tables[0]} and {tables[1]}; the file is"
                    " damaged: write it again"
                )

    def matrix(self, place: str) -> Matrix:
        return FileMatrix(self.path, self._keys[place])

    def var(self, place: str) -> DataFrame:
        return self._var["raw" if place == "raw" else "X"]


def open_file(path: Path | None) -> Source:
    """The AnnData of a file; None: scanpy's `pbmc68k_reduced`.

    Raises:
        CellsError: no such file, or not an AnnData file.
    """
    if path is None:
        return _example()
    path = Path(path)
    if not path.is_file():
        raise CellsError(f"{path}: no such file; give the path of an .h5ad file as data.path")
    return _read(path)


def _read(path: Path) -> Source:
    try:
        if _is_current(path):
            return FileSource(path)

        with warnings.catch_warnings():
            # A layout that was current when the file was written.
            warnings.simplefilter("ignore")
            return MemorySource(read_h5ad(path), path.name)
    except (CellsError, ImportError):
        raise
    # h5py and anndata raise anything from OSError to KeyError on a file that is something else
    except Exception as error:
        raise CellsError(
            f"{path}: not an AnnData file ({one_line(error)}); write one with anndata's write_h5ad"
        ) from error


def _is_current(path: Path) -> bool:
    """Whether every part says what it is, as anndata has written them since 0.7, so that it can be
    read by itself.
    """

    with h5py.File(path, "r") as file:
        if "obs" not in file or "var" not in file:
            raise CellsError(
                f"{path}: not an AnnData file (no tables obs and var in it); write one with"
                " anndata's write_h5ad"
            )
        for key in ("obs", "var"):
            # anndata would take its columns, and number its rows in place of their names.
            if isinstance(file[key], h5py.Group) and encoding(file[key]) != "dataframe":
                raise CellsError(
                    f"{path}: .{key} does not say that it is a table (attribute encoding-type);"
                    " the file is damaged: write it again"
                )
        keys = ("obs", "var", *_keys(file).values())
        return "raw.X" not in file and all(encoding(file[key]) for key in keys)


def _keys(file: Any) -> dict[str, str]:
    """Places of values in an open file, and the key of each."""
    keys = {place: key for place, key in FIXED.items() if key in file}
    layers = [name for name in file.get("layers", ()) if name not in keys]
    return keys | {name: f"layers/{name}" for name in layers}


def _example() -> Source:
    package = importlib.util.find_spec("scanpy")  # importing it takes seconds
    if package is None or package.origin is None:
        raise CellsError(
            "data.path: not given, and the example cells come with the package scanpy; install it,"
            " or give an .h5ad file"
        )
    file = Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    if file.is_file():
        source = _read(file)
    else:
        import scanpy

        source = MemorySource(scanpy.datasets.pbmc68k_reduced())
    source.name = EXAMPLE
    return source


def _log_base(recorded: Any) -> float | None:
    base = recorded.get("base") if isinstance(recorded, dict) else None
    return None if base is None else float(np.asarray(base))
