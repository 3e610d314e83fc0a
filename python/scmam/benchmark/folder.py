"""A benchmark on disk: config.yaml, benchmark.json (the data sets), scores/SET/ARM/seed-N.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from ..config import Config, as_yaml, load_config, with_settings
from ..errors import RunError
from ..storage import write_file

CONFIG, RECORD = "config.yaml", "benchmark.json"
RUN, SCORE = ("data", "genes", "arm", "seed"), ("part", "metric", "value")


class DataSet(NamedTuple):
    """Cells of the benchmark, over their most variable genes."""

    path: str | None  #: None: scanpy's pbmc68k_reduced
    genes: int

    @property
    def data(self) -> str:
        """The name of the data, for tables."""
        return "pbmc68k_reduced" if self.path is None else Path(self.path).stem

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.data}-{self.genes}"

    def config(self, config: Config) -> Config:
        """The configuration for these cells."""
        data = {"path": self.path, "genes": "variable", "num_genes": self.genes}
        return with_settings(config, data=data)


class Benchmark(NamedTuple):
    """What a folder holds beside scores."""

    config: Config
    sets: dict[str, DataSet]  #: by name
    curve: int | None = None  #: steps after which runs are scored, each time; None: only at the end


def scores_file(folder: Path, name: str, arm: str, seed: int) -> Path:
    """Where the scores of a run lie."""
    return folder / "scores" / name / arm / f"seed-{seed}.json"


def read_score(path: Path) -> dict[str, Any]:
    """What a `scores_file` holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def work_folder(folder: Path, name: str, arm: str, seed: int) -> Path:
    """Where a run is trained; it is deleted when it is scored and no arm follows it."""
    return folder / "work" / name / arm / f"seed-{seed}"


def open_benchmark(folder: Path) -> Benchmark:
    """Settings and data sets of a folder.

    Raises:
        RunError: it is no benchmark.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sets = {one.name: one for one in (DataSet(**values) for values in record["sets"])}
        curve = record.get("curve")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{folder}: no benchmark ({RECORD}: {error}); give the folder of scmam benchmark"
        ) from error
    return Benchmark(load_config(folder / CONFIG), sets, curve)


def save_benchmark(folder: Path, benchmark: Benchmark) -> None:
    """Write the settings and the data sets, each file whole or not at all."""
    write_file(folder / CONFIG, as_yaml(benchmark.config))
    sets = [one._asdict() for one in benchmark.sets.values()]
    record: dict[str, Any] = {"sets": sets, "curve": benchmark.curve}
    write_file(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_runs(folder: Path) -> pandas.DataFrame:
    """All scores that are there: data, genes, arm, seed, part, metric, value."""

    rows = []
    for head, run in _records(folder):
        parts = {**run["scores"], "masks": run["masks"]}
        rows += [(*head, *score) for score in _values(parts)]
    return pandas.DataFrame(rows, columns=[*RUN, *SCORE])


def read_curves(folder: Path) -> pandas.DataFrame:
    """The scores at each step that was scored, of runs with a curve: data, genes, arm, seed, step,
    part, metric, value.
    """

    rows = [
        (*head, int(step), *score)
        for head, run in _records(folder)
        for step, parts in run.get("curve", {}).items()
        for score in _values(parts)
    ]
    return pandas.DataFrame(rows, columns=[*RUN, "step", *SCORE])


def _records(folder: Path) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What identifies each run that was scored, and its file."""
    for path in sorted((folder / "scores").glob("*/*/seed-*.json")):
        run = read_score(path)
        yield tuple(run[name] for name in RUN), run


def _values(parts: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float]]:
    """Part, metric and value of each score."""
    for part, scores in parts.items():
        for metric, value in scores.items():
            yield part, metric, value
