"""Pretraining runs: what they write, that they go on exactly where they stopped, and how they
refuse.
"""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="pretraining is Lightning's")
pytest.importorskip("scanpy", reason="the cells are scanpy's")

from scmam.config import Config, load_config
from scmam.data import CellLoader, Cells, open_cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.objective import Pretraining, build_pretraining
from scmam.runs import METRIC_COLUMNS, Run, open_run
from scmam.training import pretrain
from scmam.training.module import rate_factor
from scmam.training.timing import StepTimes

from tests.scmam.small import SMALL_MODEL

ROOT = Path(__file__).parents[2]
SMALL = {
    **SMALL_MODEL,
    "training.batch_size": 4,
    "training.steps": 12,
    "training.validate_every": 4,
    "training.checkpoint_every": 5,
}


def settings(**changes: object) -> Config:
    """A small run; names of `changes` are section__name."""
    return load_config(
        None, {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    )


@pytest.fixture(scope="module")
def cells() -> Cells:
    """Forty real cells: nine batches of four an epoch, and four kept aside."""
    return open_cells(settings().data).subset(torch.arange(0, 700, 18).numpy())


def train(folder: Path, cells: Cells, **changes: object) -> Run:
    return pretrain(settings(**changes), folder, cells=cells, progress=False)


class Failure(Exception):
    """Raised by a test in the middle of training."""


def during_batch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Call `act` in the forward pass of a training batch, counted from 0."""
    forward = Pretraining.forward

    def watched(self: Pretraining, batch, *, seed: int, step: int, **options: bool):
        if self.training and step == number:
            act()
        return forward(self, batch, seed=seed, step=step, **options)

    monkeypatch.setattr(Pretraining, "forward", watched)


def fail() -> None:
    raise Failure("gone")


def stop(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    folder: Path,
    cells: Cells,
    act: Callable[[], None] = fail,
    ending: type[BaseException] = Failure,
    **changes: object,
) -> Run:
    """A run that ended in the middle of a batch, by a failure unless told otherwise."""
    with monkeypatch.context() as patch:
        during_batch(patch, batch, act)
        with pytest.raises(ending):
            train(folder, cells, **changes)
    return open_run(folder)


def assert_same_run(one: Run, other: Run) -> None:
    """Same losses at the same steps, same weights, to the bit."""
    assert (one.folder / "metrics.csv").read_text() == (other.folder / "metrics.csv").read_text()
    first, second = one.load().state_dict(), other.load().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def run(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, not to be changed."""
    return train(tmp_path_factory.mktemp("runs") / "mam", cells, masking__injection="decoder")


@pytest.fixture(scope="module")
def whole(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small run in one go."""
    return train(tmp_path_factory.mktemp("runs") / "whole", cells)


def test_the_backward_pass_of_masking_is_timed_to_its_last_gradient(
    tmp_path: Path, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[torch.nn.Parameter] = []
    watched: list[torch.nn.Parameter] = []
    start, end = StepTimes.on_train_start, StepTimes.on_train_batch_end

    def starting(self: StepTimes, trainer: Any, module: Any) -> None:
        start(self, trainer, module)
        for parameter in module.pretraining.strategy.parameters():
            parameter.register_post_accumulate_grad_hook(arrived.append)

    def ending(self: StepTimes, *given: Any) -> None:
        end(self, *given)
        watched.extend(self._arrivals)
        assert watched[-1] is arrived[-1]

    monkeypatch.setattr(StepTimes, "on_train_start", starting)
    monkeypatch.setattr(StepTimes, "on_train_batch_end", ending)
    train(tmp_path / "run", cells, masking__strategy="mam", masking__injection="decoder")
    assert len(watched) == 12
    assert len(arrived) == 12 * 7  # every step has a gradient of each parameter


class TestARun:
    def test_writes_the_folder(self, run: Run) -> None:
        names = {
            str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()
        }
        assert names == {
            "config.yaml",
            "run.json",
            "genes.txt",
            "metrics.csv",
            "model.pt",
            "checkpoints/last.ckpt",
            "checkpoints/best.ckpt",
        }
        assert not list(run.folder.parent.glob(".*"))  # neither locks nor half of a file

    def test_record(self, run: Run, cells: Cells) -> None:
        record = run.record
        assert (record["status"], record["steps"], record["cells"]) == ("done", 12, 39)
        assert record["training_cells"] + record["validation_cells"] == 39
        assert record["epochs"] == pytest.approx(12 / (record["training_cells"] // 4))
        assert record["parameters"] > record["masking_parameters"] > 0
        assert 0 < record["masking_ms"] < record["step_ms"]
        assert record["masking_share"] == pytest.approx(record["masking_ms"] / record["step_ms"])
        assert 0 <= record["loader_ms"] < record["step_ms"]
        assert record["cells_per_second"] == pytest.approx(4e3 / record["step_ms"])
        assert record["seconds"] >= 12e-3 * record["masking_ms"]
        assert record["versions"]["torch"] == torch.__version__
        assert record["source"] == cells.source

    def test_metrics_are_tidy(self, run: Run) -> None:
        table = run.metrics()
        assert tuple(table.columns) == METRIC_COLUMNS
        train_rows, validation = (
            table[table["phase"] == "train"],
            table[table["phase"] == "validation"],
        )
        assert train_rows["step"].tolist() == list(range(1, 13))
        assert validation["step"].tolist() == [4, 8, 12]
        assert train_rows["epoch"].tolist() == [0] * 8 + [1] * 4
        total = table["reconstruction"] + table["cell"] + 1e-5 * table["penalty"]
        assert (table["loss"] - total).abs().max() < 1e-6
        assert run.record["best_validation"] == validation["loss"].min()
        assert table["loss"].iloc[-1] < table["loss"].iloc[0]
        known = table[table["entropy"].notna()]
        assert known.query("phase == 'train'")["step"].tolist() == [1, 11]
        assert known.query("phase == 'validation'")["step"].tolist() == [4, 8, 12]
        assert known["entropy"].between(0, 1 + 1e-6).all()

    def test_learning_rate_rises_and_falls(self, run: Run) -> None:
        recipe = run.config.training
        lr = run.metrics().query("phase == 'train'")["lr"]
        assert lr.tolist() == pytest.approx(
            [recipe.lr * rate_factor(step, recipe) for step in range(12)]
        )
        assert rate_factor(0, recipe) == 1.0  # a tenth of 12 steps: one
        long = settings(training__steps=100, training__warmup=0.1).training
        assert [rate_factor(step, long) for step in (0, 4, 9, 10)] == pytest.approx(
            [0.1, 0.5, 1.0, 1.0]
        )
        assert rate_factor(55, long) == pytest.approx(0.5)
        assert 0 < rate_factor(99, long) < 1e-3

    def test_schedule_is_what_was_hidden(self, run: Run) -> None:
        rows = run.metrics().query("phase == 'train'")[["hidden_zero", "hidden_nonzero"]]
        assert torch.equal(run.schedule(), torch.tensor(rows.to_numpy(), dtype=torch.float32))

    def test_load_gives_the_trained_weights(self, run: Run, cells: Cells) -> None:
        loaded, initial = run.load(), build_pretraining(run.config, len(run.genes))
        assert not loaded.training
        assert run.genes == cells.genes
        changed = [
            name
            for name, value in loaded.state_dict().items()
            if not torch.equal(value, initial.state_dict()[name])
        ]
        assert any(name.startswith("model.") for name in changed)
        assert any(name.startswith("strategy.") for name in changed)
        assert loaded.features(cells.batch([0, 1])).isfinite().all()

    def test_a_finished_run_is_left_alone(self, run: Run, cells: Cells) -> None:
        before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
        again = pretrain(run.config, run.folder, progress=False)  # not even the cells are opened
        assert again.record == run.record
        assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before

    def test_other_settings_are_named(self, run: Run, cells: Cells) -> None:
        with pytest.raises(
            RunError,
            match=r"other settings \(training\.steps: 12 -> 13; training\.lr: 0\.003 ->"
            r" 0\.001\); name",
        ):
            train(
                run.folder,
                cells,
                masking__injection="decoder",
                training__steps=13,
                training__lr=1e-3,
            )

    def test_where_it_runs_may_change(self, run: Run, cells: Cells) -> None:
        again = train(
            run.folder,
            cells,
            masking__injection="decoder",
            training__workers=2,
            training__checkpoint_every=7,
        )
        assert again.record == run.record

    def test_the_first_steps_are_the_objective(self, run: Run, cells: Cells) -> None:
        """The same computed by hand: cells in the loader's order, masks of (seed, batch number),
        clipped Adam with two learning rates.
        """
        from scmam.data import holdout

        recipe = run.config.training
        pretraining = build_pretraining(run.config, cells.num_genes).train()
        optimizer = torch.optim.Adam(
            pretraining.parameter_groups(recipe.lr, recipe.masking_lr, recipe.weight_decay)
        )
        kept = cells.subset(holdout(cells, recipe.validation, recipe.seed)[0])
        losses = []
        for step, batch in enumerate(CellLoader(kept, 4, seed=recipe.seed, drop_last=True)):
            for group, lr in zip(
                optimizer.param_groups, (recipe.lr, recipe.masking_lr), strict=True
            ):
                group["lr"] = lr * rate_factor(step, recipe)
            total = pretraining(batch, seed=recipe.seed, step=step).total
            losses.append(total.item())
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(pretraining.parameters(), recipe.clip)
            optimizer.step()
        assert run.metrics().query("phase == 'train'")["loss"][
            : len(losses)
        ].tolist() == pytest.approx(losses, rel=1e-6)


class TestGoingOn:
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_after_a_failure(
        self, accumulate: int, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped within an epoch and, with accumulation, between two batches of a step."""
        changes = {"training__accumulate": accumulate, "model__dropout": 0.1}
        whole = train(tmp_path / "whole", cells, **changes)
        stopped = stop(
            monkeypatch, 7 * accumulate + accumulate // 2, tmp_path / "parts", cells, **changes
        )
        assert (stopped.status, stopped.record["reason"], stopped.record["steps"]) == (
            "interrupted",
            "Failure: gone",
            7,
        )
        assert stopped.metrics()["step"].max() == 7
        first = []
        during_batch(monkeypatch, 5 * accumulate, lambda: first.append(True))
        assert_same_run(train(tmp_path / "parts", cells, **changes), whole)
        assert first  # it went on from the checkpoint of step 5, not from the end or the beginning

    def test_at_a_validation(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkpoint of a step that ends with a validation holds that validation."""
        changes = {"training__checkpoint_every": 4, "training__patience": 9}
        whole = train(tmp_path / "whole", cells, **changes)
        stopped = stop(monkeypatch, 8, tmp_path / "parts", cells, **changes)
        assert stopped.metrics()["step"].tolist().count(8) == 2
        assert_same_run(train(tmp_path / "parts", cells, **changes), whole)

    @pytest.mark.parametrize(
        ("name", "ending", "reason"),
        [
            ("SIGINT", KeyboardInterrupt, "KeyboardInterrupt"),
            ("SIGTERM", SystemExit, "Interrupted: SIGTERM received"),
        ],
    )
    def test_after_a_signal(
        self,
        name: str,
        ending: type[BaseException],
        reason: str,
        cells: Cells,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The step is finished, a checkpoint written, and the handlers given back; twice, the
        second time at a validation.
        """
        number = getattr(signal, name)
        before = signal.getsignal(number)
        whole = train(tmp_path / "whole", cells, training__accumulate=2)
        for batch, step in ((4, 3), (15, 8)):
            act = functools.partial(os.kill, os.getpid(), number)
            record = stop(
                monkeypatch, batch, tmp_path / "parts", cells, act, ending, training__accumulate=2
            ).record
            assert (record["status"], record["steps"], record["reason"]) == (
                "interrupted",
                step,
                reason,
            )
            assert signal.getsignal(number) is before
        assert_same_run(train(tmp_path / "parts", cells, training__accumulate=2), whole)

    def test_a_second_ctrl_c_stops_at_once(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
    ) -> None:
        def twice() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        stopped = stop(monkeypatch, 6, tmp_path / "run", cells, twice, KeyboardInterrupt)
        assert "Ctrl-C again to stop at once" in capfd.readouterr().err
        assert (stopped.record["steps"], stopped.record["reason"]) == (6, "KeyboardInterrupt")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert train(tmp_path / "run", cells).done

    def test_slurm_requeues(
        self, whole: Run, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The warning before the end of a job: the step is finished, saved, and Lightning asks for
        the job to be queued again.
        """
        slurm = {
            "NTASKS": "1",
            "NTASKS_PER_NODE": "1",
            "NNODES": "1",
            "JOB_ID": "77",
            "JOB_NAME": "mam",
            "PROCID": "0",
            "LOCALID": "0",
        }
        program = tmp_path / "bin" / "scontrol"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
        program.chmod(0o755)
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURM_NODEID", "0")
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        before = signal.getsignal(signal.SIGUSR1)
        stopped = stop(
            monkeypatch,
            6,
            tmp_path / "parts",
            cells,
            lambda: os.kill(os.getpid(), signal.SIGUSR1),
            SystemExit,
        )
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
        assert signal.getsignal(signal.SIGUSR1) is before
        assert stopped.record["reason"] == "Interrupted: SIGUSR1 received"
        assert sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()) == [
            "best.ckpt",
            "last.ckpt",
        ]
        assert_same_run(train(tmp_path / "parts", cells), whole)

    def test_a_killed_run(
        self, whole: Run, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Status "running", a torn last row, and rows beyond the last checkpoint."""
        stop(monkeypatch, 9, tmp_path / "parts", cells)
        record = json.loads((tmp_path / "parts" / "run.json").read_text())
        (tmp_path / "parts" / "run.json").write_text(json.dumps({**record, "status": "running"}))
        with (tmp_path / "parts" / "metrics.csv").open("a") as file:
            file.write("10,1,train,0.4")
        assert_same_run(train(tmp_path / "parts", cells), whole)

    def test_a_moved_folder(
        self, whole: Run, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop(monkeypatch, 9, tmp_path / "before", cells)
        (tmp_path / "before").rename(tmp_path / "after")
        assert_same_run(train(tmp_path / "after", cells), whole)
        assert not (tmp_path / "before").exists()

    def test_workers_do_not_change_it(self, whole: Run, cells: Cells, tmp_path: Path) -> None:
        assert_same_run(train(tmp_path / "one", cells, training__workers=1), whole)


class TestCheckpoints:
    @pytest.fixture
    def stopped(self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        return stop(monkeypatch, 9, tmp_path / "run", cells).folder

    @pytest.mark.parametrize("damage", ["cut short", "changed inside", "something else"])
    def test_damage_is_named(self, damage: str, stopped: Path, whole: Run, cells: Cells) -> None:
        path = stopped / "checkpoints" / "last.ckpt"
        contents = bytearray(path.read_bytes())
        if damage == "cut short":
            path.write_bytes(contents[: len(contents) // 2])
        elif damage == "changed inside":
            contents[len(contents) // 2] ^= 0xFF
            path.write_bytes(contents)
        else:
            torch.save({"weights": torch.zeros(1)}, path)
        with pytest.raises(RunError) as raised:
            train(stopped, cells)
        message = str(raised.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert message.endswith("delete it, and the run goes on from best.ckpt")
        assert open_run(stopped).status == "interrupted"
        path.unlink()
        assert_same_run(train(stopped, cells), whole)

    def test_without_any_it_begins_again(self, stopped: Path, whole: Run, cells: Cells) -> None:
        for path in (stopped / "checkpoints").iterdir():
            path.unlink()
        assert_same_run(train(stopped, cells), whole)

    def test_other_cells_are_refused(self, stopped: Path, cells: Cells) -> None:
        with pytest.raises(
            RunError,
            match=r"started with 39 cells of 765 genes, and these are 38 of 765, or other",
        ):
            train(stopped, cells.subset(torch.arange(38).numpy()))

    def test_a_loss_that_is_not_finite(self, cells: Cells, tmp_path: Path) -> None:
        with pytest.raises(
            RunError, match=r"the loss is (nan|inf) at step \d+; set a smaller training\.lr"
        ):
            train(tmp_path / "run", cells, training__lr=1e30, training__clip=0)
        run = open_run(tmp_path / "run")
        assert run.status == "interrupted"
        assert run.metrics()["loss"].notna().all()


class TestStrategies:
    def test_none_saves_the_initial_weights(self, cells: Cells, tmp_path: Path) -> None:
        run = train(tmp_path / "none", cells, masking__strategy="none")
        initial = build_pretraining(run.config, cells.num_genes).state_dict()
        assert (run.status, run.record["steps"]) == ("done", 0)
        assert all(
            torch.equal(value, initial[name]) for name, value in run.load().state_dict().items()
        )
        assert run.metrics().empty
        assert list(run.metrics().columns) == list(METRIC_COLUMNS)
        with pytest.raises(RunError, match="made no step, so there are no hidden shares to match"):
            run.schedule()

    def test_matched_hides_what_the_other_run_hid(self, cells: Cells, tmp_path: Path) -> None:
        """Found by its folder, a row a step also where steps have several batches, and loadable
        without the other run.
        """
        changes = {
            "training__accumulate": 2,
            "masking__strategy": "expression",
            "masking__zero_ratio": 0.1,
        }
        other = train(tmp_path / "other", cells, **changes)
        changes |= {
            "masking__strategy": "matched",
            "masking__matched_to": str(other.folder),
            "masking__zero_ratio": None,
        }
        run = train(tmp_path / "matched", cells, **changes)
        assert torch.allclose(run.schedule(), other.schedule(), atol=0.02)
        other.folder.rename(tmp_path / "elsewhere")
        shares = run.load().strategy.shares.tolist()
        assert shares == other_schedule_by_batch(tmp_path / "elsewhere", 2)

    def test_a_schedule_that_changed_is_refused(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = settings(masking__strategy="matched", masking__matched_to="mam")
        with monkeypatch.context() as patch:
            during_batch(patch, 3, fail)
            with pytest.raises(Failure):
                pretrain(
                    config,
                    tmp_path / "run",
                    cells=cells,
                    schedule=torch.full((12, 2), 0.3),
                    progress=False,
                )
        with pytest.raises(
            RunError, match="begun with other hidden shares than those of mam now; delete it"
        ):
            pretrain(
                config,
                tmp_path / "run",
                cells=cells,
                schedule=torch.full((12, 2), 0.2),
                progress=False,
            )
        assert pretrain(config, tmp_path / "run", cells=cells, progress=False).done

    def test_a_schedule_belongs_to_matched(self, cells: Cells, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match="schedule: is of strategy matched; got one with strategy mam"
        ):
            pretrain(
                settings(),
                tmp_path / "run",
                cells=cells,
                schedule=torch.zeros(1, 2),
                progress=False,
            )
        assert not (tmp_path / "run").exists()

    def test_stopping_early_keeps_the_best_weights(self, cells: Cells, tmp_path: Path) -> None:
        changes = {
            "training__patience": 1,
            "training__validate_every": 1,
            "training__steps": 200,
            "training__lr": 0.5,
        }
        run = train(tmp_path / "run", cells, **changes)
        validation = run.metrics().query("phase == 'validation'")["loss"].tolist()
        best = min(range(len(validation)), key=validation.__getitem__)
        assert run.record["steps"] == len(validation) == best + 2 < 200
        assert run.record["weights_of_step"] == best + 1
        saved = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)[
            "state_dict"
        ]
        assert all(
            torch.equal(value, saved[f"pretraining.{name}"])
            for name, value in run.load().state_dict().items()
        )

    def test_without_validation(self, cells: Cells, tmp_path: Path) -> None:
        run = train(tmp_path / "run", cells, training__validation=0)
        assert set(run.metrics()["phase"]) == {"train"}
        assert (run.record["best_validation"], run.record["validation_cells"]) == (None, 0)

    def test_precision_and_tensorboard(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also after a resumption, where the steps that are done again appear once."""
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        changes = {"training__precision": "bf16-mixed", "training__tensorboard": True}
        stop(monkeypatch, 9, tmp_path / "run", cells, **changes)
        run = train(tmp_path / "run", cells, **changes)
        events = reader.EventAccumulator(str(run.folder / "tensorboard")).Reload()
        logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
        rows = run.metrics().query("phase == 'train'")
        assert [step for step, _ in logged] == rows["step"].tolist()
        assert [value for _, value in logged] == pytest.approx(rows["loss"].tolist(), rel=1e-6)
        assert "validation/entropy" in events.Tags()["scalars"]


def other_schedule_by_batch(folder: Path, accumulate: int) -> list[list[float]]:
    return open_run(folder).schedule().repeat_interleave(accumulate, dim=0).tolist()


class TestRefusals:
    def test_not_a_run(self, cells: Cells, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(RunError, match="not a run, and not empty; name a new folder"):
            train(tmp_path, cells)
        with pytest.raises(RunError, match="a file; name a folder for the run"):
            train(tmp_path / "notes.txt", cells)
        with pytest.raises(RunError, match=r"cannot be written \(.*name another folder"):
            train(tmp_path / "notes.txt" / "run", cells)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_opening(self, cells: Cells, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no such folder; give the folder of a run"):
            open_run(tmp_path / "missing")
        with pytest.raises(RunError, match=r"not a run, for it has no run\.json"):
            open_run(tmp_path)
        run = train(tmp_path / "run", cells, masking__strategy="none")
        (run.folder / "model.pt").write_bytes(b"PK\x03\x04 not weights")
        with pytest.raises(
            RunError,
            match=r"model\.pt: damaged \(.*\); restore it, or delete the folder and pretrain again",
        ):
            run.load()
        (run.folder / "model.pt").unlink()
        with pytest.raises(
            RunError,
            match=r"model\.pt: no such file; restore it, or delete the folder and pretrain again",
        ):
            run.load()
        config = (run.folder / "config.yaml").read_text()
        (run.folder / "config.yaml").write_text(config.replace("steps:", "stepz:"))
        with pytest.raises(
            RunError, match=r"training\.stepz: unknown setting; .* is not to be changed: restore it"
        ):
            open_run(run.folder)
        (run.folder / "config.yaml").write_text(config)
        (run.folder / "genes.txt").rename(run.folder / "genes")
        with pytest.raises(RunError, match=r"genes\.txt: no such file; restore it"):
            open_run(run.folder)
        (run.folder / "run.json").write_text('{"status": "do')
        with pytest.raises(RunError, match=r"run\.json: damaged \(.*\); restore it"):
            open_run(run.folder)

    def test_weights_of_other_settings(self, cells: Cells, tmp_path: Path) -> None:
        run = train(tmp_path / "run", cells, masking__strategy="none")
        path = run.folder / "config.yaml"
        path.write_text(path.read_text().replace("width: 8", "width: 16"))
        with pytest.raises(
            RunError, match=r"its weights do not fit config\.yaml and genes\.txt beside it"
        ):
            open_run(run.folder).load()

    def test_an_unfinished_run_has_no_weights(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped = stop(monkeypatch, 3, tmp_path / "run", cells)
        with pytest.raises(
            RunError,
            match=r"not done \(interrupted after step 3 of 12\); pretrain again with the same",
        ):
            stopped.load()

    def test_two_at_once(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = []

        def again() -> None:
            with pytest.raises(
                RunError, match="another process is training this run; wait for it"
            ) as raised:
                train(tmp_path / "run", cells)
            refused.append(raised)

        during_batch(monkeypatch, 2, again)
        assert train(tmp_path / "run", cells).done
        assert refused

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"training__patience": 2, "training__validation": 0},
                r"training\.patience: watches the loss on cells kept aside.* or no patience",
            ),
            (
                {"training__device": "cpu", "training__precision": "16-mixed"},
                r"16-mixed needs a GPU; use bf16-mixed or 32-true",
            ),
        ],
    )
    def test_settings_that_cannot_be(
        self, changes: dict, message: str, cells: Cells, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            train(tmp_path / "run", cells, **changes)
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, cells: Cells, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError,
            match=r"training\.devices: 1 needs as many GPUs, and PyTorch sees 0; use device: cpu",
        ):
            train(tmp_path / "run", cells, training__device="cuda")

    @pytest.mark.parametrize(
        ("environment", "launcher"),
        [
            ({"RANK": "1", "WORLD_SIZE": "2"}, "torchrun"),
            ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "mam"}, "SLURM"),
        ],
    )
    def test_processes_nobody_asked_for(
        self,
        environment: dict,
        launcher: str,
        cells: Cells,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            ConfigError,
            match=f"{launcher} started 2 processes, and the configuration asks for 1 × 1",
        ):
            train(tmp_path / "run", cells)


def test_nothing_is_said_without_progress(
    cells: Cells, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "run", cells)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_steps_and_losses(
    cells: Cells, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain(settings(), tmp_path / "run", cells=cells, progress=True)
    shown = capfd.readouterr().err
    assert "Pretraining: 100%" in shown
    assert "12/12" in shown
    last = open_run(tmp_path / "run").metrics().iloc[-1]
    assert f"validation={last['loss']:.4f}" in shown


def test_the_callers_random_numbers_are_untouched(cells: Cells, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(tmp_path / "run", cells, model__dropout=0.1, training__workers=1)
    assert torch.equal(torch.rand(3), expected)


TWO_PROCESSES = """
import json, sys
import torch
from scmam.config import load_config
from scmam.data import open_cells
from scmam.training import pretrain, pretraining

build = pretraining.build_pretraining
def build_with_unused(*arguments, **options):
    built = build(*arguments, **options)
    built.unused = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(built.unused.weight)
    return built

folder, settings, arms = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
cells = open_cells(load_config(None, settings).data).subset(torch.arange(0, 700, 18).numpy())
for name, changes in arms.items():
    pretraining.build_pretraining = build_with_unused if name == "unused" else build
    config = load_config(None, {**settings, **changes})
    run = pretrain(config, f"{folder}/{name}", cells=cells, progress=False)
    assert run.done and run.record["steps"] == 3, run.record
"""


@pytest.mark.slow
def test_two_processes(cells: Cells, tmp_path: Path) -> None:
    """Parameters without a gradient block no process, and the mean over processes is the mean
    over all cells.
    """
    few = {
        **SMALL,
        "training.steps": 3,
        "training.validate_every": 2,
        "training.checkpoint_every": 2,
        "training.devices": 2,
    }
    arms = {
        "unused": {"masking.penalty": 0, "training.cell_loss": 0, "training.accumulate": 2},
        "uniform": {"masking.strategy": "uniform", "training.workers": 1},
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "script.py",
    ]
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
    }
    arguments = [str(tmp_path), json.dumps({**few, "training.device": "cpu"}), json.dumps(arms)]
    ended = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Lightning" not in ended.stderr
    assert "Warning" not in ended.stderr
    assert ended.stdout == ""
    saved = torch.load(tmp_path / "unused" / "model.pt", weights_only=True)["state_dict"]
    assert (
        saved["unused.weight"] == 1
    ).all()  # as in a single process: neither a gradient nor weight decay
    for name in arms:
        table = open_run(tmp_path / name).metrics()
        assert table["phase"].tolist() == ["train", "train", "validation", "train", "validation"]
        assert open_run(tmp_path / name).record["processes"] == 2
    # One process with the cells of both: uniform masks hide equally many genes of each cell, so
    # means of means are means.
    alone = train(
        tmp_path / "alone",
        cells,
        training__steps=3,
        training__validate_every=2,
        training__batch_size=8,
        masking__strategy="uniform",
    )
    together = open_run(tmp_path / "uniform")
    assert together.metrics()["loss"].tolist() == pytest.approx(
        alone.metrics()["loss"].tolist(), rel=1e-5
    )
    weights = alone.load().state_dict()
    assert all(
        torch.allclose(value, weights[name], atol=1e-5)
        for name, value in together.load().state_dict().items()
    )


def smaller(checkpoint: dict[str, Any]) -> None:
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:1]


def no_loops(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"] = {}


def no_fit_loop(checkpoint: dict[str, Any]) -> None:
    del checkpoint["loops"]["fit_loop"]


def old_lightning(checkpoint: dict[str, Any]) -> None:
    checkpoint["pytorch-lightning_version"] = "1.2.0"


def no_version(checkpoint: dict[str, Any]) -> None:
    del checkpoint["pytorch-lightning_version"]
    checkpoint["callbacks"] = {}


def other_moments(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["optimizer_states"][0]["state"]
    state[0]["exp_avg"] = state[0]["exp_avg"][:1]


def fewer_groups(checkpoint: dict[str, Any]) -> None:
    del checkpoint["optimizer_states"][0]["param_groups"][0]


def text_for_weights(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = dict.fromkeys(checkpoint["state_dict"], "weights")


def a_list(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = list(checkpoint["state_dict"].values())


@pytest.fixture(scope="module")
def stopped(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its checkpoint of step 5, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 6, folder, cells)
    return folder


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            *(smaller, no_loops, no_fit_loop, old_lightning, no_version),
            *(other_moments, fewer_groups, text_for_weights, a_list),
        ],
    )
    def test_a_checkpoint_that_does_not_fit_is_named(
        self, stopped: Path, cells: Cells, tmp_path: Path, damage: Callable
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(stopped, folder)
        path = folder / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        damage(checkpoint)
        torch.save(checkpoint, path)
        with pytest.raises(RunError, match=r"last\.ckpt: .*; delete it, and the run goes") as error:
            train(folder, cells)
        assert len(str(error.value).splitlines()) == 1
        path.unlink()
        assert train(folder, cells).done

    @pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
    def test_a_folder_in_the_place_of_a_checkpoint(
        self, stopped: Path, cells: Cells, tmp_path: Path, name: str
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(stopped, folder)
        (folder / "checkpoints" / name).unlink()
        (folder / "checkpoints" / name).mkdir()
        with pytest.raises(RunError, match=rf"{name}: expected a checkpoint; got a folder"):
            train(folder, cells)

    def test_a_record_that_is_too_deep(self, stopped: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        shutil.copytree(stopped, folder)
        (folder / "run.json").write_text("[" * 100_000)
        with pytest.raises(RunError, match=r"run\.json: damaged \(.*recursion.*\); restore it"):
            open_run(folder)

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"step,epoch\n", b"", b"x" * 12 + b"\n"])
    def test_metrics_that_are_damaged(self, run: Run, tmp_path: Path, content: bytes) -> None:
        folder = tmp_path / "run"
        shutil.copytree(run.folder, folder)
        (folder / "metrics.csv").write_bytes(content)
        with pytest.raises(RunError, match=r"metrics\.csv: (damaged|has no column)") as refused:
            open_run(folder).metrics()
        assert len(str(refused.value).splitlines()) == 1

    def test_a_run_does_not_go_on_with_damaged_metrics(
        self, stopped: Path, cells: Cells, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(stopped, folder)
        (folder / "metrics.csv").write_bytes(b"\xff" + b"," * 11 + b"\n")
        with pytest.raises(RunError, match=r"metrics\.csv: damaged \(.*\); restore it"):
            train(folder, cells)

    def test_genes_of_any_name_come_back(self, cells: Cells, tmp_path: Path) -> None:
        odd = ["a\rb", "\x0b", "\x1c\x1d\x1e", "\x85", "\u2028\u2029", "\t ", "\ufeff"]
        named = dataclasses.replace(cells, genes=(*odd, *cells.genes[len(odd) :]))
        run = train(tmp_path / "run", named, masking__strategy="none")
        assert run.genes == named.genes
        assert open_run(tmp_path / "run").genes == named.genes
        broken = dataclasses.replace(cells, genes=("a\nb", *cells.genes[1:]))
        with pytest.raises(CellsError, match=r"genes: expected names without line feeds"):
            train(tmp_path / "other", broken, masking__strategy="none")
        assert not (tmp_path / "other").exists()

    def test_what_a_kill_left_is_removed(self, stopped: Path, cells: Cells, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        shutil.copytree(stopped, folder)
        script = f"""
            import os, signal
            from pathlib import Path
            from scmam.storage import new_file
            with new_file(Path({str(folder / "checkpoints" / "last.ckpt")!r})) as beside:
                beside.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment)
        assert list((folder / "checkpoints").glob(".last.ckpt.*"))
        train(folder, cells)
        assert not list((folder / "checkpoints").glob(".*"))

    @pytest.mark.parametrize("place", ["checkpoint", "metrics", "weights", "record"])
    def test_a_full_disk(
        self, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        def full(*arguments: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        target = {
            "checkpoint": "scmam.training.checkpoints.save_file",
            "metrics": "scmam.training.losses.append",
            "weights": "scmam.runs.save_file",
            "record": "scmam.runs.write_record",
        }[place]
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            message = r"run: cannot be written \(No space left on device\); make room, or name"
            with pytest.raises(RunError, match=message):
                train(tmp_path / "run", cells)
        assert not list(tmp_path.rglob(".*"))
        if place != "record":
            assert open_run(tmp_path / "run").status == "interrupted"
        assert train(tmp_path / "run", cells).done  # when there is room again

    def test_files_that_may_not_grow(self, tmp_path: Path) -> None:
        """The system itself refuses to write, in the middle of a file."""
        script = f"""
            import resource, sys
            from scmam.cli import main
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
            settings = {[f"--set={name}={json.dumps(value)}" for name, value in SMALL.items()]!r}
            main(["pretrain", "--out", {str(tmp_path / "run")!r}, "--quiet", *settings])
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {tmp_path / 'run'}: cannot be written (File too large)")
        assert not list(tmp_path.rglob(".*"))
