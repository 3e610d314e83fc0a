"""From AnnData to cells: what is taken, what is said about it, and which files are refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
scipy_sparse = pytest.importorskip("scipy.sparse")

from scmam.data import from_anndata, open_cells  # noqa: E402
from scmam.errors import CellsError  # noqa: E402
from scmam.sequences import expression  # noqa: E402
from scmam.settings import Data  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
COUNTS = np.random.default_rng(0).poisson(0.8, (60, 120)).astype(np.float32)
TOTALS = COUNTS.sum(axis=1)
LABELS = np.array(["B", "T", "NK"])[np.arange(60) % 3]


def annotated(matrix=COUNTS, *, raw=None, layers=(), genes=None, **columns):
    """An AnnData with gene names and the given columns of .obs."""
    data = anndata.AnnData(matrix)
    data.var_names = [f"G{i}" for i in range(matrix.shape[1])] if genes is None else genes
    for name, values in columns.items():
        data.obs[name] = values
    for name, layer in dict(layers).items():
        data.layers[name] = layer
    if raw is not None:
        data.raw = anndata.AnnData(raw, var=data.var)
    return data


def log_normalised(counts=COUNTS, totals=None, target=1e4):
    return np.log1p(
        counts / (counts.sum(axis=1) if totals is None else totals)[:, None] * target
    ).astype(np.float32)


def dense(cells):
    return cells.counts.whole().toarray()


def refused(match, data, settings=None, **options):
    with pytest.raises(CellsError, match=match) as caught:
        from_anndata(data, settings or Data(), **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def write(tmp_path):
    def written(data, name="cells.h5ad"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's, of names that are not unique and the like
            data.write_h5ad(tmp_path / name)
        return tmp_path / name

    return written


# Where the counts are


@pytest.mark.parametrize(
    "layout", [np.asarray, scipy_sparse.csr_matrix, scipy_sparse.csc_matrix, scipy_sparse.csr_array]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16])
def test_takes_every_layout_and_type(layout, dtype):
    cells = from_anndata(annotated(layout(COUNTS.astype(dtype))))
    rows = cells.counts.take(np.array([3, 0, 3]))
    assert rows.format == "csr"
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), COUNTS[[3, 0, 3]])
    assert cells.density == pytest.approx(np.count_nonzero(COUNTS) / COUNTS.size)
    np.testing.assert_array_equal(cells.depth, TOTALS)


def test_stored_zeros_are_dropped_and_duplicates_added():
    matrix = scipy_sparse.csr_matrix(
        (np.float32([0.0, 1.0, 2.0, 1.0]), [0, 1, 1, 0], [0, 1, 4]), shape=(2, 2)
    )
    rows = from_anndata(annotated(matrix)).counts.whole()
    assert rows.data.tolist() == [1.0, 3.0]  # and the first cell, which has nothing, is gone
    assert rows.indices.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (annotated(-COUNTS, raw=COUNTS), ".raw.X"),
        (annotated(COUNTS, raw=log_normalised()), "X"),
        (annotated(log_normalised(), layers={"counts": COUNTS}), "layers['counts']"),
        (annotated(log_normalised(), layers={"Raw_Counts": COUNTS}), "layers['Raw_Counts']"),
        (annotated(COUNTS, raw=COUNTS, layers={"counts": COUNTS}), "layers['counts']"),
        (annotated(log_normalised(), layers={"velocity": COUNTS}), "layers['velocity']"),
    ],
)
def test_finds_the_counts_and_says_where(data, source):
    cells = from_anndata(data)
    assert cells.source == f"AnnData: {source}"
    assert cells.unit == "counts"
    assert cells.notes[0].startswith(f"{source} holds raw counts, whole numbers (non-zeros 1 to ")
    np.testing.assert_array_equal(dense(cells), COUNTS)


def test_a_part_of_the_counts_is_not_taken_for_them():
    cells = from_anndata(annotated(log_normalised(), layers={"spliced": COUNTS}))
    assert cells.source == "AnnData: X"
    assert cells.unit == "counts per 10k (no raw counts there)"
    assert (
        from_anndata(
            annotated(log_normalised(), layers={"spliced": COUNTS}), Data(counts="spliced")
        ).unit
        == "counts"
    )


def test_fractions_further_on_are_seen_too():
    late = np.tile(COUNTS, (50, 1))
    late[2411, 5] = 0.5  # between the blocks of the first look
    cells = from_anndata(annotated(late))
    assert cells.unit == "counts (not whole numbers)"
    assert cells.notes[0].endswith(
        "; they are taken as counts, as expected or corrected counts are."
    )


def test_the_depth_is_a_column_of_totals_where_it_can_be():
    kept = from_anndata(annotated(COUNTS[:, :40], n_counts=TOTALS))
    np.testing.assert_array_equal(kept.depth, TOTALS)
    assert "The depth of a cell is obs['n_counts']." in kept.notes
    wrong = from_anndata(annotated(COUNTS, total_counts=TOTALS - 1, nCount_RNA=TOTALS + 5))
    np.testing.assert_array_equal(wrong.depth, TOTALS + 5)
    none = from_anndata(annotated(COUNTS, total_counts=TOTALS - 1))
    np.testing.assert_array_equal(none.depth, TOTALS)
    assert any("total_counts of .obs is smaller for some cells" in note for note in none.notes)


# Counts recovered


def test_counts_are_recovered_when_some_genes_are_missing():
    cells = from_anndata(annotated(log_normalised()[:, :40], n_counts=TOTALS))
    np.testing.assert_array_equal(dense(cells), COUNTS[:, :40])
    np.testing.assert_array_equal(cells.depth, TOTALS)
    assert cells.unit == "counts recovered from log1p of counts per 10k"
    assert (
        "recovered with the totals in obs['n_counts']: before rounding no value is further than"
        in cells.notes[0]
    )


@pytest.mark.parametrize("target", [1e4, 1e6, 321.0])
def test_the_sum_that_was_normalised_to_is_found(target):
    cells = from_anndata(annotated(log_normalised(target=target), nUMI=TOTALS))
    np.testing.assert_array_equal(dense(cells), COUNTS)


def test_normalised_counts_without_a_logarithm_and_another_base():
    linear = from_anndata(annotated(COUNTS / TOTALS[:, None] * 1e4, n_counts=TOTALS))
    np.testing.assert_array_equal(dense(linear), COUNTS)
    assert linear.unit == "counts recovered from normalised counts"
    binary = annotated(log_normalised() / np.float32(np.log(2)), n_counts=TOTALS)
    binary.uns["log1p"] = {"base": 2}
    np.testing.assert_array_equal(dense(from_anndata(binary)), COUNTS)


def test_totals_that_do_not_fit_recover_nothing():
    cells = from_anndata(annotated(log_normalised(), n_counts=TOTALS * 1.37))
    assert cells.unit == "counts per 10k (no raw counts there)"
    assert any("(with obs['n_counts'] values come out up to 0.4" in note for note in cells.notes)


def test_without_totals_the_values_are_counts_per_10k():
    cells = from_anndata(annotated(log_normalised()))
    np.testing.assert_allclose(dense(cells), COUNTS / TOTALS[:, None] * 1e4, rtol=1e-5)
    np.testing.assert_array_equal(cells.depth, np.full(60, 1e4, np.float32))
    assert any(
        "since .obs has no column with the cells' totals; the values are taken as counts per"
        " 10,000, and" in n
        for n in cells.notes
    )
    batch = cells.batch(np.arange(60))
    seen = expression(batch.counts, batch.depth, "log1p_cp10k")
    np.testing.assert_allclose(seen, log_normalised(), rtol=1e-4)
    partial = from_anndata(annotated(log_normalised()[:, :40]))
    assert any(
        "which cannot be told from these values: not all genes are there" in note
        for note in partial.notes
    )


# Refused values


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((0, 3), np.float32), "has no cells"),
        (np.zeros((2, 0), np.float32), "has 2 cells but no genes"),
        (np.zeros((2, 3), np.float32), "X holds nothing but zeros; take another file"),
        (
            np.float32([[1.0, np.nan], [np.inf, 1]]),
            "X holds 2 values that are NaN or infinite; remove",
        ),
        (
            np.float32([[1.0, -0.5]]),
            r"X holds negative values \(smallest -0.5\), so it was scaled; counts cannot be"
            r" recovered from scaled values",
        ),
    ],
)
def test_refuses_unusable_values(matrix, message):
    refused(message, annotated(matrix))


def test_says_where_unscaled_values_are():
    data = annotated(-COUNTS, raw=log_normalised(), layers={"scaled": -COUNTS, "umi": COUNTS})
    refused(
        r"X holds negative values .* set data.counts to umi or raw, or to auto",
        data,
        Data(counts="X"),
    )
    assert from_anndata(data).source == "AnnData: layers['umi']"
    refused(
        "data.counts names 'spliced', which is not there; there are X, raw, scaled, umi, or auto",
        data,
        Data(counts="spliced"),
    )
    empty = anndata.AnnData(obs=data.obs, var=data.var)
    refused("holds no values, neither X nor .raw nor a layer", empty)


def test_refuses_what_is_no_anndata(tmp_path):
    refused("expected an AnnData, got ndarray", COUNTS)
    with pytest.raises(
        CellsError, match=r"missing\.h5ad: no such file; give the path of an \.h5ad file"
    ):
        open_cells(Data(path=tmp_path / "missing.h5ad"))
    text = tmp_path / "text.h5ad"
    text.write_text("gene,cell\n")
    with pytest.raises(CellsError, match="not an AnnData file") as caught:
        open_cells(Data(path=text))
    assert "\n" not in str(caught.value)
    import h5py

    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["values"] = np.arange(3)
    with pytest.raises(CellsError, match="no tables obs and var in it"):
        open_cells(Data(path=tmp_path / "other.h5ad"))


def test_a_damaged_file_is_one_line(write):
    path = write(annotated(scipy_sparse.csr_matrix(np.tile(COUNTS, (40, 1)))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CellsError, match="not an AnnData file") as caught:
        open_cells(Data(path=path))
    assert "\n" not in str(caught.value)


# Genes


def test_gene_names_have_to_be_there_and_unique():
    refused(
        r"2 gene names occur more than once \(G0 2 times, G1 3 times\)",
        annotated(COUNTS[:, :6], genes=["G0", "G0", "G1", "G1", "G1", "G2"]),
    )
    refused("2 of 4 genes have no name", annotated(COUNTS[:, :4], genes=["G0", "", "nan", "G3"]))
    numbered = from_anndata(anndata.AnnData(COUNTS))
    assert any("numbers for names" in note for note in numbered.notes)


def test_a_vocabulary_fixes_the_genes_and_their_order(tmp_path):
    vocabulary = tmp_path / "genes.txt"
    names = [f"G{i}" for i in range(99, 29, -1)] + ["ABSENT1", "ABSENT2"]
    vocabulary.write_text("\n".join([*names, "", ""]))
    cells = from_anndata(annotated(), Data(genes="vocabulary", vocabulary=vocabulary))
    assert cells.genes == tuple(names)
    np.testing.assert_array_equal(dense(cells)[:, :70], COUNTS[:, 99:29:-1])
    assert not dense(cells)[:, 70:].any()
    np.testing.assert_array_equal(cells.depth, TOTALS)
    assert (
        "70 of the 72 genes of genes.txt are in the file; the other 2 are taken to be zero in"
        " every cell." in cells.notes
    )
    rows = cells.counts.take(np.arange(5))
    assert rows.has_sorted_indices


def test_a_vocabulary_that_shares_few_genes_is_refused(tmp_path):
    vocabulary = tmp_path / "genes.txt"
    settings = Data(genes="vocabulary", vocabulary=vocabulary)
    vocabulary.write_text("\n".join([f"G{i}" for i in range(40)] + [f"H{i}" for i in range(20)]))
    refused(
        r"only 40 of the 60 genes of genes.txt are in the file \(it has G0, G1, G2, the vocabulary"
        r" G0, G1, G2\)",
        annotated(),
        settings,
    )
    vocabulary.write_text("\n".join([f"G{i}" for i in range(60)] + [f"H{i}" for i in range(1000)]))
    refused("only 60 of the 1060 genes", annotated(), settings)
    vocabulary.write_text("\n".join(f"Symbol{i}" for i in range(120)))
    data = annotated()
    data.var["feature_name"] = [f"Symbol{i}" for i in range(120)]
    refused(
        r"only 0 of the 120 .*its names are in \.var\['feature_name'\]: set adata\.var_names",
        data,
        settings,
    )
    vocabulary.write_text("\n".join(f"G{i}" for i in range(10)))
    assert from_anndata(annotated(), settings).num_genes == 10  # few, but all of them


def test_vocabularies_that_cannot_be_read(tmp_path):
    vocabulary = tmp_path / "genes.txt"
    settings = Data(genes="vocabulary", vocabulary=vocabulary)
    refused("genes.txt: no such file; give data.vocabulary a text file", annotated(), settings)
    vocabulary.write_text("\n\n")
    refused("holds no gene names", annotated(), settings)
    vocabulary.write_text("G1\nG2\nG1\n")
    refused(r"1 gene names occur more than once \(G1\)", annotated(), settings)
    vocabulary.write_bytes(b"\xff\xfe\x00")
    refused("not a text file", annotated(), settings)
    vocabulary.write_text("G1\n")
    refused(
        "data.min_cells: drops genes, but data.vocabulary",
        annotated(),
        settings.model_copy(update={"min_cells": 3}),
    )


def test_variable_genes_are_those_that_vary():
    pytest.importorskip("scanpy", reason="scanpy chooses them")
    counts = np.random.default_rng(1).poisson(3.0, (90, 120)).astype(np.float32)
    varying = [5, 17, 60, 99]
    counts[:45, varying] *= 6
    cells = from_anndata(annotated(counts), Data(genes="variable", num_genes=4))
    assert cells.genes == tuple(f"G{i}" for i in varying)
    np.testing.assert_array_equal(dense(cells), counts[:, varying])
    assert (
        "4 of 120 genes are taken, the most variable ones (scanpy, variance of Pearson residuals)."
        in cells.notes
    )
    per_10k = from_anndata(annotated(log_normalised(counts)), Data(genes="variable", num_genes=4))
    assert len(per_10k.genes) == 4
    assert any("dispersion of log1p" in note for note in per_10k.notes)
    assert from_anndata(annotated(counts), Data(genes="variable", num_genes=500)).num_genes == 120


# Filters


def test_filters_drop_and_say_how_many():
    counts = COUNTS.copy()
    counts[4] = 0
    counts[7, 10:] = 0
    counts[:, 20] = 0
    counts[:2, 20] = 1
    cells = from_anndata(annotated(counts), Data(min_genes=15, min_cells=3))
    assert cells.cell_ids.tolist() == [i for i in range(60) if i not in (4, 7)]
    assert "G20" not in cells.genes
    assert cells.num_genes == 119
    assert cells.notes[2:] == (
        "No labels are used: data.label is not given, and cannot be told from the names of .obs"
        " (none looks like it among no columns).",
        "1 cells are dropped: they have no counts at all.",
        "1 cells are dropped: fewer than 15 non-zero genes (data.min_genes).",
        "1 genes are dropped: not zero in fewer than 3 cells (data.min_cells).",
    )
    np.testing.assert_array_equal(cells.batch([4]).counts[0], np.delete(counts[5], 20))
    np.testing.assert_array_equal(cells.batch([4]).depth, counts[5].sum())
    refused("no cell is left of 60. .*Set data.min_genes", annotated(), Data(min_genes=121))
    refused("no gene is left of 120: none is not zero in 61 cells", annotated(), Data(min_cells=61))


@pytest.mark.parametrize("prefix", ["MT-", "mt-"])
def test_mitochondrial_cells_are_dropped(prefix):
    counts = np.maximum(COUNTS, 1)
    counts[9, :2] = 500
    genes = [f"{prefix}{i}" for i in range(2)] + [f"G{i}" for i in range(118)]
    cells = from_anndata(annotated(counts, genes=genes), Data(max_mito=0.5))
    assert 9 not in cells.cell_ids
    assert len(cells) == 59
    refused(
        r"data.max_mito needs genes named MT-\*, and there are none \(names are G0, G1, G2\)",
        annotated(),
        Data(max_mito=0.5),
    )


def test_small_classes_are_dropped_and_named():
    labels = np.where(np.arange(60) < 3, "rare", LABELS)
    cells = from_anndata(annotated(cell_type=labels), Data(min_class=4))
    assert cells.classes == ("B", "NK", "T")
    assert len(cells) == 57
    assert (
        "3 cells are dropped: their classes have fewer than 4 cells (data.min_class): rare (3)."
        in cells.notes
    )


# Labels and donors


def test_labels_are_found_by_name_where_one_fits():
    data = annotated(Cell_Type=LABELS, phase=LABELS[::-1], louvain=LABELS, sample=LABELS)
    cells = from_anndata(data, need_label=True)
    assert cells.label == "Cell_Type"
    assert cells.classes == ("B", "NK", "T")
    assert cells.codes[:4].tolist() == [0, 2, 1, 0]
    assert cells.class_sizes == {"B": 20, "NK": 20, "T": 20}
    assert from_anndata(annotated(louvain=np.arange(60) % 4, sample=LABELS)).label == "louvain"
    assert from_anndata(annotated(mine=LABELS, batch=LABELS)).label == "mine"
    assert from_anndata(data, Data(label="phase")).label == "phase"


def test_labels_that_cannot_be_told_are_listed():
    data = annotated(leiden=LABELS, louvain=LABELS, n_genes=np.arange(60))
    refused(
        r"data.label is not given, and cannot be told .* set it to a column: leiden, louvain$",
        data,
        need_label=True,
    )
    assert from_anndata(data).label is None
    refused("none looks like it among n_genes", annotated(n_genes=np.arange(60)), Data(min_class=3))
    refused(
        r"data.label names 'celltype', which is no column of .obs; did you mean 'cell_type'\?"
        r" There are cell_type, batch",
        annotated(batch=LABELS, cell_type=LABELS),
        Data(label="celltype"),
    )
    refused(
        "data.donor names 'donor', which is no column of .obs; there are cell_type",
        annotated(cell_type=LABELS),
        Data(donor="donor"),
    )


def test_labels_have_to_be_classes():
    refused(
        r"obs\['cell_type'\] has one class, 'B'",
        annotated(cell_type="B"),
        Data(label="cell_type"),
        need_label=True,
    )
    refused(
        r"obs\['x'\] has no labels",
        annotated(x=np.full(60, np.nan)),
        Data(label="x"),
        need_label=True,
    )
    refused(
        r"obs\['x'\] has 60 different values in 60 cells",
        annotated(x=np.arange(60) / 7),
        Data(label="x"),
        need_label=True,
    )


def test_missing_labels_and_numbers_as_labels():
    labels = np.where(np.arange(60) < 5, None, LABELS)
    cells = from_anndata(annotated(cell_type=labels), need_label=True)
    assert cells.codes[:6].tolist() == [-1] * 5 + [1]
    assert cells.labels[0] == ""
    assert from_anndata(
        annotated(cell_type=np.arange(60) % 2 * 1.0), Data(label="cell_type")
    ).classes == ("0", "1")


def test_donors_are_read_and_must_be_whole():
    cells = from_anndata(annotated(cell_type=LABELS, donor=LABELS), Data(donor="donor"))
    np.testing.assert_array_equal(cells.donors, LABELS)
    refused(
        r"obs\['donor'\] is missing for 2 cells",
        annotated(donor=np.where(np.arange(60) < 2, None, LABELS)),
        Data(donor="donor"),
    )


# Batches and subsets


def test_a_batch_holds_what_a_model_needs():
    cells = from_anndata(annotated(cell_type=LABELS))
    batch = cells.batch([7, 2, 2])
    np.testing.assert_array_equal(batch.counts, COUNTS[[7, 2, 2]])
    assert [x.dtype for x in batch] == [torch.float32, torch.float32, torch.int64, torch.int64]
    assert batch.cell_ids.tolist() == [7, 2, 2]
    assert batch.labels.tolist() == [2, 1, 1]


def test_a_subset_keeps_ids_and_the_meaning_of_codes():
    cells = from_anndata(annotated(cell_type=LABELS, donor=LABELS), Data(donor="donor"))
    part = cells.subset(np.flatnonzero(LABELS != "B")).subset(np.array([5, 0]))
    assert part.cell_ids.tolist() == [8, 1]
    assert part.classes == cells.classes
    assert part.codes.tolist() == cells.codes[[8, 1]].tolist()
    assert part.donors.tolist() == LABELS[[8, 1]].tolist()
    np.testing.assert_array_equal(dense(part), COUNTS[[8, 1]])
    np.testing.assert_array_equal(part.depth, TOTALS[[8, 1]])


# Files


def everything(cells):
    return (
        dense(cells).tolist(),
        cells.depth.tolist(),
        cells.cell_ids.tolist(),
        cells.genes,
        cells.source,
        cells.unit,
        cells.classes,
    )


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("place", ["X", "raw", "counts", "recovered", "dense"])
def test_backed_and_in_memory_are_the_same(write, place, compression):
    sparse = scipy_sparse.csr_matrix(COUNTS)
    data = {
        "X": lambda: annotated(sparse),
        "raw": lambda: annotated(-COUNTS, raw=sparse),
        "counts": lambda: annotated(-COUNTS, layers={"counts": sparse}),
        "recovered": lambda: annotated(scipy_sparse.csr_matrix(log_normalised()), n_counts=TOTALS),
        "dense": lambda: annotated(COUNTS),
    }[place]()
    data.obs["cell_type"] = LABELS
    data.write_h5ad(write(data), compression=compression)
    settings = Data(path=write(data), min_cells=20, min_genes=60, max_mito=None)
    backed = open_cells(settings.model_copy(update={"backed": "always"}), need_label=True)
    loaded = open_cells(settings, need_label=True)
    assert not backed.counts.in_memory
    assert loaded.counts.in_memory
    assert everything(backed) == everything(loaded)
    assert "Rows are read from the file when they are needed." in backed.notes
    indices = np.random.default_rng(0).integers(0, len(backed), 50)
    for one, other in zip(backed.batch(indices), loaded.batch(indices), strict=True):
        assert torch.equal(one, other)
    assert backed.density == loaded.density


def test_backed_refuses_what_cannot_be_read_by_cells(write):
    path = write(annotated(scipy_sparse.csc_matrix(COUNTS)))
    with pytest.raises(
        CellsError, match=r"X is stored by genes \(CSC\).*tocsr.*or set data.backed to never"
    ):
        open_cells(Data(path=path, backed="always"))
    np.testing.assert_array_equal(dense(open_cells(Data(path=path))), COUNTS)


def test_a_file_that_changes_under_way_is_one_line(write):
    cells = open_cells(
        Data(path=write(annotated(scipy_sparse.csr_matrix(COUNTS))), backed="always")
    )
    cells.counts.close()
    write(annotated(scipy_sparse.csr_matrix(COUNTS[:5, :5]))).write_bytes(b"no longer there")
    with pytest.raises(
        CellsError, match=r"cells\.h5ad: X cannot be read .*the file is damaged or has changed"
    ) as caught:
        cells.batch([1, 3])
    assert "\n" not in str(caught.value)


# Real cells


def test_the_example_cells():
    pytest.importorskip("scanpy", reason="the example cells come with scanpy")
    cells = open_cells(need_label=True)
    assert cells.counts.shape == (700, 765)
    assert cells.source == "pbmc68k_reduced: .raw.X"
    assert cells.unit == "counts recovered from log1p of counts per 10k"
    assert cells.label == "bulk_labels"
    assert len(cells.classes) == 10
    assert cells.class_sizes["Dendritic"] == 240
    assert 0.3 < cells.density < 0.35
    counts = dense(cells)
    assert (counts == counts.round()).all()
    assert (counts.sum(axis=1) < cells.depth).all()  # 765 genes of many
    assert "CD3D" in cells.genes


def test_an_old_file_cannot_be_backed():
    scanpy = pytest.importorskip("scanpy", reason="the example cells come with scanpy")
    path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    if not path.is_file():
        pytest.skip("this scanpy keeps its cells elsewhere")
    import h5py

    with h5py.File(path) as file:
        if "raw.X" not in file:
            pytest.skip("this scanpy has them in the current layout")
    with pytest.raises(
        CellsError, match="the layout of an old anndata, which can only be read whole"
    ):
        open_cells(Data(path=path, backed="always"))


@pytest.mark.parametrize(
    ("name", "label", "classes", "depth"),
    [
        ("pbmc3k_counts_labelled", "cell_type", 8, "n_counts"),
        ("paul15_counts", "paul15_clusters", 19, None),
    ],
)
def test_reads_real_counts(name, label, classes, depth):
    path = DATA / f"{name}.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    cells = open_cells(Data(path=path, backed="always"), need_label=True)
    rows = cells.counts.take(np.arange(200))
    assert (rows.data == rows.data.round()).all()
    assert cells.unit == "counts"
    assert cells.label == label
    assert len(cells.classes) == classes
    assert any(
        (f"obs[{depth!r}]" if depth else "the sum of its counts") in note for note in cells.notes
    )


def test_one_files_genes_are_a_vocabulary_for_another(tmp_path):
    path = DATA / "pbmc3k_counts_labelled.h5ad"
    pytest.importorskip("scanpy", reason="the example cells come with scanpy")
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    vocabulary = tmp_path / "genes.txt"
    vocabulary.write_text("\n".join(open_cells().genes))
    cells = open_cells(Data(path=path, genes="vocabulary", vocabulary=vocabulary))
    assert cells.num_genes == 765
    assert (
        "763 of the 765 genes of genes.txt are in the file; the other 2 are taken to be zero in"
        " every cell." in cells.notes
    )
