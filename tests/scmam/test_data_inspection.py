"""What is said of a file before anything runs on it."""

import json
from pathlib import Path

import numpy as np
import pytest

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
pandas = pytest.importorskip("pandas")
scipy_sparse = pytest.importorskip("scipy.sparse")

from scmam.data import inspect  # noqa: E402
from scmam.data.columns import categorical_columns  # noqa: E402
from scmam.data.inspection import DENSE, GENES, SPARSE  # noqa: E402
from scmam.errors import CellsError  # noqa: E402
from scmam.settings import Data  # noqa: E402

COUNTS = np.random.default_rng(0).poisson(0.8, (40, 25)).astype(np.float32)
LABELS = np.array(["B", "T"])[np.arange(40) % 2]


@pytest.fixture
def saved(tmp_path):
    def write(matrix=COUNTS, *, layers=(), genes=None, **columns):
        data = anndata.AnnData(matrix)
        data.var_names = [f"G{i}" for i in range(25)] if genes is None else genes
        for name, values in columns.items():
            data.obs[name] = values
        for name, layer in dict(layers).items():
            data.layers[name] = layer
        data.write_h5ad(tmp_path / "cells.h5ad")
        return tmp_path / "cells.h5ad"

    return write


def test_says_what_there_is_and_what_is_taken(saved):
    layers = {"counts": scipy_sparse.csr_matrix(COUNTS), "spliced": COUNTS // 2}
    seen = inspect(saved(-COUNTS, layers=layers, cell_type=LABELS, donor=np.arange(40) // 10))
    assert (seen.name, seen.cells, seen.genes, seen.counts) == ("cells.h5ad", 40, 25, "counts")
    assert [(place.where, place.storage, place.taken) for place in seen.places] == [
        ("layers['counts']", "csr", True),
        ("X", "dense", False),
        ("layers['spliced']", "dense", False),
    ]
    assert seen.density == pytest.approx(np.count_nonzero(COUNTS) / COUNTS.size)
    assert seen.depth == pytest.approx(np.quantile(COUNTS.sum(axis=1), [0, 0.25, 0.5, 0.75, 1]))
    assert seen.detected == pytest.approx(
        np.quantile((COUNTS > 0).sum(axis=1), [0, 0.25, 0.5, 0.75, 1])
    )
    assert seen.variable_density == seen.density  # there are fewer genes than would be chosen
    assert seen.label == "cell_type"
    assert seen.labels == {"cell_type": {"B": 20, "T": 20}}
    assert seen.donors == {"donor": {"0": 10, "1": 10, "2": 10, "3": 10}}
    assert not seen.warnings


@pytest.mark.parametrize(
    ("density", "said"),
    [(0.1, "hide few zeros"), (0.28, "no set as sparse"), (0.5, "Keep the default")],
)
def test_advises_a_masking_by_how_sparse_the_variable_genes_are(saved, density, said):
    counts = np.zeros((40, 400), dtype=np.float32)
    counts[:, :100] = np.random.default_rng(0).random((40, 100)) < density  # the others are zero
    path = saved(counts, genes=[f"G{i}" for i in range(400)])
    seen = inspect(path)
    assert seen.variable_density == pytest.approx(np.count_nonzero(counts) / (40 * 300))
    dense = (np.random.default_rng(0).random((40, 400)) < density).astype(np.float32)
    assert said in inspect(saved(dense, genes=[f"G{i}" for i in range(400)])).masking


def test_the_advice_is_what_the_committed_benchmark_says():
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "maskings"
    runs, summary = (
        pandas.read_csv(results / name).query(f"genes == {GENES} and arm == '50-tenth'")
        for name in ("runs.csv", "summary.csv")
    )
    masks = runs[runs.part == "masks"].pivot_table(index="data", columns="metric", values="value")
    of_all, zeros = masks.hidden, masks.hidden_zero
    density = (of_all - zeros) / (masks.hidden_nonzero - zeros)  # what the masks say of the values
    probe = summary.query("metric == 'probe' and part == 'rest' and against == 'uniform'")
    gain = probe.set_index("data").difference
    assert (density <= SPARSE).sum() == 3
    assert (density >= DENSE).sum() == 2
    assert (gain[density <= SPARSE] > 0).all()
    assert (gain[density >= DENSE] <= 0).all()


def test_as_text_and_json(saved):
    seen = inspect(saved(cell_type=LABELS))
    text = seen.as_text()
    assert text.startswith("cells.h5ad: 40 cells, 25 genes\n")
    assert " * X (40 x 25, dense, 0 MiB) holds raw counts, whole numbers" in text
    assert " * cell_type: 2 values: B 20, T 20" in text
    assert "Columns that may be donors or batches\n   none" in text
    assert json.loads(json.dumps(seen.as_dict()))["depth"] == list(seen.depth)


def test_what_stands_in_the_way_is_a_warning_not_an_end(saved):
    scaled = inspect(saved(-COUNTS, cell_type=LABELS))
    assert not scaled.usable
    assert scaled.warnings[0].startswith("Not usable as it is. cells.h5ad: X holds negative values")
    assert "Counts:" not in scaled.as_text()
    doubled = inspect(saved(genes=["G"] * 25, cell_type=LABELS))
    assert any(
        "1 gene names occur more than once (G 25 times)" in warning for warning in doubled.warnings
    )


def test_warns_of_labels_that_will_not_do(saved):
    labels = np.where(np.arange(40) < 3, "rare", np.where(np.arange(40) < 6, None, LABELS))
    warned = inspect(saved(cell_type=labels)).warnings
    assert (
        "Classes too small for 5 folds: rare (3); set data.min_class to 5 to drop them." in warned
    )
    assert (
        "3 cells have no label in obs['cell_type']; they are left out of the evaluation." in warned
    )
    assert any(
        "data.label is not given" in warning and "Evaluation needs it" in warning
        for warning in inspect(saved()).warnings
    )
    assert (
        "obs['cell_type'] has 1 class; evaluation needs at least two."
        in inspect(saved(cell_type="B"), Data(label="cell_type")).warnings
    )


def test_warns_of_cells_without_counts_and_genes_without_names(saved):
    counts = COUNTS.copy()
    counts[3] = 0
    warned = inspect(saved(counts, genes=[str(i) for i in range(25)], cell_type=LABELS)).warnings
    assert "1 cells have no counts; they will be dropped." in warned
    assert any("numbers for names" in warning for warning in warned)


def test_wrong_names_are_errors(saved):
    path = saved(cell_type=LABELS)
    with pytest.raises(
        CellsError, match=r"data\.counts names 'umi', which is not there; there are X, or auto"
    ):
        inspect(path, Data(counts="umi"))
    with pytest.raises(CellsError, match=r"data\.label names 'x'"):
        inspect(path, Data(label="x"))
    with pytest.raises(CellsError, match="no such file"):
        inspect(path.with_name("none.h5ad"))


def test_the_example_cells():
    pytest.importorskip("scanpy", reason="the example cells come with scanpy")
    seen = inspect()
    assert (seen.cells, seen.genes, seen.label) == (700, 765, "bulk_labels")
    assert seen.counts == "counts recovered from log1p of counts per 10k"
    assert seen.depth[2] == pytest.approx(3334, abs=1)
    assert list(seen.labels) == ["bulk_labels", "louvain"]
    assert not seen.warnings


def test_a_column_of_matrices_is_no_label():
    import pandas

    matrices = [scipy_sparse.csr_matrix((1, 2))] * 10
    obs = pandas.DataFrame({"celltype": ["a", "b"] * 5, "nested": matrices})
    assert categorical_columns(obs) == ["celltype"]
