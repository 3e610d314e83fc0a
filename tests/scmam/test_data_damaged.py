"""Files whose parts contradict one another: each is refused in one line that names the file."""

from pathlib import Path

import pytest

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")

import anndata
import h5py
import numpy as np
import pandas
import scipy.sparse
from scmam.data import from_anndata, inspect, open_cells
from scmam.errors import CellsError
from scmam.settings import Data

CELLS, GENES = 30, 12


def table(storage: str = "csr") -> anndata.AnnData:
    """Small counts, with a raw, a layer, and two types of cells."""
    random = np.random.default_rng(0)
    counts = random.poisson(1.0, (CELLS, GENES)).astype(np.float32)
    counts[:, 0] += 1
    form = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}
    return anndata.AnnData(
        form[storage](counts),
        obs=pandas.DataFrame(
            {"cell_type": ["a", "b"] * (CELLS // 2)}, index=[f"cell {i}" for i in range(CELLS)]
        ),
        var=pandas.DataFrame(index=[f"gene {i}" for i in range(GENES)]),
    )


def replaced(group: h5py.Group, name: str, change) -> None:
    """A dataset, changed; its attributes stay."""
    values, attributes = group[name][...], dict(group[name].attrs)
    del group[name]
    group[name] = change(values)
    group[name].attrs.update(attributes)


def falling(indptr: np.ndarray) -> np.ndarray:
    indptr = indptr.copy()
    indptr[3], indptr[4] = indptr[4], indptr[3]
    return indptr


def overshooting(indptr: np.ndarray) -> np.ndarray:
    return np.append(indptr[:-1], indptr[-1] + 1000)


def not_from_zero(indptr: np.ndarray) -> np.ndarray:
    return np.append(-3, indptr[1:])


def wider(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (CELLS, GENES + 5)


def taller(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (CELLS + 7, GENES)


def absurd(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (CELLS, 2**62)


def three_sizes(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (CELLS, GENES, 1)


def shorter_var(file: h5py.File) -> None:
    for name in list(file["var"]):
        replaced(file["var"], name, lambda values: values[:-2])


def part(name: str, change):
    return lambda file: replaced(file["X"], name, change)


SPARSE = {
    "the shape has more genes than var": (wider, r"12 genes|17 genes"),
    "the shape has more cells than obs": (taller, "has 37 cells and 12 genes"),
    "the shape is absurd": (absurd, "4611686018427387904 genes"),
    "the shape has three sizes": (three_sizes, r"is no matrix; its shape is \(30, 12, 1\)"),
    "var is shorter than X": (shorter_var, "have 30 and 10"),
    "the values are complex": (part("data", lambda v: v + 1j), "holds complex64; expected real"),
    "the values are text": (
        part("data", lambda v: np.array([b"1"] * len(v))),
        r"holds \|S1; expected real numbers",
    ),
    "there are too few values": (part("data", lambda v: v[:-5]), r"values and \d+ indices"),
    "there are too few values and indices": (
        lambda file: [replaced(file["X"], name, lambda v: v[:-5]) for name in ("data", "indices")],
        r"indptr goes from 0 to \d+; expected that it rises from 0 to the number of values",
    ),
    "the values are a table": (part("data", lambda v: v.reshape(1, -1)), r"expected \(n,\)"),
    "the indices are text": (
        part("indices", lambda v: np.array([b"1"] * len(v))),
        r"/X/indices holds \|S1; expected integers",
    ),
    "the indices are fractions": (part("indices", lambda v: v + 0.5), "expected integers"),
    "an index is too large": (part("indices", lambda v: v + 10), "is numbered|indices"),
    "an index is negative": (part("indices", lambda v: v - 5), "is numbered|indices"),
    "indptr falls": (part("indptr", falling), "and falls; expected that it rises"),
    "indptr overshoots": (part("indptr", overshooting), r"indptr goes from 0 to \d+; expected"),
    "indptr does not begin at 0": (part("indptr", not_from_zero), "indptr goes from -3"),
    "indptr is too short": (part("indptr", lambda v: v[:-2]), r"indptr is of \d+ (cells|genes)"),
    "indptr is text": (part("indptr", lambda v: v.astype("S4")), "expected integers"),
    "the matrix is something else": (
        lambda file: file["X"].attrs.update({"encoding-type": "dataframe"}),
        "is a dataframe; expected a matrix",
    ),
}


@pytest.mark.parametrize("damage", SPARSE)
@pytest.mark.parametrize(
    ("storage", "backed"), [("csr", "never"), ("csr", "always"), ("csc", "never")]
)
def test_a_sparse_matrix_that_contradicts_itself(
    tmp_path: Path, storage: str, damage: str, backed: str
) -> None:
    change, message = SPARSE[damage]
    path = tmp_path / "cells.h5ad"
    table(storage).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(CellsError, match=message) as refused:
        open_cells(Data(path=path, backed=backed)).counts.whole()
    said = str(refused.value)
    assert "cells.h5ad" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values[:, :-2], "has 30 cells and 10 genes"),
        (lambda values: values[:-2], "has 28 cells and 12 genes"),
        (lambda values: values + 1j, "holds complex64; expected real numbers"),
        (lambda values: values[0], "is no matrix"),
        (lambda values: np.full(values.shape, b"1"), r"holds \|S1; expected real numbers"),
    ],
)
def test_a_dense_matrix_that_does_not_fit(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "cells.h5ad"
    table("dense").write_h5ad(path)
    with h5py.File(path, "r+") as file:
        replaced(file, "X", change)
    with pytest.raises(CellsError, match=message) as refused:
        open_cells(Data(path=path))
    assert "cells.h5ad" in str(refused.value)


def test_a_layer_and_raw_are_looked_at_too(tmp_path: Path) -> None:
    data = table()
    data.layers["counts"] = data.X.copy()
    data.raw = data
    for key in ("layers/counts", "raw/X"):
        path = tmp_path / f"{key.replace('/', ' ')}.h5ad"
        data.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file[key].attrs["shape"] = (CELLS, GENES + 1)
        with pytest.raises(CellsError, match="has 30 cells and 13 genes"):
            inspect(path)


def test_values_in_memory_are_looked_at_too() -> None:
    data = table()
    data.X.indices[0] = GENES + 3  # would be written outside of a row
    with pytest.raises(CellsError, match="AnnData: X is no sparse matrix"):
        from_anndata(data)
    data = table("dense")
    data.X = data.X + 1j
    with pytest.raises(CellsError, match="AnnData: X holds complex64; expected real numbers"):
        from_anndata(data)


@pytest.mark.parametrize("name", ["gene{}3", "gene 3{}", "{}gene 3"])
@pytest.mark.parametrize(
    "separator", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_a_gene_name_with_a_line_separator_is_refused(
    tmp_path: Path, separator: str, name: str
) -> None:
    data = table()
    data.var_names = [name.format(separator) if i == 3 else f"gene {i}" for i in range(GENES)]
    with pytest.raises(CellsError, match="1 of 12 gene names are no line of text") as refused:
        from_anndata(data)
    assert len(str(refused.value).splitlines()) == 1
    path = tmp_path / "cells.h5ad"
    data.write_h5ad(path)
    with pytest.raises(CellsError, match="no line of text"):
        open_cells(Data(path=path))


def test_half_of_a_character_is_no_gene_name() -> None:
    data = table()
    data.var_names = ["\udc80", *(f"gene {i}" for i in range(1, GENES))]
    with pytest.raises(CellsError, match="no line of text"):
        from_anndata(data)


def test_blanks_around_a_gene_name_are_no_part_of_it() -> None:
    data = table()
    data.var_names = ["  gene 0\t", *(f"gene {i}" for i in range(1, GENES))]
    assert from_anndata(data).genes[0] == "gene 0"


@pytest.mark.parametrize("name", ["obs", "var"])
@pytest.mark.parametrize("encoding", [None, "", "dict"])
def test_a_table_that_does_not_say_so_is_refused(
    tmp_path: Path, name: str, encoding: str | None
) -> None:
    path = tmp_path / "cells.h5ad"
    table().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file[name].attrs["encoding-type"]
        if encoding is not None:
            file[name].attrs["encoding-type"] = encoding
    with pytest.raises(CellsError, match=rf"cells.h5ad: \.{name} does not say that it is a table"):
        open_cells(Data(path=path))


def test_attributes_of_fixed_length_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    table().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for part in ("X", "obs", "var"):
            said = file[part].attrs["encoding-type"]
            file[part].attrs["encoding-type"] = np.bytes_(said)
    assert open_cells(Data(path=path)).counts.shape == (CELLS, GENES)
