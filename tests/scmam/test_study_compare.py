"""A study as a whole: what is run and what is skipped, how it grows, what is refused.

Training is replaced but in one test.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")

import anndata
import numpy as np
import pandas
from scmam.config import load_config, validated
from scmam.data import from_anndata, open_cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.runs import open_run
from scmam.study.comparison import compare
from scmam.study.folder import is_study, open_study
from scmam.study.statistics import summarize
from scmam.study.tasks import planned

# Does what a worker leaves behind, in no time. Scores are functions of arm and seed; the arm
# "broken" ends with an error once.
WORKER = """
import json, os, sys, time
from pathlib import Path

study, *rest = sys.argv[1:]
cells = rest[rest.index("--cells") + 1] if "--cells" in rest else None
rest = rest[2:] if cells else rest
assert cells is None or Path(cells).stat().st_size > 0


def report(**said):
    os.write(int(os.environ["SCMAM_REPORTS"]), (json.dumps(said) + "\\n").encode())


def write(path, method, score):
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = dict(accuracy=score, macro_f1=score / 2, micro_f1=score, per_class_f1=[score])
    sizes = dict(confusion=[[1]], train_cells=2, test_cells=1, seconds=0.0)
    folds = [dict(fold=fold, **scores, **sizes) for fold in (0, 1)]
    beside = path.with_name("." + path.name)
    beside.write_text(json.dumps(dict(method=method, classes=["a"], folds=folds, settings={})))
    beside.replace(path)


if rest[0] == "baseline":
    write(Path(study, "baselines", rest[1] + ".json"), rest[1], 0.9)
else:
    arm, seed = rest[1], int(rest[2])
    report(stage="pretraining")
    if arm == "broken" and not Path(study, "mended").exists():
        print("error: it is broken")
        report(error="it is broken")
        sys.exit(2)
    time.sleep(float(os.environ.get(f"SLOW_{seed}", os.environ.get("SLOW", 0))))
    run = Path(study, "runs", arm, f"seed-{seed}")
    run.mkdir(parents=True, exist_ok=True)
    (run / "model.pt").touch()
    for method in ("linear-probe", "fine-tuning"):
        write(run / "evaluation" / f"{method}.json", method, 0.1 * len(arm) / 10 + 0.01 * seed)
    if "--interpret" in rest:
        (run / "genes").mkdir(exist_ok=True)
        (run / "genes" / "latents.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def adata():
    """120 real cells of two classes, 60 genes, as counts."""
    cells = open_cells()
    first, second = sorted(cells.class_sizes, key=cells.class_sizes.get)[-2:]
    rows = np.concatenate([np.flatnonzero(cells.labels == name)[:60] for name in (first, second)])
    counts = cells.counts.take(np.sort(rows))[:, :60]
    obs = pandas.DataFrame(
        {"cell_type": cells.labels[np.sort(rows)]}, index=cells.names[np.sort(rows)]
    )
    return anndata.AnnData(counts, obs=obs, var=pandas.DataFrame(index=list(cells.genes[:60])))


@pytest.fixture(scope="module")
def cells(adata):
    return from_anndata(adata, need_label=True)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Workers that only leave files; gives the names of the tasks that were run, in order of their
    logs.
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def command(folder, pickled):
        return [str(script), str(folder), *(["--cells", str(pickled)] if pickled else [])]

    monkeypatch.setattr("scmam.study.comparison.worker_command", command)


def tries(folder):
    """How often each task was started, from the logs."""
    return {
        path.stem: path.read_text().count("--- ") for path in sorted((folder / "logs").iterdir())
    }


def settings(**study):
    return validated(
        {
            "evaluation": {"folds": 2},
            "study": {
                "arms": ["none", "uniform", "mam"],
                "seeds": [0, 1],
                "baselines": ["pca"],
                **study,
            },
        }
    )


def test_everything_is_run_and_put_together(worker, cells, tmp_path, capsys):
    study = compare(settings(), tmp_path / "study", cells=cells)
    assert set(tries(study.folder)) == {
        f"{arm}-seed-{seed}" for arm in ("none", "uniform", "mam") for seed in (0, 1)
    } | {"pca"}
    assert study.record["status"] == "done"
    assert study.failures == ()
    assert study.finished() == [
        (arm, seed) for arm in ("none", "uniform", "mam") for seed in (0, 1)
    ]
    results = study.results()
    assert list(results.columns) == [
        "arm",
        "seed",
        "fold",
        "method",
        "accuracy",
        "macro_f1",
        "micro_f1",
    ]
    assert len(results) == 3 * 2 * 2 * 2 + 2
    assert results[results.arm == "pca"].seed.isna().all()
    summary = study.summary().set_index(["arm", "method", "metric"])
    assert summary.loc[("mam", "fine-tuning", "accuracy"), "mean"] == pytest.approx(0.035)
    assert summary.loc[("mam", "fine-tuning", "accuracy"), "difference"] == pytest.approx(-0.04)
    assert "120 cells, 60 genes" in capsys.readouterr().out


def test_the_record_says_what_was_compared(worker, cells, tmp_path):
    study = compare(
        settings(arms=["uniform"], seeds=[3]), tmp_path / "study", cells=cells, progress=False
    )
    record = study.record
    assert record["cells"]["num_cells"] == 120
    assert sum(record["cells"]["classes"].values()) == 120
    assert record["cells"]["label"] == "cell_type"
    assert (record["arms"], record["seeds"], record["reference"]) == (["uniform"], [3], "uniform")
    assert record["versions"]["anndata"] == version("anndata")
    assert record["seconds"] > 0
    assert load_config(study.folder / "config.yaml") == study.config
    assert not list(study.folder.glob(".*"))  # neither a lock, nor cells, nor half of a file


def test_only_the_first_seed_of_what_hides_something_is_interpreted(tmp_path):
    def interpreted(interpret):
        return {
            task.name
            for task in planned(settings(), tmp_path, interpret=interpret)
            if "--interpret" in task.arguments
        }

    assert interpreted(True) == {"uniform, seed 0", "mam, seed 0"}
    assert interpreted(False) == set()


def test_a_matched_arm_follows_the_arm_it_is_matched_to(tmp_path):
    config = settings(arms=["uniform-matched", "uniform", "mam"], seeds=[0, 1])
    names = [task.name for task in planned(config, tmp_path, interpret=False)]
    assert names.index("uniform-matched, seed 0") > names.index("mam, seed 0")
    matched = next(
        task
        for task in planned(config, tmp_path, interpret=False)
        if task.name == "uniform-matched, seed 1"
    )
    assert matched.needs == "mam, seed 1"


def test_nothing_is_done_twice(worker, cells, tmp_path, capsys):
    compare(settings(), tmp_path / "study", cells=cells)
    before = tries(tmp_path / "study")
    capsys.readouterr()
    again = compare(settings(), tmp_path / "study", cells=cells)
    assert tries(tmp_path / "study") == before
    assert again.record["status"] == "done"
    assert "7 of 7 tasks are done already" in capsys.readouterr().out


def test_arms_seeds_and_baselines_can_be_added(worker, cells, tmp_path):
    compare(settings(), tmp_path / "study", cells=cells, progress=False)
    study = compare(
        settings(arms=["uniform", "mam-sharp"], seeds=[1, 2], baselines=["logistic-regression"]),
        tmp_path / "study",
        cells=cells,
        progress=False,
    )
    assert study.config.study.arms == ("none", "uniform", "mam", "mam-sharp")
    assert study.config.study.seeds == (0, 1, 2)
    assert study.config.study.baselines == ("pca", "logistic-regression")
    counts = tries(study.folder)
    assert all(
        counts[f"{arm}-seed-{seed}"] == 1
        for arm in ("none", "uniform", "mam", "mam-sharp")
        for seed in (0, 1, 2)
    )
    assert len(study.finished()) == 12


def test_a_failure_is_recorded_and_tried_again(worker, cells, tmp_path, capsys):
    config = settings(
        arms=["uniform", "broken"], seeds=[0], custom={"broken": {"like": "uniform", "ratio": 0.5}}
    )
    study = compare(config, tmp_path / "study", cells=cells)
    assert study.record["status"] == "failed"
    ((task, message, log),) = study.failures
    assert (task, message) == ("broken, seed 0", "it is broken")
    assert "error: it is broken" in Path(log).read_text()
    assert "broken, seed 0: FAILED: it is broken" in capsys.readouterr().out
    assert study.finished() == [("uniform", 0)]
    assert set(study.summary().arm) == {"uniform", "pca"}
    (study.folder / "mended").touch()
    study = compare(config, tmp_path / "study", cells=cells, progress=False)
    assert study.record["status"] == "done"
    assert tries(study.folder) == {"broken-seed-0": 2, "pca": 1, "uniform-seed-0": 1}


def test_other_settings_are_refused_and_named(worker, cells, tmp_path):
    folder = tmp_path / "study"
    config = settings(custom={"mine": {"like": "mam"}})
    compare(config, folder, cells=cells, progress=False)
    before = (folder / "config.yaml").read_text()
    other = config.model_dump()
    other["training"]["steps"], other["model"]["width"], other["study"]["custom"]["mine"] = (
        7,
        32,
        {"like": "uniform"},
    )
    with pytest.raises(RunError) as refused:
        compare(validated(other), folder, cells=cells, progress=False)
    assert str(refused.value) == (
        f"{folder}: belongs to another configuration (model.width is None there, 32 is asked;"
        " training.steps is 400 there, 7 is asked; study.custom.mine is {'like': 'mam'} there,"
        " {'like': 'uniform'} is asked); give another folder, or those settings"
    )
    assert (folder / "config.yaml").read_text() == before


def test_what_does_not_change_results_may_differ(worker, cells, tmp_path):
    compare(settings(), tmp_path / "study", cells=cells, progress=False)
    other = settings(jobs=1, reference="none").model_dump()
    other["training"].update(device="cpu", workers=1, checkpoint_every=7)
    study = compare(validated(other), tmp_path / "study", cells=cells, progress=False)
    summary = study.summary()
    assert summary[summary.arm == "none"].difference.isna().all()
    assert summary[summary.arm == "uniform"].difference.notna().all()


def test_other_cells_are_refused(worker, adata, cells, tmp_path):
    config = settings(arms=["uniform"], seeds=[0])
    compare(config, tmp_path / "study", cells=cells, progress=False)
    fewer = from_anndata(adata[:, 5:].copy(), need_label=True)
    grown = settings(arms=["uniform"], seeds=[0, 1])
    with pytest.raises(
        RunError,
        match=r"was begun with other cells \(120 cells, 60 genes .*; now 120, 55 .*\); give",
    ):
        compare(grown, tmp_path / "study", cells=fewer, progress=False)


@pytest.mark.parametrize(
    ("study", "error", "message"),
    [
        (
            {"reference": "expression"},
            ConfigError,
            "study.reference: expression is not among the arms",
        ),
        ({"arms": []}, ConfigError, "study.arms: expected at least one, got none"),
        ({"seeds": [1, 1]}, ConfigError, "study.seeds: expected each once, got 1, 1"),
        (
            {"arms": ["uniform", "pca"], "custom": {"pca": {}}},
            ConfigError,
            "study.arms: expected names other than baselines', got 'pca'",
        ),
        (
            {"arms": ["uniform", "uniform-matched"]},
            ConfigError,
            "uniform-matched takes its hidden fractions from mam, which is no arm here",
        ),
        (
            {
                "arms": ["uniform", "a", "b"],
                "custom": {
                    "a": {"strategy": "matched", "matched_to": "b"},
                    "b": {"strategy": "matched", "matched_to": "a"},
                },
            },
            ConfigError,
            "study.arms: a, seed 0, b, seed 0 wait for each other",
        ),
    ],
)
def test_studies_that_make_no_sense(cells, tmp_path, study, error, message):
    with pytest.raises(error) as refused:
        compare(settings(**study), tmp_path / "study", cells=cells)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["", " ", "a\nb", "a\x85b", "-a", "--cells", ".a", "a/b", "a,b", " a", "x" * 300, "\udc80"],
)
def test_arms_that_cannot_name_a_folder(cells, tmp_path, name):
    study = settings(arms=["uniform", name], custom={name: {"like": "mam"}})
    with pytest.raises(ConfigError, match=r"study\.arms: expected names of 1 to 100") as refused:
        compare(study, tmp_path / "study", cells=cells)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 250
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(cells, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("scmam.storage.os.open", full)
    with pytest.raises(RunError, match=r"study: cannot be written \(Read-only file system\); make"):
        compare(settings(), tmp_path / "study", cells=cells, progress=False)


def test_a_disk_that_fills_up_leaves_what_was_done(worker, cells, tmp_path, monkeypatch):
    config = settings(jobs=1, arms=["uniform"])
    compare(config, tmp_path / "study", cells=cells, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("study/*.*")}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("scmam.storage.tempfile.mkstemp", full)
        more = settings(jobs=1, arms=["uniform", "mam"])
        with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
            compare(more, tmp_path / "study", cells=cells, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("study/*.*")} == before
    assert compare(more, tmp_path / "study", cells=cells, progress=False).record["status"] == "done"


def test_classes_too_small_for_the_folds_are_said_before_anything_is_trained(cells, tmp_path):
    with pytest.raises(CellsError, match=r"fewer cells than the 100 folds"):
        compare(validated({"evaluation": {"folds": 100}}), tmp_path / "study", cells=cells)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(cells, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        RunError, match=r"exists and is no study \(study.json is missing\); give another folder"
    ):
        compare(settings(), tmp_path, cells=cells)
    with pytest.raises(RunError, match="exists and is no study"):
        compare(settings(), tmp_path / "thesis.tex", cells=cells)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_opening_what_is_no_study(tmp_path):
    with pytest.raises(RunError, match="no such folder; give the folder of a study"):
        open_study(tmp_path / "none")
    with pytest.raises(RunError, match=r"no study, study.json is missing"):
        open_study(tmp_path)
    for content, message in [
        ('{"status": ', "damaged"),
        ("[" * 100_000, "damaged"),
        ("[1]", "not the record of a study"),
        ('{"status": "done"}', "not the record of a study"),
    ]:
        (tmp_path / "study.json").write_text(content)
        with pytest.raises(RunError, match=message):
            open_study(tmp_path)


def test_a_study_that_is_killed_goes_on(worker, adata, tmp_path, monkeypatch):
    file, folder = tmp_path / "cells.h5ad", tmp_path / "study"
    adata.write_h5ad(file)
    script = f"""
        import sys
        import scmam.study.comparison as module
        from scmam.config import validated
        module.worker_command = lambda folder, cells: [{str(tmp_path / "worker.py")!r}, str(folder)]
        # as in a notebook or a short script: nothing guards against a second import
        module.compare(validated({_with_file(file).model_dump(mode="json")!r}), {str(folder)!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SLOW": "0.3"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (is_study(folder) and open_study(folder).finished()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_study(folder).record["status"] == "running"
    first = open_study(folder).finished()
    assert 0 < len(first) < 4
    study = compare(_with_file(file), folder, progress=False)
    assert study.record["status"] == "done"
    assert len(study.finished()) == 4
    assert all(tries(folder)[f"{arm}-seed-{seed}"] == 1 for arm, seed in first)


def _with_file(file):
    return validated(
        {**settings(jobs=1, arms=["uniform", "mam"]).model_dump(), "data": {"path": file}}
    )


def test_ctrl_c_leaves_a_true_record_and_tables(worker, cells, tmp_path, monkeypatch):
    def interrupted(lines, outcome):
        raise KeyboardInterrupt

    monkeypatch.setenv("SLOW_1", "60")  # the second is at it when the first has ended
    monkeypatch.setattr("scmam.study.progress.Lines.ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(settings(jobs=1, arms=["uniform"]), tmp_path / "study", cells=cells)
    study = open_study(tmp_path / "study")
    assert study.record["status"] == "interrupted"
    assert study.finished() == [("uniform", 0)]
    assert set(study.results().seed) == {0}
    assert not list(study.folder.glob(".*"))


def test_tables_come_from_the_runs_that_are_there(worker, cells, tmp_path):
    study = compare(settings(), tmp_path / "study", cells=cells, progress=False)
    evaluation = study.folder / "runs/mam/seed-1/evaluation/fine-tuning.json"
    contents = json.loads(evaluation.read_text())
    for fold in contents["folds"]:
        fold["accuracy"] = 0.5
    evaluation.write_text(json.dumps(contents))
    (study.folder / "summary.csv").unlink()
    with pytest.raises(RunError, match=r"summary.csv: no such file; run scmam compare"):
        study.summary()
    table = summarize(study.folder).set_index(["arm", "method", "metric"])
    assert table.loc[("mam", "fine-tuning", "accuracy"), "mean"] == pytest.approx((0.03 + 0.5) / 2)
    evaluation.write_text("{}")
    with pytest.raises(
        RunError,
        match=r"fine-tuning.json: not the scores of an evaluation \(method: field required",
    ):
        summarize(study.folder)


@pytest.fixture(scope="module")
def real(adata, tmp_path_factory):
    """A study of one arm with the true worker: pretraining, both evaluations, interpretation."""
    pytest.importorskip("lightning", reason="the single-cell layer is not installed")
    folder = tmp_path_factory.mktemp("real")
    adata.write_h5ad(folder / "cells.h5ad")
    config = validated(
        {
            "data": {"path": folder / "cells.h5ad"},
            "model": {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "bins": 4},
            "masking": {"num_latents": 4, "latent_dim": 8, "latent_heads": 2},
            "training": {"steps": 20, "batch_size": 8, "validate_every": 10, "device": "cpu"},
            "evaluation": {"folds": 2, "epochs": 1, "hidden": 8},
            "study": {
                "arms": ["mam"],
                "seeds": [0],
                "baselines": [],
                "reference": "mam",
                "jobs": 1,
            },
        }
    )
    return compare(config, folder / "study", progress=False)


def test_a_real_run(real):
    assert real.failures == ()
    ((arm, seed, run),) = real.runs()
    assert (arm, seed) == ("mam", 0)
    assert run.record["steps"] == 20
    assert run.config.masking.injection == "decoder"
    assert (run.folder / "genes" / "latents.json").is_file()
    results = real.results()
    assert set(results.method) == {"linear-probe", "fine-tuning"}
    assert len(results) == 4
    assert results.accuracy.between(0, 1).all()
    log = (real.folder / "logs" / "mam-seed-0.txt").read_text()
    assert [
        line.removeprefix("stage: ") for line in log.splitlines() if line.startswith("stage: ")
    ] == [
        "reading cells",
        "pretraining",
        "evaluating",
        "interpreting",
    ]


@pytest.fixture
def work(real, monkeypatch):
    """The worker, here: what its process does, without one."""
    from scmam.study import worker

    monkeypatch.setattr(worker, "_end_with_the_study", lambda: None)
    return lambda *task: worker.main([str(real.folder), *task, "--threads", "1"])


def test_the_worker_matches_a_run_to_another(real, work):
    assert work("run", "uniform-matched", "0") == 0
    matched, mam = (
        open_run(real.folder / "runs" / arm / "seed-0") for arm in ("uniform-matched", "mam")
    )
    hidden = [
        run.metrics().query("phase == 'train'").hidden_nonzero.to_numpy() for run in (matched, mam)
    ]
    # A gene of some twenty that are not zero: each cell hides whole ones.
    assert np.abs(hidden[0] - hidden[1]).max() < 0.06
    assert hidden[1].std() > 0.02  # which is not for want of something to follow
    assert np.corrcoef(hidden)[0, 1] > 0.99
    assert not (matched.folder / "genes").exists()


def test_the_worker_scores_a_baseline(real, work):
    from scmam.evaluation.scores import Evaluation

    assert work("baseline", "pca") == 0
    assert Evaluation.load(real.folder / "baselines" / "pca.json").mean("accuracy") > 0.5


def test_the_worker_ends_with_one_line_on_a_users_error(work, capsys):
    assert work("run", "uniform-matched", "7") == 2  # there is no mam of that seed
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("error: ")
    assert "seed-7: no such folder" in last
