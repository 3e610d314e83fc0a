"""Continuing from a pretrained model: genes by name, two rates, and the published table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

pytest.importorskip("lightning", reason="pretraining is Lightning's")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("safetensors", reason="exported models are safetensors files")

from scmam.cli.options import configuration
from scmam.config import Config, load_config, with_settings
from scmam.data import Cells
from scmam.errors import ConfigError, RunError
from scmam.evaluation.embedding import embed
from scmam.evaluation.folder import evaluate
from scmam.objective import build_pretraining
from scmam.runs import Run
from scmam.study.arms import ARMS, arm_config
from scmam.study.published import SETTINGS, verdict
from scmam.study.tasks import planned
from scmam.training import pretrain
from scmam.training.start import OF_GENES, start_from
from scmam.weights import export_model

from tests.scmam.small import SMALL_MODEL
from tests.scmam.test_evaluation import planted

TABLE = tuple(SETTINGS["study"]["arms"][1:])
SMALL = {
    **SMALL_MODEL,
    "masking.strategy": "uniform",
    "training.batch_size": 8,
    "training.steps": 4,
    "training.validate_every": 2,
    "training.checkpoint_every": 2,
}


def settings(**sections: dict[str, Any]) -> Config:
    return with_settings(load_config(None, SMALL), **sections)


@pytest.fixture(scope="module")
def cells() -> Cells:
    return planted()


@pytest.fixture(scope="module")
def backbone(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(settings(), tmp_path_factory.mktemp("one") / "run", cells=cells, progress=False)


def test_genes_are_matched_by_name(backbone: Run, tmp_path: Path):
    exported = export_model(backbone, tmp_path / "model.safetensors")
    genes = ("new", "gene7", "gene0", "other")
    other = settings(masking={"strategy": "mam"}, training={"seed": 5})
    old = backbone.load().model.state_dict()
    for source in (backbone.folder, exported):
        config = with_settings(other, training={"start_from": source})
        fresh = build_pretraining(config, len(genes))
        started = build_pretraining(config, len(genes))
        record = start_from(source, started, genes, config)
        assert record["start_genes"] == 2
        assert len(record["start_digest"]) == 16
        for name, tensor in started.state_dict().items():
            part, _, rest = name.partition(".")
            first = fresh.state_dict()[name]
            if part != "model":
                assert torch.equal(tensor, first)
            elif rest in OF_GENES:
                assert torch.equal(tensor[[1, 2]], old[rest][[7, 0]])
                assert torch.equal(tensor[[0, 3]], first[[0, 3]])
            else:
                assert torch.equal(tensor, old[rest])
                assert tensor.dim() < 2 or not torch.equal(tensor, first)


def test_a_run_that_began_goes_on_without_its_source(
    backbone: Run, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = export_model(backbone, tmp_path / "model.safetensors")
    config = settings(training={"start_from": "model.safetensors", "steps": 6})
    monkeypatch.chdir(tmp_path)
    whole = pretrain(config, tmp_path / "whole", cells=cells, progress=False)
    assert whole.config.training.start_from == copy
    assert whole.record["start_genes"] == cells.num_genes
    monkeypatch.setattr("scmam.training.fitting._results", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # after the last step, whose checkpoint is there
        pretrain(config, tmp_path / "cut", cells=cells, progress=False)
    monkeypatch.undo()
    copy.unlink()
    monkeypatch.chdir(tmp_path)
    cut = pretrain(config, tmp_path / "cut", cells=cells, progress=False)
    expected = whole.load().state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in cut.load().state_dict().items()
    )
    with pytest.raises(RunError, match=r"model\.safetensors: no such folder; give the folder of a"):
        pretrain(config, tmp_path / "new", cells=cells, progress=False)
    assert not (tmp_path / "new").exists()


def test_two_rates(backbone: Run, cells: Cells, tmp_path: Path):
    training = {
        "start_from": backbone.folder,
        "rate_groups": "published",
        "lr": 1e-12,
        "masking_lr": 1e-2,
        "weight_decay": 0.0,
    }
    run = pretrain(settings(training=training), tmp_path / "run", cells=cells, progress=False)
    old = backbone.load().model.state_dict()
    for name, tensor in run.load().model.state_dict().items():
        moved = (tensor - old[name]).abs().max().item()
        if name.startswith(("encoder.", "decoder.blocks.")):
            assert moved < 1e-6
        elif "weight" in name and not name.startswith("cell_query"):
            assert moved > 1e-3


def test_what_it_refuses(backbone: Run, cells: Cells):
    def refused(message: str, kind: type[Exception] = ConfigError, **sections: dict) -> None:
        config = settings(**{"training": {"start_from": backbone.folder}, **sections})
        pretraining = build_pretraining(config, cells.num_genes)
        start = config.training.start_from
        with pytest.raises(kind, match=message):
            start_from(start, pretraining, sections.get("genes", cells.genes), config)

    refused(
        r"data.transform: expected log1p_counts, which .* was trained on; got log1p_cp10k",
        data={"transform": "log1p_cp10k"},
    )
    refused(r"an encoder-decoder of other sizes \(cell_query.bias, .*\); set", model={"width": 16})
    refused(
        r"other sizes \(cell_query.bias, .*\); set model.* and training.loss",
        training={
            "start_from": backbone.folder,
            "loss": "nb",
        },
    )
    refused(r"no such folder", RunError, training={"start_from": backbone.folder / "gone"})
    config = settings(training={"start_from": backbone.folder})
    pretraining = build_pretraining(config, 2)
    with pytest.raises(ConfigError, match=r"has none of the 2 genes of these cells \(a, \.\.\.; "):
        start_from(backbone.folder, pretraining, ("a", "b"), config)


# --------------------------------------------------------------------------------------------------
# the table


def test_the_published_table_is_eleven_arms(tmp_path: Path):
    assert len(TABLE) == 11
    assert set(TABLE) <= set(ARMS)
    file = tmp_path / "study.yaml"
    file.write_text("training:\n  steps: 7\nevaluation:\n  lr: 0.01\n")
    config = configuration(file, ["training.lr=1e-6"], {"study.seeds": [4]}, SETTINGS)
    assert (config.training.steps, config.training.lr, config.training.masking_lr) == (
        7,
        1e-6,
        1e-4,
    )
    assert (config.evaluation.lr, config.evaluation.block, config.study.seeds) == (0.01, -2, (4,))
    assert config.study.arms == ("none", *TABLE)
    with pytest.raises(
        ConfigError, match=r"study.arms: orig is the model that training.start_from"
    ):
        planned(config, tmp_path, interpret=False)
    missing = with_settings(config, training={"start_from": tmp_path / "gone"})
    with pytest.raises(
        ConfigError, match=r"training.start_from: expected a run folder or an expor"
    ):
        planned(missing, tmp_path, interpret=False)
    there = with_settings(config, training={"start_from": file})
    assert len(planned(there, tmp_path, interpret=False)) == 12 + 2
    assert arm_config(there, "none", 0).training.start_from is None
    for arm in TABLE:
        of_arm = arm_config(there, arm, 0)
        assert of_arm.training.start_from == file
        if arm != "orig":
            assert of_arm.masking.corruption == "all" or of_arm.masking.random_values == "uniform"
            assert of_arm.masking.corruption_view == "decoder"
            assert (of_arm.masking.corruption == "80/10/10") == (
                arm.endswith("-mixed") or arm == "uniform-stratified"
            )


def test_an_arm_of_the_table_from_end_to_end(backbone: Run, cells: Cells, tmp_path: Path):
    overrides = {
        **SMALL,
        "training.start_from": str(backbone.folder),
        "evaluation.block": -1,
        "evaluation.epochs": 2,
    }
    config = load_config(None, overrides, SETTINGS)
    source = embed(backbone.load(), cells)
    features = {}
    for arm in ("orig", "none", "mam-published-both-mixed"):
        of_arm = arm_config(config, arm, 1)
        run = pretrain(of_arm, tmp_path / arm, cells=cells, progress=False)
        features[arm] = embed(run.load(), cells)
        found = evaluate(run, cells, of_arm.evaluation, progress=False)
        assert list(found) == ["mlp-probe", "fine-tuning"]
        assert all(len(evaluation.folds) == 5 for evaluation in found.values())
    np.testing.assert_array_equal(features["orig"], source)
    assert not np.allclose(features["none"], source)
    assert not np.allclose(features["mam-published-both-mixed"], source)
    assert run.record["training_cells"] + run.record["validation_cells"] == 72


def test_the_verdict_on_the_backbone():
    def summary(**scores: float) -> pandas.DataFrame:
        rows = [
            (arm, method, "macro_f1", value)
            for arm, value in scores.items()
            for method in ("mlp-probe", "fine-tuning")
        ]
        rows.append(("orig", "mlp-probe", "accuracy", 0.1))
        return pandas.DataFrame(rows, columns=["arm", "method", "metric", "mean"])

    good = verdict(summary(none=0.5, orig=0.54)).splitlines()
    assert good == [
        f"{method}: the backbone is 4.0 points of macro-F1 better than an untrained encoder, so its"
        " continuation can be compared"
        for method in ("mlp-probe", "fine-tuning")
    ]
    bad = verdict(summary(none=0.5, orig=0.52))
    assert (
        "2.0 points of macro-F1 better than an untrained encoder, and 3 or more better are required"
        in bad
    )
    assert "0.1 points of macro-F1 worse than" in verdict(summary(none=0.5, orig=0.499))
    assert verdict(summary(orig=0.5)) is None
