"""From a run folder to its folder of genes: files, pictures, errors."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("matplotlib", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")
pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
pytest.importorskip("scipy", reason="the single-cell layer is not installed")

import pandas as pd
from matplotlib import image
from scmam import drawing
from scmam.data import open_cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.interpretation import figures
from scmam.interpretation.enrichment import GeneSetError
from scmam.interpretation.figures import most_specific
from scmam.interpretation.folder import interpret
from scmam.objective import build_pretraining
from scmam.settings import Data

from tests.scmam.interpreted import configured, finished_run, set_slopes

FILES = {"frequencies.csv", "ranking.csv", "latents.json", "masks.npz"}
FILES |= {"hidden_by_expression.png", "masks.png"}
BY_TYPE = {"frequencies_by_type.csv", "hidden_by_type.png", "specific_genes.png"}


@pytest.fixture(scope="module")
def cells():
    return open_cells(Data())


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of few pixels, where only their being there matters."""
    monkeypatch.setattr(drawing, "DPI", 30)


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of the tables alone."""
    monkeypatch.setattr(drawing.Drawing, "save_png", lambda self, path: path.touch())


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_whole_folder(cells, tmp_path):
    config = configured()
    pretraining = build_pretraining(config, cells.num_genes)
    set_slopes(pretraining, torch.linspace(1, 3, 24).view(12, 2))
    run = finished_run(tmp_path / "run", config, cells, pretraining)
    sets = tmp_path / "sets.gmt"
    highest = np.argsort(-np.asarray(cells.batch(np.arange(cells.num_cells)).counts.mean(dim=0)))
    sets.write_text(
        "\n".join(
            "\t".join([name, "x", *genes])
            for name, genes in {
                "abundant": [cells.genes[gene] for gene in highest[:25]],
                "absent": ["NOT_A_GENE"],
                "rare": [cells.genes[gene] for gene in highest[-25:]],
            }.items()
        )
    )
    found = interpret(run, cells, draws=3, gmt=sets, top=50, progress=False)
    assert found.folder == run.folder / "genes"
    assert names(found.folder) == FILES | BY_TYPE | {
        "enrichment.csv",
        "enrichment_beyond_expression.csv",
    }
    assert names(run.folder) == {"config.yaml", "run.json", "genes.txt", "model.pt", "genes"}
    for name, table in (
        ("frequencies", found.frequencies),
        ("ranking", found.ranking),
        ("enrichment", found.enrichment),
    ):
        written = pd.read_csv(found.folder / f"{name}.csv").fillna({"genes": ""})
        pd.testing.assert_frame_equal(written, table, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert found.enrichment.loc[0, "term"] == "abundant"
    assert found.enrichment.loc[0, "adjusted_p_value"] < 1e-6
    assert found.enrichment["term"].tolist() == ["abundant", "rare"]
    assert json.loads(
        (found.folder / "latents.json").read_text(), parse_constant=pytest.fail
    ) == json.loads(json.dumps(found.latents))
    assert found.latents["spearman"] > 0.9
    assert found.latents["dispersion"]["chi_square"] > found.latents["dispersion"]["high"]
    assert found.latents["encoder"]["invented"] == 0.0
    assert (
        found.latents["notes"][-1]
        == "gene sets: 2 share a gene with the run, 50 of its 765 genes in all"
    )
    assert found.warnings == tuple(found.latents["warnings"])
    with np.load(found.folder / "masks.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {
            "values",
            "mask",
            "hidden",
            "importance",
            "draws",
            "genes",
            "cells",
            "cell_types",
        }
        assert arrays["values"].shape == (6, 765)
        assert tuple(arrays["genes"]) == cells.genes
    for name in names(found.folder):
        if name.endswith(".png"):
            picture = image.imread(found.folder / name)
            assert picture.shape[0] > 400
            assert picture.shape[1] > 800
            assert picture[..., :3].std() > 0.05  # not blank


@pytest.mark.parametrize("strategy", ["none", "mam-embedding"])
def test_other_strategies(cells, tmp_path, coarse, strategy):
    run = finished_run(tmp_path / "run", configured(strategy=strategy, zero_ratio=0.03), cells)
    found = interpret(run, cells, draws=1, progress=False)
    assert names(found.folder) == FILES | BY_TYPE
    assert (found.latents["attention"] is None) == (strategy == "none")
    assert found.enrichment is None


def test_a_matched_run_takes_its_last_shares(cells, tmp_path, no_pictures):
    schedule = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.02, 0.4]])
    run = finished_run(
        tmp_path / "run", configured(strategy="matched", matched_to="mam"), cells, schedule=schedule
    )
    found = interpret(run, cells, draws=2, progress=False)
    assert found.latents["hidden_nonzero"] == pytest.approx(0.4, abs=0.01)
    assert found.latents["hidden_zero"] == pytest.approx(0.02, abs=0.01)


def test_cells_without_types(cells, tmp_path, coarse):
    run = finished_run(tmp_path / "run", configured(), cells)
    (run.folder / "genes").mkdir()
    (run.folder / "genes" / "frequencies_by_type.csv").write_text("of an earlier call\n")
    found = interpret(run, replace(cells, labels=None, label=None), draws=1, progress=False)
    assert names(found.folder) == FILES
    assert found.frequencies_by_type is None
    assert found.latents["notes"][1] == "no cell types: there is no table and no picture by type"
    assert found.examples.cell_types.tolist() == [""] * 6


def test_cells_some_of_which_have_no_type(cells, tmp_path, no_pictures):
    run = finished_run(tmp_path / "run", configured(), cells)
    labels = cells.labels.copy()
    labels[:100] = ""
    found = interpret(run, replace(cells, labels=labels), draws=1, progress=False)
    assert (
        found.latents["notes"][1]
        == "100 cells without a type count in the table of all cells alone"
    )
    assert found.frequencies_by_type.groupby("gene")["cells"].sum().unique().tolist() == [600]
    assert found.latents["masks"] == 700


def test_a_failure_leaves_what_was_there(cells, tmp_path, no_pictures, monkeypatch):
    run = finished_run(tmp_path / "run", configured(), cells)
    (run.folder / "genes").mkdir()
    (run.folder / "genes" / "latents.json").write_text("{}")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "masks", fail)
    with pytest.raises(
        RunError,
        match=r"genes: cannot be written \(No space left on device\); make room, or copy the run"
        r" elsewhere",
    ):
        interpret(run, cells, draws=1, progress=False)
    assert names(run.folder) == {"config.yaml", "run.json", "genes.txt", "model.pt", "genes"}
    assert names(run.folder / "genes") == {"latents.json"}


def test_errors_come_before_the_work(cells, tmp_path):
    run = finished_run(tmp_path / "run", configured(), cells)
    with pytest.raises(
        ConfigError, match=r"^draws: expected at least 1 mask of every cell; got 0$"
    ):
        interpret(run, cells, draws=0, progress=False)
    sets = tmp_path / "sets.gmt"
    sets.write_text("a\tb\tENSG01\n")
    for top in (0, 765):
        with pytest.raises(
            ConfigError,
            match=rf"^top: expected fewer genes than the 765 of the run, at least 1; got {top}$",
        ):
            interpret(run, cells, gmt=sets, top=top, progress=False)
    with pytest.raises(GeneSetError, match="shares no gene with the 765 of the run"):
        interpret(run, cells, gmt=sets, progress=False)
    with pytest.raises(GeneSetError, match="no such file"):
        interpret(run, cells, gmt=tmp_path / "missing.gmt", progress=False)
    other = replace(cells, genes=("NEW", *cells.genes[1:]))
    with pytest.raises(
        CellsError,
        match=r"1 of the 765 genes that .* was trained on are not among the 765 of these cells .*;"
        r" .*genes\.txt$",
    ):
        interpret(run, other, progress=False)
    with pytest.raises(RunError, match="pretraining is not done"):
        interpret(replace(run, record={"status": "running", "steps": 1}), cells, progress=False)
    assert not (run.folder / "genes").exists()


def test_specific_genes_are_those_beyond_chance():
    genes = [f"g{index}" for index in range(50)]
    rates = {"A": np.full(50, 0.3), "B": np.full(50, 0.3), "tiny": np.full(50, 0.3)}
    rates["A"][7] = 0.6
    rates["B"][[3, 4, 5, 6]] = (0.5, 0.7, 0.6, 0.8)
    rates["tiny"][20] = 0.5  # two cells: by chance
    cells = {"A": 200, "B": 100, "tiny": 2}
    table = pd.concat(
        [
            pd.DataFrame(
                {"cell_type": name, "gene": genes, "cells": cells[name], "hidden": rates[name]}
            )
            for name in rates
        ]
    )
    found, types, difference = most_specific(table, draws=5)
    assert types == ["A", "B", "tiny"]
    assert found == ["g7", "g6", "g4", "g5"]
    overall = (200 * 0.6 + 102 * 0.3) / 302
    assert difference[:, 0] == pytest.approx([0.6 - overall, 0.3 - overall, 0.3 - overall])
    assert most_specific(table[table["cell_type"] == "A"], draws=5)[0] == []


def test_importing_costs_little():
    code = (
        "import sys; import scmam.interpretation;"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules); assert"
        " not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
