"""Reading cells: what is taken, and what is said about files that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
scipy_sparse = pytest.importorskip("scipy.sparse")

from scmam.cells import CellsError, cells_of, example_cells, read_cells  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"


def annotated(matrix, raw=None, **layers):
    data = anndata.AnnData(matrix)
    for name, layer in layers.items():
        data.layers[name] = layer
    if raw is not None:
        data.raw = anndata.AnnData(raw)
    return data


MATRIX = np.array([[0.0, 1.5, 0.0], [2.0, 0.0, 3.0]], dtype=np.float32)


@pytest.mark.parametrize("convert", [np.asarray, scipy_sparse.csr_matrix, scipy_sparse.csc_matrix])
def test_takes_every_layout(convert):
    data = annotated(MATRIX)
    data.X = convert(MATRIX)
    cells = cells_of(data)
    assert cells.values.layout is torch.sparse_csr
    assert cells.values.dtype is torch.float32
    np.testing.assert_array_equal(cells.values.to_dense().numpy(), MATRIX)
    assert cells.density == pytest.approx(0.5)
    assert cells.mean_expression().tolist() == [1.0, 0.75, 1.5]
    assert cells.genes == ("0", "1", "2")


def test_drops_stored_zeros_and_adds_duplicates():
    matrix = scipy_sparse.csr_matrix((np.float32([0.0, 1.0, 2.0]), [0, 1, 1], [0, 1, 3]), shape=(2, 2))
    assert cells_of(annotated(matrix)).values.values().tolist() == [3.0]


def test_prefers_raw_and_takes_what_is_asked_for():
    data = annotated(-MATRIX, raw=MATRIX, counts=2 * MATRIX)
    assert cells_of(data).source == "AnnData: .raw.X"
    assert cells_of(data, "counts").values.to_dense().max() == 6.0
    with pytest.raises(CellsError, match=r"negative values .*often kept in \.raw or in a layer"):
        cells_of(data, "X")
    with pytest.raises(CellsError, match=r"no layer 'spliced'; ask for X, raw or one of the layers \['counts'\]"):
        cells_of(data, "spliced")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((0, 3), np.float32), "has 0 cells and 3 genes; filter less"),
        (np.zeros((2, 0), np.float32), "has 2 cells and 0 genes"),
        (np.zeros((2, 3), np.float32), "nothing but zeros"),
        (np.float32([[1.0, np.nan]]), "1 values that are NaN or infinite; remove"),
        (np.float32([[1.0, np.inf]]), "1 values that are NaN or infinite; remove"),
        (np.float32([[1.0, -0.5]]), "negative values"),
    ],
)
def test_refuses_unusable_values(matrix, message):
    with pytest.raises(CellsError, match=message) as caught:
        cells_of(annotated(matrix))
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_anndata(tmp_path):
    with pytest.raises(CellsError, match="expected an AnnData, got ndarray"):
        cells_of(MATRIX)
    with pytest.raises(CellsError, match="no such file"):
        read_cells(tmp_path / "missing.h5ad")
    text = tmp_path / "text.h5ad"
    text.write_text("gene,cell\n")
    with pytest.raises(CellsError, match="not an AnnData file") as caught:
        read_cells(text)
    assert "\n" not in str(caught.value)


def test_reads_a_file(tmp_path):
    annotated(scipy_sparse.csr_matrix(MATRIX)).write_h5ad(tmp_path / "cells.h5ad")
    cells = read_cells(tmp_path / "cells.h5ad")
    assert cells.source == "cells.h5ad: X"
    np.testing.assert_array_equal(cells.values.to_dense().numpy(), MATRIX)


def test_example_cells():
    pytest.importorskip("scanpy", reason="the example cells come with scanpy")
    cells = example_cells()
    assert cells.values.shape == (700, 765)
    assert 0.3 < cells.density < 0.35
    assert "CD3D" in cells.genes


@pytest.mark.parametrize("name", ["pbmc3k_counts_labelled", "paul15_counts"])
def test_reads_real_counts(name):
    path = DATA / f"{name}.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    cells = read_cells(path)
    counts = cells.values.values()
    assert torch.equal(counts, counts.round())
