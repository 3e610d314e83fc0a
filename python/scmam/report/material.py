"""What a study or run folder holds, as far as it is there. Every other part of the report reads
from here, and nothing is computed.

What is absent is None or empty. What is there and cannot be read is named in `Material.problems`,
which the page shows.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..config import validated
from ..errors import ConfigError, ReportError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..evaluation import Evaluation

LEARNED = ("mam", "mam-embedding")
METHODS = ("fine-tuning", "linear-probe")
"""In the order of the report: the measure of the paper first."""

ENRICHMENT = ("term", "overlap", "set_size", "p_value", "adjusted_p_value", "genes")


class Shelf:
    """Reads the files of a folder; remembers those that are there and cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def json(self, path: Path) -> dict[str, Any]:
        """A JSON object; empty where there is none."""
        return (
            self._read(path, lambda: _mapping(json.loads(path.read_text(encoding="utf-8")))) or {}
        )

    def yaml(self, path: Path) -> dict[str, Any]:
        """The settings of a YAML file; empty where there is none."""
        return (
            self._read(path, lambda: _mapping(yaml.safe_load(path.read_text(encoding="utf-8"))))
            or {}
        )

    def text(self, path: Path) -> str:
        return self._read(path, lambda: path.read_text(encoding="utf-8")) or ""

    def table(self, path: Path, *columns: str) -> "pd.DataFrame | None":
        """A CSV file with at least these columns; None where there is none, or no row in it."""
        return self._read(path, lambda: _table(path, columns))

    def arrays(
        self, path: Path, *names: str, alike: tuple[str, ...], axes: int
    ) -> "dict[str, np.ndarray] | None":
        """The arrays of an .npz file, with at least these names, of which some are alike in their
        first axes.
        """
        return self._read(path, lambda: _arrays(path, names, alike, axes))

    def evaluation(self, path: Path) -> "Evaluation | None":
        """The scores of a classification; None where there are none."""
        return self._read(path, lambda: _evaluation(path))

    def _read(self, path: Path, read: Any) -> Any:
        if not path.is_file():
            return None
        try:
            return read()
        # a file written by another program, in any state: the report names it and goes on
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = (
                f"{path.relative_to(self.folder)} could not be read and is left out ({reason})"
            )
            if problem not in self.problems:
                self.problems.append(problem)
            return None


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected named values, got {type(value).__name__}")
    return value


def _table(path: Path, columns: tuple[str, ...]) -> "pd.DataFrame | None":
    import pandas as pd

    table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan", "NaN"])
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    return None if table.empty else table


def _arrays(
    path: Path, names: tuple[str, ...], alike: tuple[str, ...], axes: int
) -> "dict[str, np.ndarray]":
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"it has no array {', '.join(missing)}")
    shapes = {name: arrays[name].shape for name in alike}
    if len({shape[:axes] for shape in shapes.values()}) > 1 or not min(shapes.values()):
        raise ValueError(
            f"its arrays do not fit together: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
        )
    broken = [name for name in alike if not np.isfinite(arrays[name]).all()]
    if broken:
        raise ValueError(f"not every number in {', '.join(broken)} is finite")
    return arrays


def _evaluation(path: Path) -> "Evaluation":
    from ..evaluation import Evaluation

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
    shelf: Shelf = field(repr=False)

    @cached_property
    def record(self) -> dict[str, Any]:
        return self.shelf.json(self.folder / "run.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.shelf.yaml(self.folder / "config.yaml")

    @cached_property
    def metrics(self) -> "pd.DataFrame | None":
        return self.shelf.table(self.folder / "metrics.csv", "step", "phase", "loss")

    @cached_property
    def evaluations(self) -> "dict[str, Evaluation]":
        """The evaluations that are there, by method."""
        return read_evaluations(
            self.shelf,
            {method: self.folder / "evaluation" / f"{method}.json" for method in METHODS},
        )

    @property
    def embedding(self) -> "dict[str, np.ndarray] | None":
        return self.shelf.arrays(
            self.folder / "evaluation" / "embedding.npz",
            "features",
            "codes",
            "classes",
            alike=("features", "codes"),
            axes=1,
        )

    @property
    def frequencies(self) -> "pd.DataFrame | None":
        return self.shelf.table(
            self.folder / "genes" / "frequencies.csv", "gene", "mean_expression", "hidden"
        )

    @property
    def frequencies_by_type(self) -> "pd.DataFrame | None":
        return self.shelf.table(
            self.folder / "genes" / "frequencies_by_type.csv",
            "cell_type",
            "gene",
            "mean_expression",
            "hidden",
        )

    @property
    def latents(self) -> dict[str, Any]:
        return self.shelf.json(self.folder / "genes" / "latents.json")

    @property
    def masks(self) -> "dict[str, np.ndarray] | None":
        path = self.folder / "genes" / "masks.npz"
        return self.shelf.arrays(
            path, "genes", "cell_types", alike=("values", "mask", "hidden"), axes=2
        )

    @property
    def ranking(self) -> "pd.DataFrame | None":
        columns = ("gene", "beyond_expression", "z", "hidden", "expected", "mean_expression")
        return self.shelf.table(self.folder / "genes" / "ranking.csv", *columns)

    @property
    def enrichment(self) -> "pd.DataFrame | None":
        return self.shelf.table(self.folder / "genes" / "enrichment.csv", *ENRICHMENT)

    @property
    def enrichment_beyond_expression(self) -> "pd.DataFrame | None":
        return self.shelf.table(
            self.folder / "genes" / "enrichment_beyond_expression.csv", *ENRICHMENT
        )

    @property
    def status(self) -> str:
        return str(self.record.get("status", "not started"))

    def number(self, name: str) -> float:
        """A number of the record; nan where there is none."""
        value = self.record.get(name)
        return (
            float(value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else math.nan
        )


@dataclass(frozen=True)
class Material:
    """A study, or a single run as a study of one arm and one seed."""

    folder: Path
    is_study: bool
    record: dict[str, Any]
    config: dict[str, Any]
    arms: tuple[str, ...]
    runs: tuple[RunFiles, ...]
    results: "pd.DataFrame | None"
    summary: "pd.DataFrame | None"
    baselines: "dict[str, Evaluation]"
    reference: str | None
    shelf: Shelf = field(repr=False)

    @property
    def problems(self) -> list[str]:
        return self.shelf.problems

    def of(self, arm: str) -> tuple[RunFiles, ...]:
        """The runs of an arm, by seed."""
        return tuple(run for run in self.runs if run.arm == arm)

    def settings(self, arm: str) -> dict[str, Any]:
        """The resolved configuration of an arm: that of its first run that has one."""
        return next((run.config for run in self.of(arm) if run.config), {})

    def masking(self, arm: str) -> dict[str, Any]:
        """Its masking settings: of its runs, or, before they start, as the study plans them; empty
        where neither is known.
        """
        masking = self.settings(arm).get("masking")
        return masking if isinstance(masking, dict) else self.planned.get(arm, {})

    @cached_property
    def planned(self) -> dict[str, dict[str, Any]]:
        """The masking settings that the configuration of the study gives each arm, as far as it can
        be read.
        """
        from ..study import arm_config

        planned = {}
        for arm in self.arms if self.is_study else ():
            with suppress(
                ConfigError
            ):  # of another version, or an arm that was renamed: then only its runs say what it is
                planned[arm] = arm_config(validated(self.config), arm, 0).masking.model_dump(
                    mode="json"
                )
        return planned

    def strategy(self, arm: str) -> str:
        """Its masking strategy; an arm without a readable configuration goes by its own name."""
        return str(self.masking(arm).get("strategy", arm))

    def is_learned(self, arm: str) -> bool:
        return self.strategy(arm) in LEARNED

    def matched_to(self, arm: str) -> str | None:
        """The arm whose hidden shares another takes; a run may name it by its folder."""
        if self.strategy(arm) != "matched":
            return None
        target = str(self.masking(arm).get("matched_to"))
        return next(
            (name for name in (target, Path(target).parent.name) if name in self.arms), None
        )

    def spoken(self, arm: str) -> str:
        """Its name in a sentence, where an arm called "none" would be misread."""
        return "no pretraining" if arm == "none" else arm

    def untrained(self) -> str | None:
        """The arm without pretraining, where there is one."""
        return next((arm for arm in self.arms if self.strategy(arm) == "none"), None)

    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    def evaluations(self, arm: str, method: str) -> "list[Evaluation]":
        """One a seed that was evaluated."""
        return [run.evaluations[method] for run in self.of(arm) if method in run.evaluations]

    def methods(self) -> tuple[str, ...]:
        """Those with any result, in the order of the report."""
        tables = [table for table in (self.summary, self.results) if table is not None]
        found = {method for table in tables for method in table["method"]} | {
            m for run in self.runs for m in run.evaluations
        }
        return tuple(method for method in METHODS if method in found)


def open_material(folder: str | Path) -> Material:
    """The contents of a study or run folder.

    Raises:
        ReportError: there is no such folder, or it is neither of the two, or holds no run yet.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(
            f"{folder}: no such folder; give the folder of `scmam compare` or `scmam pretrain`"
        )
    if (folder / "study.json").is_file() or (folder / "runs").is_dir():
        return _study(folder)
    if (folder / "run.json").is_file():
        return _single_run(folder)
    raise ReportError(
        f"{folder}: has neither study.json nor run.json; give the folder of `scmam compare` or `scmam pretrain`"
    )


def _study(folder: Path) -> Material:
    shelf = Shelf(folder)
    record, config = shelf.json(folder / "study.json"), shelf.yaml(folder / "config.yaml")
    settings = config.get("study") if isinstance(config.get("study"), dict) else {}
    runs = _runs(folder / "runs", shelf)
    wanted = [str(arm) for arm in settings.get("arms") or record.get("arms") or ()]
    arms = tuple(dict.fromkeys([*wanted, *sorted({run.arm for run in runs})]))
    summary = shelf.table(
        folder / "summary.csv", "arm", "method", "metric", "mean", "low", "high", "difference"
    )
    baselines = read_evaluations(
        shelf, {path.stem: path for path in sorted((folder / "baselines").glob("*.json"))}
    )
    if not runs and not baselines:
        raise ReportError(
            f"{folder}: holds no run yet; start or resume the study with `scmam compare`"
        )
    reference = str(settings.get("reference", "uniform"))
    return Material(
        folder=folder,
        is_study=True,
        record=record,
        config=config,
        arms=arms,
        runs=tuple(sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))),
        results=shelf.table(folder / "results.csv", "arm", "seed", "fold", "method", "macro_f1"),
        summary=summary,
        baselines=baselines,
        reference=reference if reference in arms else None,
        shelf=shelf,
    )


def _single_run(folder: Path) -> Material:
    shelf = Shelf(folder)
    config = shelf.yaml(folder / "config.yaml")
    masking = config.get("masking") if isinstance(config.get("masking"), dict) else {}
    training = config.get("training") if isinstance(config.get("training"), dict) else {}
    run = RunFiles(str(masking.get("strategy", "run")), int(training.get("seed", 0)), folder, shelf)
    return Material(
        folder, False, run.record, config, (run.arm,), (run,), None, None, {}, None, shelf
    )


def _runs(folder: Path, shelf: Shelf) -> list[RunFiles]:
    found = []
    for path in sorted(folder.glob("*/seed-*")):
        seed = path.name.removeprefix("seed-")
        if path.is_dir() and seed.isdecimal():
            found.append(RunFiles(path.parent.name, int(seed), path, shelf))
    return found


def read_evaluations(shelf: Shelf, paths: dict[str, Path]) -> "dict[str, Evaluation]":
    """The evaluations that are there."""
    found = {name: shelf.evaluation(path) for name, path in paths.items()}
    return {name: evaluation for name, evaluation in found.items() if evaluation is not None}
