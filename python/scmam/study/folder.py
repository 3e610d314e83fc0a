"""A study on disk: its paths, its record, and the settings that a folder is bound to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import Config, as_yaml, flat, load_config, with_settings
from ..errors import RunError
from ..settings.studies import METHODS
from ..storage import read_csv, read_json, write_file

if TYPE_CHECKING:
    import pandas

    from ..runs import Run

GIVE_A_STUDY = "give the folder of a study, as scmam compare writes it"
CONFIG, RECORD, RESULTS, SUMMARY = "config.yaml", "study.json", "results.csv", "summary.csv"

# Settings that may differ between two calls on one folder: the runs (they are added), the speed
# and the reference of the summary.
FREE_SETTINGS = (
    *("study.arms", "study.seeds", "study.baselines", "study.reference", "study.jobs"),
    *("study.scheduler", "study.retries", "evaluation.methods", "data.backed", "training.seed"),
    *("training.device", "training.workers", "training.checkpoint_every", "training.tensorboard"),
)


class Failure(NamedTuple):
    """A task of a study that ended with an error."""

    task: str  # "mam, seed 0"
    message: str
    log: str


class Study:
    """A study folder as it is now.

    Attributes:
        folder: where it is.
        config: its settings, resolved; arms and seeds of all calls so far.
        record: ``study.json``: status, cells, versions, date, seconds, failures.
    """

    def __init__(self, folder: Path, config: Config, record: dict[str, Any]) -> None:
        self.folder, self.config, self.record = folder, config, record

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The tasks that ended with an error in the last call."""
        return tuple(Failure(**failure) for failure in self.record.get("failures", ()))

    def finished(self) -> list[tuple[str, int]]:
        """Arm and seed of the runs with an evaluation, in the order of the configuration."""
        pairs = ((arm, seed) for arm in self.config.study.arms for seed in self.config.study.seeds)
        return [
            (arm, seed)
            for arm, seed in pairs
            if any(evaluation_files(run_folder(self.folder, arm, seed)))
        ]

    def runs(self) -> Iterator[tuple[str, int, "Run"]]:
        """Arm, seed and run of each run that was finished."""
        from ..runs import open_run

        for arm, seed in self.finished():
            yield arm, seed, open_run(run_folder(self.folder, arm, seed))

    def results(self) -> "pandas.DataFrame":
        """Scores of every fold: arm, seed (missing for a baseline), fold, method, accuracy,
        macro_f1, micro_f1.
        """
        return self._table(RESULTS).astype({"seed": "Int64"})

    def summary(self) -> "pandas.DataFrame":
        """Means, intervals and paired differences; see `summarize`."""
        return self._table(SUMMARY)

    def _table(self, name: str) -> "pandas.DataFrame":
        path = self.folder / name
        if not path.is_file():
            raise RunError(
                f"{path}: no such file; run scmam compare until a run is finished, or scmam"
                " report, which writes it"
            )
        return read_csv(path, "run scmam report, which writes it")


def is_study(folder: str | Path) -> bool:
    """Whether the folder was written by `compare`."""
    return (Path(folder) / RECORD).is_file()


def open_study(folder: str | Path) -> Study:
    """Read a study folder.

    Raises:
        RunError: there is no study, or its files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; {GIVE_A_STUDY}")
    if not is_study(folder):
        raise RunError(f"{folder}: no study, {RECORD} is missing; {GIVE_A_STUDY}")
    record = read_json(folder / RECORD, "restore it, or run scmam compare in another folder")
    if not isinstance(record, dict) or not {"status", "cells", "seconds"} <= set(record):
        raise RunError(f"{folder / RECORD}: not the record of a study; {GIVE_A_STUDY}")
    return Study(folder, load_config(folder / CONFIG), record)


def save(study: Study) -> None:
    """Write the configuration and then the record, each atomically."""
    write_file(study.folder / CONFIG, as_yaml(study.config))
    write_file(study.folder / RECORD, json.dumps(study.record, indent=2, default=str) + "\n")


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    """The folder of the run of an arm and a seed."""
    return folder / "runs" / arm / f"seed-{seed}"


def baseline_file(folder: Path, name: str) -> Path:
    """The scores of a baseline."""
    return folder / "baselines" / f"{name}.json"


def log_file(folder: Path, name: str) -> Path:
    """The output of a task's processes. It is outside of the run folder, which holds a run only."""
    return folder / "logs" / f"{name}.txt"


def evaluation_file(run: Path, method: str) -> Path:
    """The scores of a run by a method."""
    return run / "evaluation" / f"{method}.json"


def evaluation_files(run: Path) -> list[Path]:
    """The scores of a run that are there, in the order of the methods."""
    files = (evaluation_file(run, method) for method in METHODS)
    return [path for path in files if path.is_file()]


def bound_settings(config: Config) -> dict[str, Any]:
    """The settings that all calls on a study folder share, as ``{"section.name": value}``."""
    settings = flat(config)
    settings |= {f"study.custom.{arm}": x for arm, x in settings.pop("study.custom").items()}
    return {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def joined(earlier: Study, asked: Config) -> Config:
    """The configuration of a study that continues: the finished arms, seeds and baselines of its
    folder, and those of `asked`.

    Raises:
        RunError: a setting that both have differs; each is named with both values.
    """
    there, here = bound_settings(earlier.config), bound_settings(asked)
    shared = [name for name in here if name in there or not name.startswith("study.custom.")]
    different = [
        f"{name} is {there.get(name)!r} there, {here[name]!r} is asked"
        for name in shared
        if there.get(name) != here[name]
    ]
    if different:
        raise RunError(
            f"{earlier.folder}: belongs to another configuration ({'; '.join(different)}); give"
            " another folder, or those settings"
        )
    old, new = earlier.config.study, asked.study
    arms, seeds = ({pair[place] for pair in earlier.finished()} for place in (0, 1))
    done = {name for name in old.baselines if baseline_file(earlier.folder, name).is_file()}
    grown = {
        name: tuple(dict.fromkeys([*filter(kept.__contains__, before), *asked_for]))
        for name, kept, before, asked_for in (
            ("arms", arms, old.arms, new.arms),
            ("seeds", seeds, old.seeds, new.seeds),
            ("baselines", done, old.baselines, new.baselines),
        )
    }
    return with_settings(asked, study={"custom": {**old.custom, **new.custom}, **grown})
