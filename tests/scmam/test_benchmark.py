"""The benchmark of maskings: its arms, what is paired with what, and nothing is done twice."""

import json

import pytest

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")

import numpy as np
import pandas
from scmam.benchmark import running
from scmam.benchmark.arms import ARMS, chosen_arms, with_arms
from scmam.benchmark.folder import (
    Benchmark,
    DataSet,
    open_benchmark,
    read_curves,
    read_runs,
    save_benchmark,
    scores_file,
    work_folder,
)
from scmam.benchmark.page import draw_page
from scmam.benchmark.running import _groups, benchmark
from scmam.benchmark.summary import EVERY, choices_of, summarize, summary_of
from scmam.benchmark.work import do_arms
from scmam.cli import main
from scmam.config import load_config
from scmam.data import open_cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.evaluation.test_bed import METRICS, bed_scores
from scmam.study.arms import arm_config

from tests.scmam.small import SMALL_MODEL

TINY = {
    **SMALL_MODEL,
    "training.steps": 3,
    "training.batch_size": 16,
    "training.validation": 0.0,
    "training.device": "cpu",
    "evaluation.development": 0.3,
    "evaluation.train_cells": 100,
    "evaluation.methods": ["linear-probe"],
    "study.seeds": [0],
    "study.jobs": 1,
}
SET = DataSet(None, 30)


def test_every_arm_is_a_valid_masking_and_hides_as_much_as_its_reference():
    config = with_arms(load_config(None, TINY))
    for name, arm in ARMS.items():
        masking = arm_config(config, name, 0).masking
        assert masking.corruption_view == "decoder"
        if arm.same_share is not None and masking.ratio_to is None:
            same = arm_config(config, arm.same_share, 0).masking
            assert (masking.ratio, masking.zero_ratio) == (same.ratio, same.zero_ratio), name
            assert masking.corruption == same.corruption, name
            assert same.strategy == "uniform", name
    assert len(chosen_arms(["grid"])) == 33  # 5 shares x 3 of the zeros x 2, two over all, none


def test_arms_are_chosen_by_name_group_and_pattern():
    assert chosen_arms(["7*-tenth"]) == ("uniform", "70-tenth")
    assert chosen_arms(["permuted-50"]) == ("uniform", "mam-sharp-50", "permuted-50")
    assert chosen_arms(["all"]) == tuple(ARMS)
    with pytest.raises(ConfigError, match=r"expected some of .* or a pattern; got '40-tenth'"):
        chosen_arms(["40-tenth"])


def test_an_arm_is_trained_in_the_process_of_the_one_it_follows():
    groups = _groups(chosen_arms(["all"]))
    assert sorted(arm for group in groups for arm in group) == sorted(ARMS)
    for group in groups:
        for place, arm in enumerate(group):
            assert ARMS[arm].follows is None or ARMS[arm].follows in group[:place]


def planted(gain: float, noise: float = 1.0) -> pandas.DataFrame:
    """Scores of six seeds whose level differs far more than the arms do."""
    random = np.random.default_rng(0)
    rows = []
    for seed in range(6):
        level = random.normal(0.6, 0.1)
        for arm, more in (("uniform", 0.0), ("50-tenth", gain), ("labels-50", gain)):
            value = level + more / 100 + random.normal(0, noise / 1000)
            rows.append(("cells", 300, arm, seed, "rest", "probe", value))
    return pandas.DataFrame(
        rows, columns=["data", "genes", "arm", "seed", "part", "metric", "value"]
    )


def test_differences_are_paired_by_seed():
    table = summary_of(planted(gain=2.0)).set_index(["arm", "against"])
    found = table.loc[("50-tenth", "uniform")]
    assert found.low < 2.0 < found.high
    assert found.high - found.low < 0.6
    assert found.seeds == 6
    same = table.loc[("labels-50", "same share")]
    assert same.low < 0.0 < same.high


def test_a_seed_without_its_pair_does_not_count():
    runs = planted(gain=2.0)
    runs = runs[~((runs.arm == "uniform") & (runs.seed == 3))]
    table = summary_of(runs).set_index(["arm", "against"])
    assert table.loc[("50-tenth", "uniform")].seeds == 5


def screened(seeds: int, **gains: tuple[float, float]) -> pandas.DataFrame:
    """Scores of arms on two sets of cells; `gains` over uniform on development and other cells, of
    which the first three seeds get twice as much on the other cells.
    """
    rows = [
        (data, 300, arm, seed, part, "probe", 0.5 + 0.01 * seed + gain / 100 * (1 + (seed < 3)))
        for data in ("blood", "worm")
        for seed in range(seeds)
        for arm, both in {"uniform": (0.0, 0.0), **gains}.items()
        for part, gain in zip(("development", "rest"), both, strict=True)
    ]
    return pandas.DataFrame(
        rows, columns=["data", "genes", "arm", "seed", "part", "metric", "value"]
    )


def test_an_arm_is_chosen_on_development_cells_and_tested_on_other_cells_and_seeds():
    gains = {"50-tenth": (2.0, 1.0), "70-tenth": (1.0, 5.0), "labels-50": (9.0, 9.0)}
    table = choices_of(screened(8, **gains)).set_index("data")
    assert list(table.index) == ["blood", "worm", EVERY]
    assert set(table.arm) == {"50-tenth"}  # not the best on the other cells, nor the oracle
    assert set(table.candidates) == {3}
    assert table.on_development.tolist() == pytest.approx([4.0] * 3)
    assert table.difference.tolist() == pytest.approx([1.0] * 3)
    assert set(table.seeds) == {5}
    assert table.other_seeds.all()


def test_a_choice_needs_the_first_seeds_of_an_arm():
    runs = screened(3, **{"50-tenth": (2.0, 1.0), "70-tenth": (3.0, 5.0)})
    runs = runs[~((runs.arm == "70-tenth") & (runs.seed == 1))]
    table = choices_of(runs)
    assert set(table.arm) == {"50-tenth"}
    assert not table.other_seeds.any()
    assert table.difference.tolist() == pytest.approx([2.0] * 3)
    assert choices_of(runs[runs.seed < 2]).empty
    behind = choices_of(screened(3, **{"50-tenth": (-1.0, 4.0)}))
    assert set(behind.arm) == {"uniform"}
    assert set(behind.difference) == {0.0}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A benchmark of a few steps, trained in this process."""
    folder = tmp_path_factory.mktemp("benchmark")
    save_benchmark(folder, Benchmark(with_arms(load_config(None, TINY)), {SET.name: SET}))
    arms = (
        "uniform",
        "untrained",
        "50-tenth",
        "mam-sharp-50",
        "replayed-50",
        "permuted-50",
        "harder-50",
    )
    do_arms(folder, SET.name, 0, (*arms, "labels-50", "modules-50"), lambda stage: None)
    return folder


def test_every_run_leaves_its_scores_and_nothing_else(done):
    runs = read_runs(done)
    assert set(runs[runs.part == "rest"].metric) == set(METRICS)
    labels = runs[(runs.arm == "labels-50") & (runs.part == "masks")].set_index("metric").value
    assert 0.4 < labels["hidden_nonzero"] <= 0.5
    assert labels["entropy"] < 0.97
    assert not work_folder(done, SET.name, "uniform", 0).exists()
    untrained = runs[runs.arm == "untrained"]
    assert set(untrained.part) == {"rest", "development"}  # it hides nothing
    assert read_curves(done).empty


def test_what_is_done_is_not_done_again(done):
    path = scores_file(done, SET.name, "harder-50", 0)
    record = {**json.loads(path.read_text()), "seconds": -1.0}
    path.write_text(json.dumps(record))
    do_arms(done, SET.name, 0, ("uniform", "harder-50"), lambda stage: None)
    assert json.loads(path.read_text())["seconds"] == -1.0


def test_tables_and_pictures(done):
    table = summarize(done)
    assert set(table.arm) == set(read_runs(done).arm)
    assert (done / "summary.csv").is_file()
    page = draw_page(done).read_text()
    assert page.count("<svg") == 2 * len(METRICS)
    assert "informative genes more often" in page


def test_learning_curves(tmp_path):
    opened = Benchmark(
        with_arms(load_config(None, {**TINY, "training.steps": 5})), {SET.name: SET}, curve=2
    )
    save_benchmark(tmp_path, opened)
    assert open_benchmark(tmp_path).curve == 2
    do_arms(tmp_path, SET.name, 0, ("untrained", "mam"), lambda stage: None)
    runs, curves = (
        table.query("metric == 'probe' and part == 'rest'").set_index("arm")
        for table in (read_runs(tmp_path), read_curves(tmp_path))
    )
    assert curves.loc["mam"].step.tolist() == [2, 4, 5]
    assert curves.loc[["untrained"]].step.tolist() == [0]
    assert curves.loc["mam"].value.tolist()[-1] == runs.value["mam"]
    # The weights are those of their step: so are they where snapshots are taken at other steps.
    save_benchmark(tmp_path / "other", opened._replace(curve=4))
    do_arms(tmp_path / "other", SET.name, 0, ("mam",), lambda stage: None)
    again = read_curves(tmp_path / "other").query("metric == 'probe' and part == 'rest'")
    assert again.step.tolist() == [4, 5]
    assert again.value.tolist() == curves.loc["mam"].value.tolist()[1:]
    assert len(set(curves.loc["mam"].value)) > 1
    assert "steps of pretraining" in draw_page(tmp_path).read_text()
    assert (tmp_path / "curves.csv").is_file()


def test_fine_tuning_is_an_option(tmp_path):
    methods = {"evaluation.methods": ["fine-tuning"], "evaluation.folds": 2, "evaluation.epochs": 1}
    config = with_arms(load_config(None, {**TINY, **methods}))
    save_benchmark(tmp_path, Benchmark(config, {SET.name: SET}))
    do_arms(tmp_path, SET.name, 0, ("untrained",), lambda stage: None)
    tuned = read_runs(tmp_path).query("metric == 'fine-tuning'")
    assert tuned.part.tolist() == ["rest"]
    assert tuned.value.between(0.05, 0.95).all()
    assert "fine-tuning, macro-F1" not in draw_page(tmp_path).read_text()  # nothing to compare


def test_another_model_needs_another_folder(done):
    other = load_config(None, {**TINY, "training.steps": 4})
    with pytest.raises(RunError, match=r"other settings \(training.steps: 3 -> 4\); give another"):
        benchmark(other, [SET], done, arms=["uniform"], progress=False)
    other = load_config(None, {**TINY, "masking.num_latents": 5})
    with pytest.raises(RunError, match=r"\(masking.num_latents: \d+ -> 5\)"):
        benchmark(other, [SET], done, arms=["uniform"], progress=False)


def test_data_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path):
    config, out = load_config(None, TINY), tmp_path / "out"
    with pytest.raises(CellsError, match=r"missing.h5ad: no such file"):
        benchmark(config, [SET, DataSet(str(tmp_path / "missing.h5ad"), 30)], out, progress=False)
    wrong = load_config(None, {**TINY, "data.label": "nothing"})
    with pytest.raises(CellsError, match=r"'nothing', which is no column of .obs; there are"):
        benchmark(wrong, [SET], out, progress=False)
    assert not out.exists()


def test_two_files_of_one_name_are_told_apart(tmp_path):
    first, second = tmp_path / "a" / "cells.h5ad", tmp_path / "b" / "cells.h5ad"
    for path in (first, second):
        path.parent.mkdir()
        path.touch()
    config, sets = load_config(None, TINY), [DataSet(str(path), 30) for path in (first, second)]
    save_benchmark(tmp_path, Benchmark(with_arms(config), {sets[0].name: sets[0]}))
    with pytest.raises(RunError, match=r"has scores of .*a/cells.h5ad, and .*b/cells.h5ad has the"):
        benchmark(config, sets[1:], tmp_path, progress=False)
    first.unlink()  # it was moved, then
    with pytest.raises(CellsError, match=r"b/cells.h5ad: not"):  # for it is empty
        benchmark(config, sets[1:], tmp_path, progress=False)


def test_the_bed_tells_signal_from_noise():
    settings = load_config(None, TINY)
    cells = open_cells(SET.config(settings).data, need_label=True)
    random = np.random.default_rng(0)
    noise = random.normal(size=(len(cells), 12))
    signal = noise + 6 * random.normal(size=(len(cells.classes), 12))[cells.codes]
    for part in ("rest", "development"):
        low = bed_scores(noise, cells, settings.evaluation)[part]
        high = bed_scores(signal, cells, settings.evaluation)[part]
        assert low["probe"] < 0.2
        assert low["ari"] < 0.05
        assert low["silhouette"] < 0.02
        assert high["probe"] > 0.75
        assert high["k-nn"] > 0.45  # 15 neighbours outvote a class of few training cells
        assert high["ari"] > 0.7
        assert high == bed_scores(signal, cells, settings.evaluation)[part]


def test_only_what_is_missing_is_run(tmp_path):
    config = load_config(None, TINY)
    outcomes = benchmark(config, [SET], tmp_path / "out", arms=["uniform"], progress=False)
    assert [outcome.error for outcome in outcomes] == [None]
    assert (tmp_path / "out" / "runs.csv").is_file()
    assert benchmark(config, [SET], tmp_path / "out", arms=["uniform"], progress=False) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(RunError, match="other: not empty, and no benchmark; give another folder"):
        benchmark(config, [SET], tmp_path / "other", progress=False)


@pytest.fixture
def instant(monkeypatch):
    """Runs take no time: scores differ from uniform by 2 points, and by twice the spread of their
    arm in every other seed. Returns the seeds that were run, by arm.
    """
    spread, done = {"mam": 0.1, "50-tenth": 1.0, "70-tenth": 9.0}, {}

    def carry_out(tasks, command, settings, lock, after, *, progress):
        for task in tasks:
            for path in task.outputs:
                arm, seed = path.parent.name, int(path.stem.removeprefix("seed-"))
                assert not path.exists()
                done.setdefault(arm, []).append(seed)
                score = 0.5 + (arm != "uniform") * (0.02 + (-1) ** seed * spread.get(arm, 0) / 100)
                head = {"data": SET.data, "genes": 30, "arm": arm, "seed": seed, "masks": {}}
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({**head, "scores": {"rest": {"probe": score}}}))
        after()
        return []

    monkeypatch.setattr(running, "carry_out", carry_out)
    return done


def test_seeds_are_added_until_the_intervals_are_narrow(tmp_path, instant):
    config = load_config(None, {**TINY, "study.seeds": [0, 5, 6]})
    arms = ["untrained", "mam", "50-tenth", "70-tenth"]
    benchmark(config, [SET], tmp_path / "out", arms=arms, until=1.0, most_seeds=10, progress=False)
    assert instant["mam"] == [0, 5, 6] == instant["untrained"]  # 0.1 points; first weights
    table = summarize(tmp_path / "out").query("against == 'uniform'").set_index("arm")
    halves = (table.high - table.low) / 2
    assert halves["mam"] < 1
    assert halves["50-tenth"] < 1
    assert halves["70-tenth"] > 1
    assert instant["50-tenth"] == [0, 5, 6, *range(7, 7 + len(instant["50-tenth"]) - 3)]
    assert 3 < len(instant["50-tenth"]) < 10
    assert instant["70-tenth"] == [0, 5, 6, 7, 8, 9, 10, 11, 12, 13] == instant["uniform"]
    before = {arm: list(seeds) for arm, seeds in instant.items()}
    benchmark(config, [SET], tmp_path / "out", arms=arms, until=1.0, most_seeds=10, progress=False)
    assert instant == before
    with pytest.raises(ConfigError, match=r"--until: expected points above 0; got 0"):
        benchmark(config, [SET], tmp_path / "out", until=0, progress=False)


def test_a_single_seed_gets_a_second(tmp_path, instant):
    benchmark(
        load_config(None, TINY), [SET], tmp_path / "out", arms=["mam"], until=9, progress=False
    )
    assert instant["mam"] == [0, 1]


def test_a_settings_file_is_over_the_settings_of_the_benchmark(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(running, "benchmark", lambda config, *_, **__: given.update(c=config) or [])
    (tmp_path / "mine.yaml").write_text("training: {steps: 40}\n")
    files = ["--config", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *files])
    assert not ended.value.code
    training = given["c"].training
    assert (training.steps, training.validation) == (40, 0)  # the file's, the benchmark's
