"""Cells that stream from files: order and place, workers and processes, memory, several files, and
other loaders.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
h5py = pytest.importorskip("h5py", reason="the single-cell layer is not installed")
pytest.importorskip("lightning", reason="pretraining is Lightning's")
pytest.importorskip("scanpy", reason="the real cells are scanpy's")
scipy_sparse = pytest.importorskip("scipy.sparse")

from scmam.config import load_config  # noqa: E402
from scmam.data import (  # noqa: E402
    CellLoader,
    Cells,
    cell_batch,
    file_matrix,
    inspect,
    loader,
    matrix,
    open_cells,
    reading,
)
from scmam.errors import CellsError, ConfigError  # noqa: E402
from scmam.objective import build_pretraining  # noqa: E402
from scmam.runs import Run, open_run  # noqa: E402
from scmam.sequences import CellBatch  # noqa: E402
from scmam.settings import Data  # noqa: E402
from scmam.training import pretrain  # noqa: E402
from scmam.training.module import PretrainingModule  # noqa: E402

from benchmarks import large_file  # noqa: E402
from tests.examples import run_examples  # noqa: E402
from tests.scmam.small import SMALL_MODEL  # noqa: E402

ROOT = Path(__file__).parents[2]
CELLS, GENES = 20_000, 5_000
BLOCK, BATCH = 16, 64
SMALL = {
    **SMALL_MODEL,
    "training.device": "cpu",
    "training.batch_size": 4,
    "training.steps": 6,
    "training.validate_every": 3,
    "training.validation": 0.05,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty thousand cells, uncompressed and compressed."""
    folder = tmp_path_factory.mktemp("large")
    paths = {name: folder / f"{name}.h5ad" for name in large_file.COMPRESSIONS}
    large_file.write_files(paths, CELLS, GENES)
    return paths


@pytest.fixture(scope="module")
def counts(files: dict[str, Path]) -> scipy_sparse.csr_matrix:
    return anndata.read_h5ad(files["none"]).X


@pytest.fixture(scope="module")
def backed(files: dict[str, Path]) -> Cells:
    return open_cells(Data(path=files["none"], backed="always", shuffle_block=BLOCK))


@pytest.fixture
def real(tmp_path: Path) -> tuple[Path, anndata.AnnData]:
    """A folder with real cells in three files, laid out differently and their genes in another
    order, and all of them as they were.
    """
    source = open_cells(Data())
    whole = anndata.AnnData(source.counts.whole())
    whole.obs_names, whole.var_names = source.names, source.genes
    whole.obs["bulk_labels"] = source.labels
    folder = tmp_path / "atlas"
    folder.mkdir()
    whole[:300].copy().write_h5ad(folder / "a.h5ad", compression="gzip")
    whole[300:450, np.random.default_rng(0).permutation(whole.n_vars)].copy().write_h5ad(
        folder / "b.h5ad"
    )
    rest = whole[450:].copy()
    rest.X = rest.X.toarray()
    rest.write_h5ad(folder / "c.h5ad")
    return folder, whole


def ids(batches: object) -> list[list[int]]:
    return [batch.cell_ids.tolist() for batch in batches]


def small_run(folder: Path, **changes: object) -> Run:
    settings = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return pretrain(load_config(None, settings), folder, progress=False)


# Reading


@pytest.mark.parametrize("compression", large_file.COMPRESSIONS)
def test_batches_have_the_counts_of_their_cells(files, counts, compression):
    cells = open_cells(Data(path=files[compression], backed="always", shuffle_block=BLOCK))
    for batch in islice(CellLoader(cells, BATCH, sparse=True), 0, 130, 10):  # of three requests
        assert batch.counts.layout == torch.sparse_csr
        np.testing.assert_array_equal(
            batch.counts.to_dense(), counts[batch.cell_ids.numpy()].toarray()
        )
        assert torch.equal(batch.depth, batch.counts.to_dense().sum(dim=1))


@pytest.mark.parametrize("storage", ["csr", "dense"])
def test_rows_in_any_order_with_repetitions_gaps_and_none_at_all(
    tmp_path, counts, storage, monkeypatch
):
    part = counts[:200].copy()
    part.data[part.indptr[7] : part.indptr[8]] = 0  # a cell without counts
    part.eliminate_zeros()
    anndata.AnnData(part if storage == "csr" else part.toarray()).write_h5ad(
        tmp_path / "cells.h5ad"
    )
    stored = file_matrix.FileMatrix(tmp_path / "cells.h5ad", "X")
    for gap in (0, 500, 10**9):
        monkeypatch.setattr(file_matrix, "GAP", gap)
        for rows in (
            [199, 0, 7, 7, 198, 0],
            [7],
            [],
            np.arange(5, 90),
            np.random.default_rng(0).integers(0, 200, 64),
        ):
            rows = np.asarray(rows, dtype=np.int64)
            np.testing.assert_array_equal(stored.take(rows).toarray(), part[rows].toarray())


def test_neighbours_are_one_request(backed, monkeypatch):
    """Sixteen cells of a block that lost one to the validation are still read at once."""
    read, requests = file_matrix._read, []
    monkeypatch.setattr(
        file_matrix,
        "_read",
        lambda dataset, first, last: requests.append(len(first)) or read(dataset, first, last),
    )
    backed.counts.take(np.r_[100:105, 106:116, 9000:9016])
    assert requests == [2, 2]  # of the values, and of their columns


def test_a_file_that_changed_under_the_loader_is_named(files, tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(files["none"].read_bytes())
    cells = open_cells(Data(path=path, backed="always", shuffle_block=BLOCK))
    cells.counts.close()
    with h5py.File(path, "r+") as file:
        file["X/indices"][1_000_000] = GENES
    with pytest.raises(
        CellsError,
        match=rf"cells\.h5ad: X cannot be read \(a column of {GENES} is numbered {GENES}\);"
        r" the file",
    ):
        ids(CellLoader(cells, BATCH, sparse=True))


def test_the_next_cells_are_read_while_these_are_used(backed, monkeypatch):
    read, begun = backed.counts.take, []
    second = threading.Event()

    def watched(request: np.ndarray) -> scipy_sparse.csr_matrix:
        begun.append(threading.current_thread().name)
        if len(begun) == 2:
            second.set()
        return read(request)

    monkeypatch.setattr(backed.counts, "take", watched)
    batches = iter(CellLoader(backed, BATCH, sparse=True))
    next(batches)
    assert second.wait(30)
    assert all(name.startswith("cells") for name in begun)
    batches.close()
    assert len(begun) <= 3


# Order


def test_the_order_is_the_same_whoever_reads(files, backed):
    in_memory = open_cells(Data(path=files["none"], backed="never", shuffle_block=BLOCK))
    first, second = (
        [batch.tolist() for batch in CellLoader(in_memory, BATCH, seed=3).order(epoch)]
        for epoch in range(2)
    )
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(CELLS))
    for workers in (0, 1, 2):
        batches = CellLoader(backed, BATCH, seed=3, sparse=True, workers=workers)
        assert ids(batches) == first
        if workers == 2:
            assert ids(batches) == second
        batches.close()


@pytest.mark.slow
def test_workers_that_are_started_afresh_open_the_file_themselves(backed):
    expected = list(islice(CellLoader(backed, BATCH, seed=3, sparse=True), 70))
    spawned = CellLoader(
        backed, BATCH, seed=3, sparse=True, workers=1, multiprocessing_context="spawn"
    )
    for batch, other in zip(spawned, expected, strict=False):
        assert torch.equal(batch.cell_ids, other.cell_ids)
        assert torch.equal(batch.counts.to_dense(), other.counts.to_dense())
    spawned.close()


def test_two_processes_read_the_steps_of_one_and_each_its_own_blocks(backed):
    single = CellLoader(backed, 2 * BATCH, seed=5).order()
    shares = [
        [
            batch.tolist()
            for batch in CellLoader(backed, BATCH, seed=5, rank=rank, world_size=2).order()
        ]
        for rank in range(2)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [
        sorted(step) for step in single
    ]
    assert sorted(chain(*shares[0], *shares[1])) == list(range(CELLS))
    window = [
        set(np.array(list(chain(*share[: loader.READ_AHEAD // (2 * BATCH)]))) // BLOCK)
        for share in shares
    ]
    # Every block, if each took every other cell.
    assert len(window[0] & window[1]) < 0.4 * len(window[0] | window[1])


def test_blocks_are_drawn_from_large_matrices_wherever_they_are(files, monkeypatch):
    path = files["none"]
    assert open_cells(Data(path=path)).block == 1
    monkeypatch.setattr(matrix, "IN_MEMORY", 2**20)
    assert {
        open_cells(Data(path=path, backed=backed)).block for backed in ("auto", "always", "never")
    } == {reading.BLOCK}
    assert open_cells(Data(path=path, shuffle_block=3)).block == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_in_the_middle_of_what_was_read_together(backed, workers):
    first, second = (
        [batch.tolist() for batch in CellLoader(backed, BATCH, seed=2).order(epoch)]
        for epoch in range(2)
    )
    interrupted = CellLoader(backed, BATCH, seed=2, sparse=True, workers=workers)
    done = 100  # 64 batches are read together
    assert ids(islice(interrupted, done)) == first[:done]
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = CellLoader(backed, BATCH, seed=2, sparse=True, workers=workers)
    resumed.load_state_dict(state)
    assert ids(resumed) == first[done:]
    assert ids(islice(resumed, 3)) == second[:3]
    interrupted.close()
    resumed.close()


def test_what_is_read_together_after_a_resumption_is_what_it_would_have_been(backed, monkeypatch):
    def requests(start: int) -> list[np.ndarray]:
        batches, asked = CellLoader(backed, BATCH, seed=2), []
        monkeypatch.setattr(batches, "_rows", lambda requests: asked.extend(requests) or iter(()))
        batches.load_state_dict({**batches.state_dict(), "position": start})
        with pytest.raises(ValueError, match="zip"):  # nothing is read
            next(iter(batches))
        return asked

    whole, rest = requests(0), requests(100)
    assert [len(request) for request in whole] == [4096] * 4 + [CELLS - 4 * 4096]
    assert len(rest[0]) == 128 * BATCH - 100 * BATCH
    assert all(np.array_equal(a, b) for a, b in zip(rest[1:], whole[2:], strict=True))


# To the kernel


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "masking.zero_ratio": 0.05,
            "masking.context_from": "visible",
            "masking.injection": "decoder",
        },
        {
            "masking.strategy": "uniform",
            "masking.injection": "encoder",
            "data.transform": "log1p_cp10k",
        },
        {"masking.strategy": "mam-embedding", "masking.zero_ratio": 0.05, "training.loss": "nb"},
    ],
)
def test_sparse_and_dense_batches_have_the_same_losses_and_gradients(changes):
    config = load_config(None, {**SMALL, "masking.corruption": "80/10/10", **changes})
    cells = open_cells(config.data)
    objective = build_pretraining(config, cells.num_genes)
    batches = [next(iter(CellLoader(cells, 16, seed=1, sparse=sparse))) for sparse in (False, True)]
    losses, gradients = [], []
    for batch in batches:
        losses.append(objective(batch, seed=1, step=2))
        wanted = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        gradients.append(torch.autograd.grad(losses[-1].total, wanted, allow_unused=True))
    for dense, sparse in zip(*losses, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-6)
    for dense, sparse in zip(*gradients, strict=True):
        assert (dense is None) == (sparse is None)
        if dense is not None:
            torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective.features(batches[1]), objective.features(batches[0]))


def test_training_gives_the_kernel_csr(backed, tmp_path, monkeypatch):
    import mam_kernels as mam

    layouts = []
    forward = mam.MultinomialAttentionMasking.forward
    monkeypatch.setattr(
        mam.MultinomialAttentionMasking,
        "forward",
        lambda self, tokens, *a, **k: (
            layouts.append(tokens.layout) or forward(self, tokens, *a, **k)
        ),
    )
    settings = {
        **SMALL,
        "training.steps": 2,
        "training.validate_every": 2,
        "training.validation": 0.001,
        "model.decoder_genes": 32,
    }
    run = pretrain(load_config(None, settings), tmp_path / "run", cells=backed, progress=False)
    assert run.done
    assert len(layouts) > 2  # of training and of validation
    assert set(layouts) == {torch.sparse_csr}


# Memory

MEASURED = """
import sys
from itertools import islice
import anndata.io, h5py, scipy.sparse, torch
from benchmarks.large_file import peak_mebibytes
from scmam.settings import Data
from scmam.data import CellLoader, open_cells

before = peak_mebibytes()
cells = open_cells(Data(path=sys.argv[1], backed=sys.argv[2], shuffle_block=16))
batches = list(map(len, islice(CellLoader(cells, 64, sparse=True), 200)))
print(len(cells), len(batches), peak_mebibytes() - before)
"""


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_bounded_by_what_is_read_at_once_and_not_by_the_file(tmp_path):
    cells, nonzero, together = 80_000, 500, 1000
    random = np.random.default_rng(0)
    columns = np.sort(
        random.permuted(np.tile(np.arange(GENES, dtype=np.int32), (together, 1)), axis=1)[
            :, :nonzero
        ],
        axis=1,
    )
    values = random.integers(1, 9, columns.size).astype(np.float32)
    one = anndata.AnnData(
        scipy_sparse.csr_matrix(
            (values, columns.ravel(), np.arange(0, columns.size + 1, nonzero)),
            shape=(together, GENES),
        )
    )
    one.write_h5ad(tmp_path / "large.h5ad")
    with h5py.File(tmp_path / "large.h5ad", "r+") as file:  # the same thousand cells, eighty times
        for name, part in (("data", values), ("indices", columns.ravel())):
            file[f"X/{name}"].resize((cells * nonzero,))
            for start in range(0, cells * nonzero, len(part)):
                file[f"X/{name}"][start : start + len(part)] = part
        del file["X/indptr"], file["obs"]
        file["X/indptr"] = np.arange(0, cells * nonzero + 1, nonzero)
        file["X"].attrs["shape"] = np.array([cells, GENES])
        anndata.io.write_elem(file, "obs", anndata.AnnData(shape=(cells, 1)).obs)
    megabytes = (tmp_path / "large.h5ad").stat().st_size / 2**20
    assert megabytes > 300
    grown = {}
    for backed in ("always", "never"):
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            MEASURED,
            str(tmp_path / "large.h5ad"),
            backed,
        ]
        said = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        ).stdout.split()
        assert said[:2] == [str(cells), "200"]
        grown[backed] = float(said[2])
    assert grown["never"] > 300  # so that the measure sees the file where it is read whole
    assert grown["always"] < 150


def test_the_benchmark_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        large_file, "measured", lambda what, path, sizes: large_file.MEASUREMENTS[what](path, sizes)
    )
    arguments = [
        "--cells",
        "3000",
        "--genes",
        "400",
        "--steps",
        "12",
        "--seconds",
        "0.1",
        "--compression",
        "gzip",
        "--out",
        str(tmp_path),
    ]
    assert large_file.main([*arguments, "--folder", str(tmp_path / "files")]) == 0
    assert "training" in capsys.readouterr().out
    record = json.loads((tmp_path / "large_file.json").read_text())
    assert record["sizes"]["cells"] == 3000
    assert {"anndata", "h5py", "torch"} <= set(record["environment"]["versions"])
    (file,) = record["files"]
    assert file["compression"] == "gzip"
    assert 0.02 < file["reading"]["density"] < 0.08
    assert len(file["reading"]["ways"]) == len(large_file.READERS)
    assert all(way["cells_per_second"] > 0 for way in file["reading"]["ways"])
    assert file["reading"]["largest_worker_mebibytes"] > 100  # it has torch in it
    assert 0 <= file["training"]["waiting_share"] < 1
    assert file["training"]["steps"] == 12
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["3000x400-gzip.h5ad"]


# Several files


@pytest.mark.parametrize("backed", ["always", "never"])
def test_files_of_a_folder_are_one(real, backed):
    folder, whole = real
    joined = open_cells(Data(path=folder, backed=backed, label="bulk_labels"))
    assert joined.genes == tuple(whole.var_names)
    assert joined.names.tolist() == whole.obs_names.tolist()
    assert joined.labels.tolist() == whole.obs["bulk_labels"].tolist()
    assert joined.cell_ids.tolist() == list(range(700))
    assert joined.counts.in_memory == (backed == "never")
    rows = np.random.default_rng(1).integers(0, 700, 300)
    for asked in (rows, np.arange(290, 460), np.arange(0)):
        np.testing.assert_array_equal(joined.counts.take(asked).toarray(), whole.X[asked].toarray())
    np.testing.assert_array_equal(joined.depth, np.asarray(whole.X.sum(axis=1)).ravel())
    joined.counts.close()


def test_a_list_of_files_is_in_its_own_order(real):
    folder, whole = real
    listed = open_cells(Data(path=(folder / "c.h5ad", folder / "a.h5ad"), label="bulk_labels"))
    assert listed.source.startswith("c.h5ad and 1 more")
    assert listed.names.tolist() == [*whole.obs_names[450:], *whole.obs_names[:300]]
    assert inspect(folder).cells == 700
    assert open_cells(Data(path=(folder / "a.h5ad",))).num_cells == 300


def test_genes_of_a_vocabulary_are_found_in_every_file(real, tmp_path):
    folder, whole = real
    wanted = [*whole.var_names[[5, 3, 200, *range(300, 380)]], "NOT_A_GENE"]
    (tmp_path / "genes.txt").write_text("\n".join(wanted))
    joined = open_cells(
        Data(path=folder, backed="always", genes="vocabulary", vocabulary=tmp_path / "genes.txt")
    )
    rows = np.array([0, 299, 300, 449, 450, 699])
    np.testing.assert_array_equal(
        joined.counts.take(rows)[:, :-1].toarray(), whole[rows, wanted[:-1]].X.toarray()
    )
    assert joined.counts.take(rows)[:, -1].nnz == 0
    joined.counts.close()


def test_files_that_do_not_go_together(real):
    folder, whole = real
    other = whole[:50, 5:].copy()
    other.write_h5ad(folder / "d.h5ad")
    with pytest.raises(
        CellsError,
        match=r"atlas: its 4 files .* X of d\.h5ad has other genes .* a\.h5ad \(5 are"
        r" missing: .*0 are there",
    ):
        open_cells(Data(path=folder))
    normalised = [whole[:50].copy(), whole[50:90].copy()]
    for data, total in zip(normalised, (1e4, 1e3), strict=True):
        data.X = scipy_sparse.csr_matrix(data.X.multiply(total / data.X.sum(axis=1)))
        data.write_h5ad(folder.parent / f"{total:.0f}.h5ad")
    with pytest.raises(CellsError, match="normalised to a sum that is not the same in all files"):
        open_cells(Data(path=(folder.parent / "10000.h5ad", folder.parent / "1000.h5ad")))
    logged = whole[:50].copy()
    logged.layers["counts"] = logged.X.copy()
    logged.X.data = np.log1p(logged.X.data)
    logged.write_h5ad(folder / "d.h5ad")
    different = r"X holds values of different kinds \(counts in a\.h5ad and log1p in d\.h5ad\)"
    with pytest.raises(
        CellsError, match=rf"{different}.*layers\['counts'\] is not in a\.h5ad, b\.h5ad, c\.h5ad"
    ):
        open_cells(Data(path=folder))
    # A place that fits in all of them is taken, and the other is said to be left.
    for name in "abc":
        data = anndata.read_h5ad(folder / f"{name}.h5ad")
        data.layers["counts"] = data.X.copy()
        data.write_h5ad(folder / f"{name}.h5ad")
    cells = open_cells(Data(path=folder))
    assert cells.source.endswith("layers['counts']")
    assert any(
        note.startswith("Not taken: X holds values of different kinds") for note in cells.notes
    )
    with pytest.raises(CellsError, match=rf"data\.counts names 'X', and {different}"):
        open_cells(Data(path=folder, counts="X"))


def test_paths_that_name_no_files(tmp_path):
    with pytest.raises(CellsError, match=r"a folder without \.h5ad files; give one that has some"):
        open_cells(Data(path=tmp_path))
    with pytest.raises(CellsError, match=r"x\.h5ad: no such file"):
        open_cells(Data(path=(tmp_path / "x.h5ad", tmp_path / "y.h5ad")))
    with pytest.raises(CellsError, match=r"names x\.h5ad more than once"):
        open_cells(Data(path=("x.h5ad", "y.h5ad", "x.h5ad")))
    with pytest.raises(ConfigError, match=r"data\.path: tuple should have at least 1 item"):
        load_config(None, {"data.path": []})


# Training


def test_a_run_from_files_goes_on_in_the_middle_of_an_epoch(real, tmp_path, monkeypatch):
    paths = sorted(real[0].iterdir())
    streamed = {
        "data__path": [str(path) for path in paths],
        "data__backed": "always",
        "data__shuffle_block": 4,
        "training__workers": 1,
    }
    whole = small_run(tmp_path / "whole", **streamed)
    step = PretrainingModule.training_step
    stopped = []

    def failing(self: PretrainingModule, batch: CellBatch, batch_idx: int) -> object:
        if batch_idx == 4 and not stopped:
            stopped.append(batch_idx)
            raise RuntimeError("gone")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainingModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="gone"):
        small_run(tmp_path / "again", **streamed, training__checkpoint_every=2)
    resumed = small_run(tmp_path / "again", **streamed, training__checkpoint_every=2)
    assert stopped == [4]
    assert resumed.metrics()["loss"].tolist() == whole.metrics()["loss"].tolist()
    weights = whole.load().state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in resumed.load().state_dict().items()
    )
    assert 0 <= resumed.record["waiting_share"] <= 1
    assert resumed.config.data.path == tuple(paths)


@pytest.mark.slow
def test_two_machines_of_slurm_are_as_one(real, tmp_path):
    """Two processes with the variables that SLURM gives one task on each of two machines; the cells
    come from files.
    """
    folder, _ = real
    few = {
        "data.backed": "always",
        "data.shuffle_block": 4,
        "masking.strategy": "uniform",
        "training.steps": 3,
    }
    settings = {**SMALL, **few, "data.path": str(folder)}
    assignments = [
        f"{name}={json.dumps(value)}"
        for name, value in {**settings, "training.num_nodes": 2}.items()
    ]
    command = [sys.executable, "-m", "scmam", "pretrain", "--quiet", "--out", str(tmp_path / "two")]
    command += chain.from_iterable(("--set", assignment) for assignment in assignments)
    job = {
        "SLURM_JOB_NAME": "pretrain",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_LOCALID": "0",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {
            "SLURM_NODELIST": "localhost",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    machines = []
    for machine in ("0", "1"):
        variables = {
            **environment(),
            **job,
            **address,
            "SLURM_PROCID": machine,
            "SLURM_NODEID": machine,
        }
        machines.append(
            subprocess.Popen(
                command, env=variables, cwd=tmp_path, stderr=subprocess.PIPE, text=True
            )
        )
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    alone = pretrain(
        load_config(None, {**settings, "training.batch_size": 8}), tmp_path / "one", progress=False
    )
    together = open_run(tmp_path / "two")
    assert together.record["processes"] == 2
    losses = [run.metrics().query("phase == 'train'")["loss"].tolist() for run in (together, alone)]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights = alone.load().state_dict()
    assert all(
        torch.allclose(value, weights[name], atol=1e-5)
        for name, value in together.load().state_dict().items()
    )


# Other loaders


def test_batches_of_other_loaders_are_those_of_ours(counts):
    cells = open_cells(Data())
    rows = np.array([3, 600, 12])
    expected = cells.batch(rows)
    sparse = cells.counts.take(rows)
    for given in (
        sparse,
        sparse.tocsc(),
        sparse.toarray(),
        torch.from_numpy(sparse.toarray()),
        matrix.as_tensor(sparse),
    ):
        batch = cell_batch(given, rows, depth=cells.depth[rows], labels=cells.codes[rows])
        assert torch.equal(
            batch.counts.to_dense() if batch.counts.layout == torch.sparse_csr else batch.counts,
            expected.counts,
        )
        assert all(
            torch.equal(one, other) for one, other in zip(batch[1:], expected[1:], strict=True)
        )
    plain = cell_batch(sparse, rows)
    assert torch.equal(plain.depth, expected.counts.sum(dim=1))
    assert plain.labels.tolist() == [-1] * 3


def test_what_is_no_batch():
    good = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"counts: expected \(B, G\), dense or sparse CSR; got shape \(3,\)"
    ):
        cell_batch(good[0], [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"cell_ids: expected one for each of the 2 cells; got shape \(3,\)"
    ):
        cell_batch(good, [0, 1, 2])
    with pytest.raises(TypeError, match=r"cell_ids: expected integers; got torch.float64"):
        cell_batch(good, [0.0, 1.0])
    with pytest.raises(
        ValueError, match=r"cell_ids: expected integers in \[0, 2\*\*32\); got -1 to 1"
    ):
        cell_batch(good, [-1, 1])
    with pytest.raises(
        ValueError, match=r"labels: expected one for each of the 2 cells; got shape \(1,\)"
    ):
        cell_batch(good, [0, 1], labels=[0])


def test_scdataset_reads_our_cells(backed, counts):
    scdataset = pytest.importorskip("scdataset", reason="scDataset is not installed")
    dataset = scdataset.scDataset(
        backed,
        scdataset.BlockShuffling(BLOCK),
        batch_size=BATCH,
        fetch_factor=32,
        seed=0,
        fetch_callback=lambda cells, indices: (cells.counts.take(indices), indices),
        batch_callback=lambda fetched, chosen: backed.batch_of(
            fetched[0][chosen], fetched[1][chosen], sparse=True
        ),
    )
    config = load_config(None, {**SMALL, "model.decoder_genes": 32})
    objective = build_pretraining(config, backed.num_genes)
    seen = []
    for number, batch in enumerate(dataset):
        seen += batch.cell_ids.tolist()
        if number == 0:
            assert torch.isfinite(objective(batch, seed=0, step=0).total)
            np.testing.assert_array_equal(
                batch.counts.to_dense(), counts[batch.cell_ids.numpy()].toarray()
            )
    assert sorted(seen) == list(range(CELLS))


def test_the_examples_of_the_page_run():
    pytest.importorskip("scdataset", reason="scDataset is not installed")
    names = run_examples(ROOT / "docs" / "scale.md")
    assert torch.isfinite(names["losses"].total)
    assert names["step"] == -(-700 // 64) - 1


def test_every_setting_that_the_page_names_is_one():
    config = load_config(None)
    named = set(
        re.findall(r"\b(data|training)\.(\w+)\b", (ROOT / "docs" / "scale.md").read_text())
    ) - {("data", "cell_batch")}
    assert ("training", "num_nodes") in named
    assert all(hasattr(getattr(config, section), name) for section, name in named)
