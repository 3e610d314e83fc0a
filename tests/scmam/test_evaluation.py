"""Linear probe, fine-tuning, baselines, and the files of `evaluate`, on cells whose classes are
planted and on real ones.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam.config import validated  # noqa: E402
from scmam.data import from_anndata, open_cells  # noqa: E402
from scmam.errors import CellsError, ConfigError, RunError  # noqa: E402
from scmam.evaluation import cross_validation, fine_tuning  # noqa: E402
from scmam.evaluation import reading as reading_module  # noqa: E402
from scmam.evaluation.baselines import baseline, log_normalised  # noqa: E402
from scmam.evaluation.embedding import embed, sequence_reader  # noqa: E402
from scmam.evaluation.folder import evaluate  # noqa: E402
from scmam.evaluation.methods import fine_tune, linear_probe  # noqa: E402
from scmam.learning_rate import rise_and_fall  # noqa: E402
from scmam.objective import build_pretraining  # noqa: E402
from scmam.runs import create_folder, open_run, update_record, write_weights  # noqa: E402
from scmam.settings import Data  # noqa: E402
from scmam.settings import Evaluation as Settings  # noqa: E402

CLASSES = ("B", "NK", "T")
SETTINGS = Settings(folds=3, epochs=4, batch_size=16, hidden=16, lr=3e-3)
CONFIG = {
    "model": {"width": 16, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "bins": 4},
    "masking": {"strategy": "uniform"},
    "training": {"seed": 7, "device": "cpu"},
}


def planted(num_cells=90, genes=24, seed=0, labels=None, donors=None):
    """Cells of three classes, each of which expresses four genes of its own; one gene is never
    there.
    """
    random = np.random.default_rng(seed)
    codes = np.arange(num_cells) % len(CLASSES)
    rates = np.full((num_cells, genes), 0.3)
    for code in range(len(CLASSES)):
        rates[codes == code, 4 * code : 4 * code + 4] = 8.0
    rates *= random.uniform(0.5, 2, size=(num_cells, 1))
    counts = random.poisson(rates).astype(np.float32)
    counts[:, 12] += 1  # a cell without any count would be a cell that no reader lets through
    counts[:, -1] = 0
    names = (
        np.array(CLASSES, dtype=object)[codes]
        if labels is None
        else np.asarray(labels, dtype=object)
    )
    data = anndata.AnnData(counts)
    data.var_names = [f"gene{gene}" for gene in range(genes)]
    data.obs["cell_type"] = names
    if donors is not None:
        data.obs["donor"] = donors
    return from_anndata(
        data, Data(label="cell_type", donor=None if donors is None else "donor"), name="planted"
    )


def untrained(cells, **model):
    config = validated({**CONFIG, "model": {**CONFIG["model"], **model}})
    return build_pretraining(config, cells.num_genes).eval()


@pytest.fixture(scope="module")
def cells():
    return planted()


@pytest.fixture(scope="module")
def pretraining(cells):
    return untrained(cells)


@pytest.fixture
def run(tmp_path, cells, pretraining):
    config = validated(CONFIG)
    create_folder(tmp_path / "run", config, cells.genes, {"status": "running", "steps": 0}, None)
    write_weights(tmp_path / "run", config, cells.genes, pretraining.state_dict())
    update_record(tmp_path / "run", status="done")
    return open_run(tmp_path / "run")


def parts_of(reader, indices):
    return list(reader.parts(np.asarray(indices)))


def scores(evaluation):
    return [replace(fold, seconds=0.0) for fold in evaluation.folds]


# --------------------------------------------------------------------------------------------------
# features


def test_features_are_those_of_the_model(cells, pretraining):
    expected = pretraining.features(cells.batch(np.arange(len(cells)))).detach().numpy()
    np.testing.assert_allclose(embed(pretraining, cells), expected, atol=1e-5)


def test_features_do_not_depend_on_how_cells_are_put_together(cells, pretraining, monkeypatch):
    together = embed(pretraining, cells)
    monkeypatch.setattr(reading_module, "CPU_TOKENS", 40)
    np.testing.assert_allclose(embed(pretraining, cells), together, atol=1e-5)


def test_parts_hold_every_cell_once_and_few_tokens(cells, pretraining, monkeypatch):
    monkeypatch.setattr(reading_module, "CPU_TOKENS", 100)
    parts = parts_of(sequence_reader(pretraining, cells, None), np.arange(5, 85))
    assert sorted(np.concatenate([part.positions for part in parts]).tolist()) == list(range(80))
    sizes = [len(part.positions) * (part.sequences.values.shape[1] + 1) for part in parts]
    assert max(sizes) <= 100
    assert len(parts) > 5
    padding = sum(int((~part.sequences.valid).sum()) for part in parts)
    assert padding < 0.2 * sum(part.sequences.valid.numel() for part in parts)


def test_the_largest_values_are_read_where_there_are_too_many(cells, pretraining):
    reader = sequence_reader(pretraining, cells, 5)
    [part] = parts_of(reader, [3])
    counts = cells.counts.take(np.array([3])).toarray()[0]
    expected = np.sort(np.argsort(-counts, kind="stable")[:5])
    assert part.sequences.gene_ids[0].tolist() == expected.tolist()
    np.testing.assert_allclose(
        part.sequences.values[0].numpy(), np.log1p(counts[expected]), rtol=1e-6
    )
    assert part.depth.item() == cells.depth[3]


def test_rows_are_read_a_bounded_number_at_a_time(cells, pretraining, monkeypatch):
    monkeypatch.setattr(reading_module, "READ_TOGETHER", 32)
    taken = []
    take = type(cells.counts).take
    monkeypatch.setattr(
        type(cells.counts),
        "take",
        lambda rows, indices: taken.append(len(indices)) or take(rows, indices),
    )
    reader = sequence_reader(pretraining, cells, None)
    taken.clear()
    indices = np.arange(89, -1, -1)
    parts = parts_of(reader, indices)
    assert taken == [32, 32, 26]
    assert sorted(np.concatenate([part.positions for part in parts]).tolist()) == list(range(90))
    for part in parts:
        np.testing.assert_array_equal(part.depth.numpy(), cells.depth[indices[part.positions]])


def test_the_limit_of_the_model_holds_too(cells):
    reader = sequence_reader(untrained(cells, max_encoder_tokens=4), cells, 9)
    assert reader.limit == 4
    assert max(part.sequences.values.shape[1] for part in parts_of(reader, np.arange(90))) == 4


def test_features_leave_the_mode_of_the_model(cells):
    pretraining = untrained(cells, dropout=0.5).train()
    first = embed(pretraining, cells)
    assert pretraining.model.training
    np.testing.assert_array_equal(first, embed(pretraining, cells))


def test_features_that_are_not_finite_are_an_error(cells, pretraining):
    broken = copy.deepcopy(pretraining)
    with torch.no_grad():
        broken.model.encoder.norm.weight[0] = float("nan")
    with pytest.raises(RunError, match="features: the model gives values that are not finite"):
        embed(broken, cells)


def test_cells_over_other_genes_are_refused(pretraining):
    with pytest.raises(
        CellsError, match="planted: X: expected the 24 genes of the model, in its order; got 20"
    ):
        linear_probe(pretraining, planted(genes=20), SETTINGS)


# --------------------------------------------------------------------------------------------------
# linear probe


def test_probe_tells_planted_classes_apart(cells, pretraining):
    found = linear_probe(pretraining, cells, SETTINGS, 7)
    assert found.method == "linear-probe"
    assert found.classes == CLASSES
    assert found.mean("accuracy") > 0.85
    assert found.mean("macro_f1") > 0.85
    assert [fold.test_cells for fold in found.folds] == [30, 30, 30]
    assert [fold.train_cells for fold in found.folds] == [60, 60, 60]
    assert found.confusion().sum(axis=1).tolist() == [30, 30, 30]
    assert found.settings["seed"] == 7
    assert found.settings["classifier"].startswith(
        "logistic regression (lbfgs, L2, C = 0.1) on whitened features"
    )


def test_probe_of_shuffled_labels_is_chance(pretraining):
    labels = np.random.default_rng(1).permutation(np.repeat(CLASSES, 100))
    found = linear_probe(pretraining, planted(300, labels=labels), SETTINGS)
    assert abs(found.mean("accuracy") - 1 / 3) < 0.1


def test_probe_is_the_same_again(cells, pretraining):
    assert scores(linear_probe(pretraining, cells, SETTINGS)) == scores(
        linear_probe(pretraining, cells, SETTINGS)
    )


def test_probe_uses_nothing_of_the_test_cells(cells, pretraining):
    """Whatever is fitted is fitted on the training cells: other test features of a fold change no
    other prediction of it.
    """
    from scmam.data import folds

    features = embed(pretraining, cells)
    plain = linear_probe(pretraining, cells, SETTINGS, features=features)
    changed = features.copy()
    test = folds(cells, 3, 0)[0][1]
    changed[test[0]] *= 100
    other = linear_probe(pretraining, cells, SETTINGS, features=changed)
    moved = np.abs(np.subtract(plain.folds[0].confusion, other.folds[0].confusion)).sum()
    assert moved in (0, 2)  # the one cell, at most


def test_cells_without_a_label_are_left_out(pretraining):
    labels = np.array(CLASSES, dtype=object)[np.arange(90) % 3]
    labels[::5] = np.nan
    found = linear_probe(pretraining, planted(labels=labels), SETTINGS)
    assert sum(fold.test_cells for fold in found.folds) == 72
    assert found.settings["cells"] == 72


def test_settings_are_chosen_on_cells_that_are_not_scored(cells, pretraining):
    scored = {}
    for part in ("development", "rest"):
        settings = SETTINGS.model_copy(
            update={"development": 0.3, "part": part, "methods": ("linear-probe",)}
        )
        found = linear_probe(pretraining, cells, settings)
        scored[part] = cross_validation.scored_positions(cells, settings)
        assert found.confusion().sum() == len(scored[part])
        assert baseline("pca", cells, settings).confusion().sum() == len(scored[part])
        assert (found.settings["development"], found.settings["part"]) == (0.3, part)
    assert [len(scored[part]) for part in ("development", "rest")] == [27, 63]
    assert not set(scored["development"]) & set(scored["rest"])


def test_a_fold_trains_on_fewer_cells_and_is_tested_on_all(cells, pretraining):
    found = linear_probe(pretraining, cells, SETTINGS.model_copy(update={"train_cells": 12}))
    assert [fold.train_cells for fold in found.folds] == [12, 12, 12]
    assert found.confusion().sum() == len(cells)
    assert found.settings["train_cells"] == 12
    assert found.mean("accuracy") <= linear_probe(pretraining, cells, SETTINGS).mean("accuracy")


def test_donors_stay_together_and_a_class_may_be_absent_from_a_fold(pretraining):
    donors = np.array([f"donor{index // 30}" for index in range(90)])
    labels = np.array(CLASSES, dtype=object)[np.arange(90) % 3]
    labels[(donors != "donor0") & (labels == "NK")] = (
        "T"  # NK is in one donor: never both trained on and tested
    )
    found = linear_probe(pretraining, planted(labels=labels, donors=donors), SETTINGS)
    assert sorted(fold.test_cells for fold in found.folds) == [30, 30, 30]
    assert [fold.per_class_f1[1] for fold in found.folds] == [0.0, 0.0, 0.0]
    assert all(len(fold.confusion) == 3 for fold in found.folds)
    assert found.settings["donor"] == "donor"


def test_a_fold_that_would_train_on_one_class_is_an_error(pretraining):
    donors = np.array([f"donor{index // 45}" for index in range(90)])
    labels = np.where(np.arange(90) < 45, "B", "T")
    with pytest.raises(
        CellsError,
        match=r"planted: X: the training cells of fold 1 are all [BT], for donors are kept",
    ):
        linear_probe(
            pretraining,
            planted(labels=labels, donors=donors),
            SETTINGS.model_copy(update={"folds": 2}),
        )


# --------------------------------------------------------------------------------------------------
# fine-tuning


def test_fine_tuning_tells_planted_classes_apart(cells, pretraining):
    before = copy.deepcopy(pretraining.state_dict())
    found = fine_tune(pretraining, cells, SETTINGS.model_copy(update={"epochs": 8}), 7)
    assert found.method == "fine-tuning"
    assert found.mean("accuracy") > 0.85
    assert found.mean("macro_f1") > 0.85
    assert found.settings["epochs"] == 8
    for name, tensor in pretraining.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_fine_tuning_of_shuffled_labels_is_chance(pretraining):
    labels = np.random.default_rng(1).permutation(np.repeat(CLASSES, 70))
    found = fine_tune(
        pretraining, planted(210, labels=labels), SETTINGS.model_copy(update={"epochs": 3})
    )
    assert abs(found.mean("accuracy") - 1 / 3) < 0.12


def test_equal_seeds_give_equal_scores_and_touch_no_generator(cells):
    pretraining = untrained(cells, dropout=0.1)
    settings = SETTINGS.model_copy(update={"epochs": 1, "lr": 1e-3})
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = fine_tune(pretraining, cells, settings, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert scores(fine_tune(pretraining, cells, settings, 5)) == scores(first)
    assert scores(fine_tune(pretraining, cells, settings, 6)) != scores(first)


def test_what_is_frozen_stays_and_what_learns_moves(cells, pretraining):
    features = embed(pretraining, cells)
    classifier = fine_tuning._classifier(pretraining.model, features, SETTINGS, 3)
    before = copy.deepcopy(classifier.state_dict())
    reader = sequence_reader(pretraining, cells, None)
    settings = SETTINGS.model_copy(update={"epochs": 2})
    fine_tuning.fit(
        classifier, reader, np.arange(60), cells.codes, settings, torch.Generator().manual_seed(0)
    )
    moved = {
        name
        for name, tensor in classifier.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    trained = ("model.embedding.", "model.encoder.blocks.1.", "model.encoder.norm.", "head.")
    assert moved
    assert all(name.startswith(trained) for name in moved)
    expected = {name for name, _ in classifier.named_parameters() if name.startswith(trained)}
    assert expected - moved <= {"model.encoder.blocks.1.qkv.bias"}
    assert {
        name for name, parameter in classifier.named_parameters() if parameter.requires_grad
    } == expected


def test_whitening_makes_features_uncorrelated_and_leaves_rounding_small():
    """Its variances are v / (v + a hundredth of the mean), along the axes of the features."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    scales = np.array([100.0, 3.0, 1.0, 0.5, 1e-9, 0.0])
    features = (random.normal(size=(4000, 6)) * scales) @ rotation + 7.0
    mean, axes = fine_tuning.whitening(features.astype(np.float32))
    white = (torch.from_numpy(features).float() - mean) @ axes
    covariance = torch.cov(white.double().T, correction=0)
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False, bias=True))
    expected = variances / (variances + fine_tuning.LEAST_VARIANCE * variances.mean())
    torch.testing.assert_close(
        covariance.diagonal().sort().values,
        torch.from_numpy(expected).sort().values,
        rtol=2e-2,
        atol=1e-3,
    )
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-2
    constant = fine_tuning.whitening(np.ones((5, 3), dtype=np.float32))
    assert torch.isfinite(constant[1]).all()


def test_standardised_features_have_variance_one_and_constant_ones_none(cells, pretraining):
    features = embed(pretraining, cells).copy()
    features[:, 3] = 0.7
    mean, axes = fine_tuning.standardising(features)
    shown = (torch.from_numpy(features) - mean) @ axes
    expected = torch.ones(features.shape[1])
    expected[3] = 0
    torch.testing.assert_close(shown.std(dim=0, correction=0), expected, atol=1e-3, rtol=0)
    assert torch.equal(axes, axes.diagonal().diag())
    found = fine_tune(
        pretraining, cells, SETTINGS.model_copy(update={"head_input": "standardised"})
    )
    assert "standardised" in found.settings["trained"]
    assert found.mean("macro_f1") > 0.8


def test_the_head_learns_first_and_alone(cells, pretraining):
    features = embed(pretraining, cells)
    torch.manual_seed(0)
    classifier = fine_tuning._classifier(pretraining.model, features, SETTINGS, 3)
    before = copy.deepcopy(classifier.state_dict())
    fine_tuning.fit_head(
        classifier, features, cells.codes, SETTINGS, torch.Generator().manual_seed(0)
    )
    moved = {
        name
        for name, tensor in classifier.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    predicted = fine_tuning.predictions(
        classifier, sequence_reader(pretraining, cells, None), np.arange(90)
    )
    assert (predicted == cells.codes).mean() > 0.9


def test_the_gradient_of_a_batch_does_not_depend_on_its_parts(cells, pretraining, monkeypatch):
    features = embed(pretraining, cells)
    monkeypatch.setattr(fine_tuning, "DROPOUT", 0.0)
    results = []
    for tokens in (40, 10**6):
        monkeypatch.setattr(reading_module, "CPU_TOKENS", tokens)
        torch.manual_seed(0)
        classifier = fine_tuning._classifier(pretraining.model, features, SETTINGS, 3)
        reader = sequence_reader(pretraining, cells, None)
        settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": 30, "lr": 1e-4})
        fine_tuning.fit(
            classifier,
            reader,
            np.arange(30),
            cells.codes,
            settings,
            torch.Generator().manual_seed(0),
        )
        results.append(classifier.head[0].weight.grad.clone())
    assert results[0].abs().max() > 1e-4
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-6)


def test_fine_tuning_that_diverges_is_an_error(cells, pretraining):
    broken = copy.deepcopy(pretraining)
    with torch.no_grad():
        broken.model.embedding.gene.weight[12] = 1e38  # of a gene that every cell has
    features = embed(pretraining, cells)
    with pytest.raises(
        RunError, match=r"fine-tuning: diverged at evaluation.lr = 0.003; set a lower one"
    ):
        fine_tune(broken, cells, SETTINGS, features=features)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same(cells, pretraining):
    on_gpu = copy.deepcopy(pretraining).to("cuda")
    np.testing.assert_allclose(embed(on_gpu, cells), embed(pretraining, cells), atol=1e-3)
    settings = SETTINGS.model_copy(update={"epochs": 8})
    found, expected = (
        fine_tune(on_gpu, cells, settings, 7),
        fine_tune(pretraining, cells, settings, 7),
    )
    # Dropout draws other numbers.
    assert found.mean("accuracy") == pytest.approx(expected.mean("accuracy"), abs=0.1)


def test_the_learning_rate_rises_and_falls():
    rates = [rise_and_fall(step, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert rise_and_fall(0, 1, 1) == 1.0


# --------------------------------------------------------------------------------------------------
# baselines


def test_log_normalised_by_hand(cells):
    batch = cells.batch(np.arange(4))
    expected = np.log1p(batch.counts.numpy() * 1e4 / batch.depth.numpy()[:, None])
    np.testing.assert_allclose(log_normalised(cells)[:4].toarray(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["logistic-regression", "pca"])
def test_baselines_tell_planted_classes_apart(cells, name):
    found = baseline(name, cells, SETTINGS)
    assert found.method == name
    assert found.mean("accuracy") > 0.9
    assert scores(found) == scores(baseline(name, cells, SETTINGS))


@pytest.mark.parametrize("name", ["logistic-regression", "pca"])
def test_baselines_of_shuffled_labels_are_chance(name):
    labels = np.random.default_rng(1).permutation(np.repeat(CLASSES, 100))
    assert abs(baseline(name, planted(300, labels=labels), SETTINGS).mean("accuracy") - 1 / 3) < 0.1


def test_an_unknown_baseline(cells):
    with pytest.raises(
        ConfigError, match=r"study.baselines: expected one of logistic-regression, pca; got 'svm'"
    ):
        baseline("svm", cells, SETTINGS)


@pytest.fixture(scope="module")
def real_cells():
    return open_cells(Data(), need_label=True)


def test_baselines_on_real_cells(real_cells):
    """0.836 and 0.682 were measured on other folds of the same 700 cells."""
    found = baseline("logistic-regression", real_cells, Settings())
    assert found.mean("accuracy") == pytest.approx(0.836, abs=0.03)
    assert found.mean("macro_f1") == pytest.approx(0.682, abs=0.03)
    assert found.mean("micro_f1") == pytest.approx(found.mean("accuracy"))
    components = baseline("pca", real_cells, Settings())
    assert components.mean("accuracy") == pytest.approx(0.82, abs=0.03)
    assert (
        [fold.test_cells for fold in found.folds]
        == [fold.test_cells for fold in components.folds]
        == [140] * 5
    )


def test_probe_of_an_untrained_encoder_on_real_cells(real_cells):
    config = validated({"training": {"seed": 0}})
    found = linear_probe(
        build_pretraining(config, real_cells.num_genes), real_cells, Settings(max_tokens=64)
    )
    assert len(found.classes) == 10
    # The largest class is 34 % of the cells; the counts themselves give 0.83.
    assert 0.5 < found.mean("accuracy") < 0.8


def test_probe_of_the_harder_file(tmp_path):
    path = Path(__file__).parents[3] / "shared" / "data" / "paul15_counts.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    data = Data(path=path, label="paul15_clusters", genes="variable", num_genes=200)
    cells = open_cells(data, need_label=True)
    found = linear_probe(build_pretraining(validated(CONFIG), 200), cells, Settings(max_tokens=32))
    assert len(found.classes) == 19
    assert 0.2 < found.mean("accuracy") < 0.7
    assert found.confusion().sum() == 2730


# --------------------------------------------------------------------------------------------------
# evaluate


def test_evaluate_writes_what_it_returns(run, cells, pretraining, capsys):
    found = evaluate(run, cells, SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert list(found) == ["linear-probe", "fine-tuning"]
    assert sum(line.startswith("fine-tuning: fold ") for line in lines) == 3
    assert lines[0].startswith("linear-probe: fold 1 of 3: accuracy 0.")
    folder = run.folder / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == [
        "embedding.npz",
        "fine-tuning.json",
        "linear-probe.json",
    ]
    for method, evaluation in found.items():
        stored = json.loads((folder / f"{method}.json").read_text())
        assert stored["method"] == method
        assert stored["classes"] == list(CLASSES)
        assert [fold["accuracy"] for fold in stored["folds"]] == [
            fold.accuracy for fold in evaluation.folds
        ]
        assert stored["settings"] == evaluation.settings
    assert scores(found["linear-probe"]) == scores(linear_probe(pretraining, cells, SETTINGS))
    assert scores(found["fine-tuning"]) == scores(fine_tune(pretraining, cells, SETTINGS, 7))
    with np.load(folder / "embedding.npz") as stored:
        assert stored["features"].dtype == np.float16
        np.testing.assert_allclose(
            stored["features"].astype(np.float32), embed(pretraining, cells), rtol=2e-3, atol=1e-3
        )
        assert stored["codes"].tolist() == cells.codes.tolist()
        assert stored["classes"].tolist() == list(CLASSES)
        assert stored["cell_ids"].tolist() == cells.cell_ids.tolist()


def test_evaluate_scores_a_part_and_embeds_all(run, cells, pretraining):
    settings = SETTINGS.model_copy(update={"development": 0.3, "methods": ("linear-probe",)})
    found = evaluate(run, cells, settings, progress=False)["linear-probe"]
    direct = linear_probe(pretraining, cells, settings, 7)
    assert scores(found) == scores(direct)
    with np.load(run.folder / "evaluation" / "embedding.npz") as stored:
        assert len(stored["features"]) == len(cells)


def test_evaluate_does_not_do_again_what_is_there(run, cells, capsys):
    settings = SETTINGS.model_copy(update={"epochs": 1})
    first = evaluate(run, cells, settings, progress=False)
    assert capsys.readouterr().out == ""
    written = {path.name: path.stat().st_mtime_ns for path in (run.folder / "evaluation").iterdir()}
    assert evaluate(run, cells, settings) == first
    assert capsys.readouterr().out.splitlines() == [
        "linear-probe: already there",
        "fine-tuning: already there",
    ]
    assert {
        path.name: path.stat().st_mtime_ns for path in (run.folder / "evaluation").iterdir()
    } == written
    again = evaluate(run, cells, settings.model_copy(update={"epochs": 2}))
    assert again["linear-probe"] == first["linear-probe"]
    assert again["fine-tuning"].settings["epochs"] == 2
    assert (
        "fine-tuning: computed again, for its cells, settings or weights have changed"
        in capsys.readouterr().out
    )


def test_evaluate_again_after_the_weights_or_a_file_changed(run, cells, capsys):
    first = evaluate(run, cells, SETTINGS, methods=["linear-probe"], progress=False)["linear-probe"]
    moved = {name: tensor * 1.5 for name, tensor in untrained(cells).state_dict().items()}
    write_weights(run.folder, run.config, run.genes, moved)
    other = evaluate(run, cells, SETTINGS, methods=["linear-probe"])["linear-probe"]
    assert other.settings["weights"] != first.settings["weights"]
    assert (
        "linear-probe: computed again, for its cells, settings or weights have changed"
        in capsys.readouterr().out
    )
    path = run.folder / "evaluation" / "linear-probe.json"
    path.write_text("{")
    (run.folder / "evaluation" / "embedding.npz").write_bytes(b"PK")
    third = evaluate(run, cells, SETTINGS, methods=["linear-probe"])["linear-probe"]
    assert scores(third) == scores(other)
    assert "not the scores of an evaluation" in capsys.readouterr().out
    with np.load(run.folder / "evaluation" / "embedding.npz") as stored:
        assert len(stored["features"]) == len(cells)


def test_cells_are_matched_to_the_genes_of_the_run_by_name(run, cells):
    random = np.random.default_rng(0)
    counts = cells.counts.whole().toarray()
    order = random.permutation(24)
    data = anndata.AnnData(
        np.concatenate([counts[:, order], np.zeros((90, 1), dtype=np.float32)], axis=1)
    )
    data.var_names = [f"gene{gene}" for gene in order] + ["another"]
    data.obs["cell_type"] = cells.labels
    other = from_anndata(data, Data(label="cell_type"), name="reordered")
    assert other.genes != cells.genes
    expected = evaluate(run, cells, SETTINGS, methods=["linear-probe"], progress=False)[
        "linear-probe"
    ]
    found = evaluate(run, other, SETTINGS, methods=["linear-probe"], progress=False)["linear-probe"]
    assert scores(found) == scores(expected)


def test_genes_that_the_cells_do_not_have(run):
    with pytest.raises(CellsError) as raised:
        evaluate(run, planted(genes=20), SETTINGS)
    message = str(raised.value)
    assert message.startswith("planted: X: 4 of the 24 genes that ")
    assert (
        "(gene20, gene21, gene22, gene23); read the cells with data.genes=vocabulary and"
        " data.vocabulary=" in message
    )
    assert "\n" not in message


def test_evaluate_refuses(run, cells):
    with pytest.raises(
        ConfigError,
        match=r"evaluation.methods.0: input should be 'linear-probe', .*; got 'knn'$",
    ):
        evaluate(run, cells, SETTINGS, methods=["knn"])
    with pytest.raises(
        CellsError, match=r"has no labels; set data.label to a column with at least two classes"
    ):
        evaluate(run, replace(cells, labels=None, label=None, classes=()), SETTINGS)
    update_record(run.folder, status="interrupted")
    with pytest.raises(RunError, match="pretraining is not done"):
        evaluate(open_run(run.folder), cells, SETTINGS)
    assert not (run.folder / "evaluation").exists()
