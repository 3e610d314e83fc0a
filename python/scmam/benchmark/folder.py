"""A benchmark on disk: config.yaml, benchmark.json (the data sets), scores/SET/ARM/seed-N.json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import Config, as_yaml, load_config, with_settings
from ..errors import RunError
from ..storage import write_file

if TYPE_CHECKING:
    import pandas

CONFIG, RECORD = "config.yaml", "benchmark.json"


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


def scores_file(folder: Path, name: str, arm: str, seed: int) -> Path:
    """Where the scores of a run lie."""
    return folder / "scores" / name / arm / f"seed-{seed}.json"


def work_folder(folder: Path, name: str, arm: str, seed: int) -> Path:
    """Where a run is trained; it is deleted when it is scored and no arm follows it."""
    return folder / "work" / name / arm / f"seed-{seed}"


def open_benchmark(folder: Path) -> tuple[Config, dict[str, DataSet]]:
    """Settings and data sets of a folder, by name.

    Raises:
        RunError: it is no benchmark.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sets = [DataSet(**one) for one in record["sets"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{folder}: no benchmark ({RECORD}: {error}); give the folder of scmam benchmark"
        ) from error
    return load_config(folder / CONFIG), {one.name: one for one in sets}


def save_benchmark(folder: Path, config: Config, sets: dict[str, DataSet]) -> None:
    """Write the settings and the data sets, each file whole or not at all."""
    write_file(folder / CONFIG, as_yaml(config))
    record: dict[str, Any] = {"sets": [one._asdict() for one in sets.values()]}
    write_file(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_runs(folder: Path) -> "pandas.DataFrame":
    """All scores that are there: data, genes, arm, seed, part, metric, value."""
    import pandas

    rows = []
    for path in sorted((folder / "scores").glob("*/*/seed-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        head = (run["data"], run["genes"], run["arm"], run["seed"])
        for part, scores in run["scores"].items():
            rows += [(*head, part, metric, value) for metric, value in scores.items()]
        rows += [(*head, "masks", metric, value) for metric, value in run["masks"].items()]
    columns = ["data", "genes", "arm", "seed", "part", "metric", "value"]
    return pandas.DataFrame(rows, columns=columns)
