"""The published protocol: one test set and its bootstraps, the published classifier, and
pretraining that does not see the test cells.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="pretraining is Lightning's")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")

from scmam.config import Config, with_settings
from scmam.data import Cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.evaluation import published
from scmam.evaluation.baselines import baseline
from scmam.evaluation.cross_validation import scored_positions, splits, without_test
from scmam.evaluation.embedding import embed, sequence_reader
from scmam.evaluation.folder import evaluate
from scmam.evaluation.methods import classify
from scmam.objective import Pretraining, build_pretraining
from scmam.settings import Evaluation as Settings
from scmam.training import fitting, pretrain
from scmam.training.module import rate_factor

from tests.scmam.small import SMALL_MODEL
from tests.scmam.test_evaluation import CLASSES, planted, scores, untrained

SETTINGS = Settings(
    protocol="published",
    folds=3,
    epochs=12,
    batch_size=16,
    hidden=16,
    lr=1e-2,
    block=-2,
    methods=("mlp-probe", "fine-tuning"),
)


@pytest.fixture(scope="module")
def cells() -> Cells:
    return planted(150)


@pytest.fixture(scope="module")
def pretraining(cells: Cells) -> Pretraining:
    return untrained(cells)


# --------------------------------------------------------------------------------------------------
# the split


def test_every_method_is_tested_on_bootstraps_of_one_test_set(cells: Cells):
    ((train, test),) = splits(cells, SETTINGS)
    assert sorted([*train, *test]) == list(range(150))
    assert np.bincount(cells.codes[test]).tolist() == [10, 10, 10]
    found = baseline("logistic-regression", cells, SETTINGS)
    assert found.settings["protocol"] == "published"
    assert [fold.fold for fold in found.folds] == [0, 1, 2]
    assert {fold.train_cells for fold in found.folds} == {120}
    assert [np.sum(fold.confusion) for fold in found.folds] == [30, 30, 30]
    drawn = [np.sum(fold.confusion, axis=1).tolist() for fold in found.folds]  # of each class
    assert len(set(map(tuple, drawn))) == 3
    again = baseline("pca", cells, SETTINGS)  # another method is tested on the same draws
    assert [np.sum(fold.confusion, axis=1).tolist() for fold in again.folds] == drawn
    assert scores(baseline("logistic-regression", cells, SETTINGS)) == scores(found)


def test_donors_are_not_on_both_sides(cells: Cells):
    donors = np.array([f"donor{i}" for i in np.arange(150) // 15 % 10])
    known = planted(150, donors=donors)
    ((train, test),) = splits(known, SETTINGS)
    assert set(donors[train]).isdisjoint(donors[test])
    assert len(set(donors[test])) == 2


def test_cells_that_allow_no_test_set(cells: Cells):
    with pytest.raises(CellsError, match=r"are too few for a test set of 0\.2 of them; set"):
        splits(planted(2), SETTINGS)
    with pytest.raises(CellsError, match=r"set data.label to a column with at least two classes"):
        splits(replace(cells, labels=None, label=None, classes=()), SETTINGS)


# --------------------------------------------------------------------------------------------------
# the classifier


def test_it_pools_the_largest_of_the_valid_genes(cells: Cells, pretraining: Pretraining):
    classifier = published.Classifier(copy.deepcopy(pretraining.model), None, 8, 3)
    reader = sequence_reader(pretraining, cells, None)
    chosen = np.array([7, 2, 90])
    found = classifier.pooled(reader, chosen)
    for row, cell in enumerate(chosen):
        (part,) = reader.parts(np.array([cell]))
        encoded = pretraining.model.encode(part.sequences, part.depth)
        torch.testing.assert_close(found[row], encoded.tokens[0].max(dim=0).values)
    empty = encoded._replace(valid=torch.zeros_like(encoded.valid))
    assert torch.equal(published.largest(empty), encoded.cell)


@pytest.mark.parametrize("method", ["mlp-probe", "fine-tuning"])
def test_it_tells_planted_classes_apart(method: str, cells: Cells, pretraining: Pretraining):
    before = copy.deepcopy(pretraining.state_dict())
    found = classify(method, pretraining, cells, SETTINGS, 7)
    assert found.method == method
    assert found.classes == CLASSES
    assert found.mean("macro_f1") > 0.8
    assert found.values("micro_f1").tolist() == found.values("accuracy").tolist()
    assert found.settings["optimizer"] == "Adam, amsgrad"
    if method == "mlp-probe":
        assert scores(classify(method, pretraining, cells, SETTINGS, 7)) == scores(found)
    assert all(torch.equal(before[name], value) for name, value in pretraining.state_dict().items())


def test_what_learns_is_what_is_said(cells: Cells, pretraining: Pretraining):
    reader = sequence_reader(pretraining, cells, None)
    moved = {}
    for block in (None, -2):
        model = copy.deepcopy(pretraining.model)
        classifier = published.Classifier(model, block, 8, 3)
        before = copy.deepcopy(classifier.state_dict())
        settings = SETTINGS.model_copy(update={"epochs": 2})
        published._fit(
            classifier, reader, np.arange(60), cells, settings, torch.Generator().manual_seed(0)
        )
        moved[block] = {
            name.split(".")[0]
            if name.startswith(("head", "norm"))
            else ".".join(name.split(".")[1:4] if ".blocks." in name else name.split(".")[1:2])
            for name, tensor in classifier.state_dict().items()
            if not torch.equal(tensor, before[name])
        }
    assert moved[None] == {"head", "norm"}
    assert moved[-2] == {"head", "norm", "embedding", "encoder.blocks.0"}


def test_it_stops_early_and_takes_the_best_epoch(
    cells: Cells, pretraining: Pretraining, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([3.0, 1.0, 2.0, 2.5, 0.5])
    states, real = [], published._trained

    monkeypatch.setattr(published, "_held_loss", lambda *_: next(losses))
    classifier = published.Classifier(copy.deepcopy(pretraining.model), None, 8, 3)

    def noted(classifier: published.Classifier) -> dict[str, torch.Tensor]:
        states.append(real(classifier))
        return states[-1]

    monkeypatch.setattr(published, "_trained", noted)
    settings = SETTINGS.model_copy(update={"patience": 2})
    published._fit(
        classifier,
        sequence_reader(pretraining, cells, None),
        np.arange(60),
        cells,
        settings,
        torch.Generator().manual_seed(0),
    )
    assert len(states) == 3  # at first, and after the first and the second epoch
    assert next(losses) == 0.5  # four epochs were made
    assert torch.equal(classifier.head[0].weight, states[2]["head.0.weight"])
    assert not torch.equal(states[1]["head.0.weight"], states[2]["head.0.weight"])
    assert classifier.norm.num_batches_tracked == states[2]["norm.num_batches_tracked"]


def test_what_it_refuses(cells: Cells, pretraining: Pretraining):
    with pytest.raises(ConfigError, match=r"evaluation.block: expected .*, -2 to -1; got -3"):
        classify("fine-tuning", pretraining, cells, SETTINGS.model_copy(update={"block": -3}))
    features, broken = embed(pretraining, cells), copy.deepcopy(pretraining)
    with torch.no_grad():
        broken.model.embedding.gene.weight[12] = 1e38  # of a gene that every cell has
    with pytest.raises(RunError, match=r"diverged at evaluation.lr = 0.01; set a lower one"):
        classify("mlp-probe", broken, cells, SETTINGS, features=features)


def test_the_encoder_is_shifted_as_in_training(cells: Cells):
    config = with_settings(
        Config(),
        model={"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "bins": 4},
        masking={"injection": "both", "latent_dim": 16, "num_latents": 8, "latent_heads": 2},
    )
    pretraining = build_pretraining(config, cells.num_genes).eval()
    expected = pretraining.features(cells.batch(np.arange(len(cells)))).detach().numpy()
    np.testing.assert_allclose(embed(pretraining, cells), expected, atol=1e-5)
    part = next(sequence_reader(pretraining, cells, 3).parts(np.arange(8)))
    values = torch.log1p(torch.from_numpy(cells.counts.whole()[:8].toarray()))
    # of whole cells, though the encoder reads three genes of each
    torch.testing.assert_close(part.shift, pretraining.encoder_shift(values)[part.positions])
    assert not part.shift.requires_grad


# --------------------------------------------------------------------------------------------------
# pretraining


SMALL = {
    **SMALL_MODEL,
    "training.batch_size": 8,
    "training.steps": 6,
    "training.validate_every": 2,
}


def settings(**sections: dict) -> Config:
    from scmam.config import load_config

    return with_settings(load_config(None, SMALL), **sections)


def test_pretraining_does_not_see_the_test_cells(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    seen = {}
    data = fitting.CellData
    monkeypatch.setattr(
        fitting,
        "CellData",
        lambda cells, *args, **options: seen.update(cells=cells) or data(cells, *args, **options),
    )
    evaluation = {**SETTINGS.model_dump(), "fold_seed": 3, "block": -1, "epochs": 1}
    config = settings(training={"cells": "training"}, evaluation=evaluation)
    run = pretrain(config, tmp_path / "run", cells=cells, progress=False)
    ((train, _),) = splits(cells, config.evaluation)
    assert seen["cells"].cell_ids.tolist() == cells.cell_ids[train].tolist()
    assert run.record["training_cells"] + run.record["validation_cells"] == 120
    missing = config.evaluation.model_copy(update={"block": -2})
    with pytest.raises(ConfigError, match=r"evaluation.block: expected .*, -1 to -1; got -2"):
        evaluate(run, cells, missing)
    found = evaluate(run, cells, config.evaluation)
    assert "pretraining saw" not in capsys.readouterr().out
    assert found["fine-tuning"].settings["test"] == 0.2

    other = config.evaluation.model_copy(update={"fold_seed": 4})
    with pytest.raises(ConfigError, match=r"evaluation.fold_seed: expected 3, for .* got 4$"):
        evaluate(run, cells, other)
    changed = with_settings(config, evaluation={"test": 0.3})
    with pytest.raises(RunError, match=r"other settings \(evaluation.test: 0.2 -> 0.3\)"):
        pretrain(changed, tmp_path / "run", cells=cells, progress=False)
    changed = with_settings(config, training={"cells": "all"})
    with pytest.raises(RunError, match=r"other settings \(training.cells: training -> all\)"):
        pretrain(changed, tmp_path / "run", cells=cells, progress=False)


def test_the_test_cells_are_among_those_that_are_scored(cells: Cells):
    labels = np.array(cells.labels, dtype=object)
    labels[::10] = None
    some = planted(150, labels=labels)
    evaluation = SETTINGS.model_copy(update={"development": 0.3})
    kept = without_test(some, evaluation)
    gone = np.setdiff1d(np.arange(150), kept)
    assert set(gone) <= set(scored_positions(some, evaluation))
    assert len(gone) == pytest.approx(0.2 * 0.7 * 135, abs=2)
    assert set(range(0, 150, 10)) <= set(kept)


def test_the_weights_of_the_best_validation_are_kept(cells: Cells, tmp_path: Path):
    training = {"keep": "best", "lr": 0.5, "masking_lr": 0.5, "warmup": 0, "schedule": "constant"}
    run = pretrain(settings(training=training), tmp_path / "run", cells=cells, progress=False)
    validations = run.metrics().query("phase == 'validation'")
    best = int(validations.loc[validations.loss.idxmin(), "step"])
    assert run.record["weights_of_step"] == best
    assert validations.step.tolist() == [2, 4, 6]
    config = settings(training={**training, "validation": 0})
    with pytest.raises(ConfigError, match=r"training.keep: best: watches .* or keep: last"):
        pretrain(config, tmp_path / "other", cells=cells, progress=False)


def test_amsgrad_and_a_constant_rate(cells: Cells, tmp_path: Path):
    config = settings(
        training={"amsgrad": True, "schedule": "constant", "warmup": 0.5, "checkpoint_every": 3}
    )
    run = pretrain(config, tmp_path / "run", cells=cells, progress=False)
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert "max_exp_avg_sq" in state["optimizer_states"][0]["state"][0]
    factors = [rate_factor(step, config.training) for step in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
