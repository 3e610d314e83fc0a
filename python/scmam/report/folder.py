"""Reads the files of a study or run folder, for all parts of the report.

Absent files are None or empty. Files that cannot be read are named in `Reader.problems`, which
the page shows.
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ..config import validated
from ..errors import ConfigError, ReportError, one_line
from ..evaluation.scores import Evaluation
from ..study.arms import arm_config
from ..study.published import Backbone, backbones

LEARNED = ("mam", "mam-embedding")
METHODS = ("fine-tuning", "mlp-probe", "linear-probe")
"""Kinds of evaluation in the order of the report: the measure of the paper first."""

_GENE = ("gene", "mean_expression", "hidden")
_SET = ("term", "overlap", "set_size", "p_value", "adjusted_p_value", "genes")
TABLES = {
    "metrics": ("metrics.csv", ("step", "phase", "loss")),
    "frequencies": ("genes/frequencies.csv", _GENE),
    "frequencies_by_type": ("genes/frequencies_by_type.csv", ("cell_type", *_GENE)),
    "ranking": ("genes/ranking.csv", (*_GENE, "beyond_expression", "z", "expected")),
    "enrichment": ("genes/enrichment.csv", _SET),
    "enrichment_beyond_expression": ("genes/enrichment_beyond_expression.csv", _SET),
}
"""Tables of a run: the file, and the columns that the report needs."""

ARRAYS = {
    "embedding": ("evaluation/embedding.npz", ("features", "codes", "classes"), 2, 1),
    "masks": ("genes/masks.npz", ("values", "mask", "hidden", "genes", "cell_types"), 3, 2),
}
"""Arrays of a run: the file, the names, and how many of these agree in how many first axes."""


class Reader:
    """Reads files of a folder; `problems` has a sentence for each that could not be read so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def read(self, path: Path, parse: Callable[[Path], Any]) -> Any:
        """A file, read by `parse`; None where there is no file, or it cannot be read."""
        if not path.is_file():
            return None
        try:
            return parse(path)
        # Another program may have left the file in any state: the report names it and goes on.
        except Exception as error:
            name = path.relative_to(self.folder)
            problem = f"{name} could not be read and is left out ({one_line(error)})"
            if problem not in self.problems:
                self.problems.append(problem)
            return None

    def mapping(self, path: Path) -> dict[str, Any]:
        """The named values of a JSON or YAML file; empty where there is none."""
        return self.read(path, _mapping) or {}

    def table(self, path: Path, *columns: str) -> pd.DataFrame | None:
        """A CSV file with at least these columns; None where it has no row."""
        return self.read(path, lambda path: _table(path, columns))

    def evaluations(self, paths: dict[str, Path]) -> dict[str, Evaluation]:
        """The evaluations that are there, by name."""
        found = ((name, self.read(path, _evaluation)) for name, path in paths.items())
        return {name: evaluation for name, evaluation in found if evaluation is not None}


def _mapping(path: Path) -> dict[str, Any]:
    value = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected named values, got {type(value).__name__}")
    return value


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:

    table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan", "NaN"])
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"it has no column {', '.join(missing)}")
    return None if table.empty else table


def _arrays(path: Path, names: tuple[str, ...], alike: int, axes: int) -> dict[str, np.ndarray]:

    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"it has no array {', '.join(missing)}")
    shapes = {name: arrays[name].shape for name in names[:alike]}
    if len({shape[:axes] for shape in shapes.values()}) > 1 or not min(shapes.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"its arrays do not fit together: {told}")
    if broken := [name for name in names[:alike] if not np.isfinite(arrays[name]).all()]:
        raise ValueError(f"not every number in {', '.join(broken)} is finite")
    return arrays


def _evaluation(path: Path) -> Evaluation:

    found = Evaluation.from_json(path.read_text(encoding="utf-8"))
    if not found.folds or not found.classes:
        raise ValueError("it has no folds or no classes")
    return found


@dataclass(frozen=True)
class RunFiles:
    """One pretraining run."""

    arm: str
    seed: int
    folder: Path
    reader: Reader = field(repr=False)

    @cached_property
    def record(self) -> dict[str, Any]:
        return self.reader.mapping(self.folder / "run.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.reader.mapping(self.folder / "config.yaml")

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """By method."""
        folder = self.folder / "evaluation"
        return self.reader.evaluations({method: folder / f"{method}.json" for method in METHODS})

    @cached_property
    def latents(self) -> dict[str, Any]:
        """The summary of what the masks hide: ``latents.json``."""
        return self.reader.mapping(self.folder / "genes" / "latents.json")

    @cached_property
    def metrics(self) -> pd.DataFrame | None:
        return self.table("metrics")

    def table(self, name: str) -> pd.DataFrame | None:
        """One of `TABLES`."""
        file, columns = TABLES[name]
        return self.reader.table(self.folder / file, *columns)

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """One of `ARRAYS`."""
        file, names, alike, axes = ARRAYS[name]
        return self.reader.read(self.folder / file, lambda path: _arrays(path, names, alike, axes))

    @property
    def status(self) -> str:
        return str(self.record.get("status", "not started"))

    def number(self, name: str) -> float:
        """A number of the record; nan where there is none."""
        return number(self.record.get(name))


def number(value: object) -> float:
    """A value as a number; nan where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of settings; empty where there is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class StudyFiles:
    """A study, or a single run as a study of one arm and one seed."""

    folder: Path
    is_study: bool
    record: dict[str, Any]
    config: dict[str, Any]
    arms: tuple[str, ...]
    runs: tuple[RunFiles, ...]
    reader: Reader = field(repr=False)
    results: pd.DataFrame | None = None
    summary: pd.DataFrame | None = None
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    reference: str | None = None

    def of(self, arm: str) -> tuple[RunFiles, ...]:
        """The runs of an arm, by seed."""
        return tuple(run for run in self.runs if run.arm == arm)

    def first(self, arm: str, kind: str, name: str) -> Any:
        """A table or arrays of the first run of an arm that has them; None where none has."""
        found = (getattr(run, kind)(name) for run in self.of(arm))
        return next((one for one in found if one is not None), None)

    def first_latents(self, arm: str) -> dict[str, Any]:
        """The summary of what the masks of an arm hide, of its first run that has one."""
        return next((run.latents for run in self.of(arm) if run.latents), {})

    def mean(self, arm: str, name: str) -> float:
        """A number of run.json, the mean over the runs that have it; nan where none has."""
        values = [value for run in self.of(arm) if not math.isnan(value := run.number(name))]
        return fmean(values) if values else math.nan

    def masking(self, arm: str) -> dict[str, Any]:
        """The masking settings of an arm: of its first run that has some, else as planned."""
        config = next((run.config for run in self.of(arm) if run.config), {})
        return section(config, "masking") or self.planned.get(arm, {})

    @cached_property
    def planned(self) -> dict[str, dict[str, Any]]:
        """The masking settings that the configuration of the study gives each arm."""
        planned = {}
        for arm in self.arms if self.is_study else ():
            # An arm of another version, or one that was renamed, is known by its runs alone.
            with suppress(ConfigError):
                config = arm_config(validated(self.config), arm, 0)
                planned[arm] = config.masking.model_dump(mode="json")
        return planned

    def strategy(self, arm: str) -> str:
        """Its masking strategy; its own name where no configuration can be read."""
        return str(self.masking(arm).get("strategy", arm))

    def is_learned(self, arm: str) -> bool:
        return self.strategy(arm) in LEARNED

    def matched_to(self, arm: str) -> str | None:
        """The arm whose hidden shares another takes; a run may name it by its folder."""
        if self.strategy(arm) != "matched":
            return None
        target = str(self.masking(arm).get("matched_to"))
        names = (target, Path(target).parent.name)
        return next((name for name in names if name in self.arms), None)

    @property
    def untrained(self) -> str | None:
        """The arm without pretraining."""
        arms = (arm for arm in self.arms if self.strategy(arm) == "none" and arm != "orig")
        return next(arms, None)

    @cached_property
    def backbones(self) -> list[Backbone]:
        """By method, how the model that training continued from does beside an untrained one."""
        return [] if self.summary is None else backbones(self.summary)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def wanted_seeds(self) -> tuple[int, ...]:
        """The seeds that were asked for; those that are there, where that is not recorded."""
        return tuple(section(self.config, "study").get("seeds") or self.seeds)

    def evaluations(self, arm: str, method: str) -> list[Evaluation]:
        """One a seed that was evaluated."""
        return [run.evaluations[method] for run in self.of(arm) if method in run.evaluations]

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods of evaluation with any result."""
        tables = [table for table in (self.summary, self.results) if table is not None]
        found = {method for table in tables for method in table["method"]}
        found |= {method for run in self.runs for method in run.evaluations}
        return tuple(method for method in METHODS if method in found)

    @cached_property
    def _all_evaluations(self) -> list[Evaluation]:
        return [found for run in self.runs for found in run.evaluations.values()]

    @property
    def num_folds(self) -> int:
        """Folds of an evaluation; 0 where there is none."""
        return max((len(one.folds) for one in self._all_evaluations), default=0)

    @cached_property
    def is_published(self) -> bool:
        """Whether scores are of the published protocol: of bootstraps of one test set, not of
        folds.
        """
        return any(one.settings.get("protocol") == "published" for one in self._all_evaluations)

    @property
    def tested_on(self) -> str:
        """What a single score is of, in a word."""
        return "bootstrap" if self.is_published else "fold"

    @property
    def cells(self) -> dict[str, Any]:
        """The record of the cells; that of a run holds less than that of a study.

        Keys: source, unit, num_cells, num_genes, density, label, donor, notes, classes.
        """
        cells = self.record.get("cells")
        if isinstance(cells, dict):
            return cells
        known = {name: self.record.get(name) for name in ("num_genes", "source", "unit")}
        return {"num_cells": cells, **known}

    @property
    def source_name(self) -> str:
        """The name of the data in a few letters: that of the file, where there is one."""
        path = section(self.config, "data").get("path")
        source = str(self.cells.get("source") or "").partition(":")[0]
        return Path(str(path)).name if path else source or self.folder.resolve().name

    @cached_property
    def class_sizes(self) -> dict[str, int]:
        """Cells of each type, as recorded, or as tested."""
        sizes = self.cells.get("classes")
        if isinstance(sizes, dict):
            return {str(name): int(size) for name, size in sizes.items()}
        if not self._all_evaluations:
            return {}
        found = self._all_evaluations[0]
        return dict(zip(found.classes, map(int, found.confusion().sum(axis=1)), strict=True))


def open_study_files(folder: str | Path) -> StudyFiles:
    """The files of a study or run folder.

    Raises:
        ReportError: there is no such folder, it is neither of the two, or it holds no run yet.
    """
    folder = Path(folder)
    wanted = "give the folder of `scmam compare` or `scmam pretrain`"
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; {wanted}")
    if (folder / "study.json").is_file() or (folder / "runs").is_dir():
        return _study(folder)
    if (folder / "run.json").is_file():
        return _single_run(folder)
    raise ReportError(f"{folder}: has neither study.json nor run.json; {wanted}")


def _study(folder: Path) -> StudyFiles:
    reader = Reader(folder)
    record, config = (reader.mapping(folder / name) for name in ("study.json", "config.yaml"))
    settings = section(config, "study")
    runs = _runs(folder / "runs", reader)
    wanted = [str(arm) for arm in settings.get("arms") or record.get("arms") or ()]
    arms = tuple(dict.fromkeys([*wanted, *sorted({run.arm for run in runs})]))
    baselines = {path.stem: path for path in sorted((folder / "baselines").glob("*.json"))}
    if not runs and not baselines:
        advice = "start or resume the study with `scmam compare`"
        raise ReportError(f"{folder}: holds no run yet; {advice}")
    reference = str(settings.get("reference", "uniform"))
    columns = ("arm", "method", "metric", "mean", "low", "high", "difference")
    return StudyFiles(
        folder=folder,
        is_study=True,
        record=record,
        config=config,
        arms=arms,
        runs=tuple(sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))),
        reader=reader,
        results=reader.table(folder / "results.csv", "arm", "seed", "fold", "method", "macro_f1"),
        summary=reader.table(folder / "summary.csv", *columns),
        baselines=reader.evaluations(baselines),
        reference=reference if reference in arms else None,
    )


def _single_run(folder: Path) -> StudyFiles:
    reader = Reader(folder)
    config = reader.mapping(folder / "config.yaml")
    name = str(section(config, "masking").get("strategy", "run"))
    run = RunFiles(name, int(section(config, "training").get("seed", 0)), folder, reader)
    return StudyFiles(folder, False, run.record, config, (run.arm,), (run,), reader)


def _runs(folder: Path, reader: Reader) -> list[RunFiles]:
    found = [(path, path.name.removeprefix("seed-")) for path in sorted(folder.glob("*/seed-*"))]
    return [
        RunFiles(path.parent.name, int(seed), path, reader)
        for path, seed in found
        if path.is_dir() and seed.isdecimal()
    ]
