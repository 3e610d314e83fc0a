"""Run folders: one pretraining run on disk, and how to open one.

| file           | holds                                                              |
|----------------|--------------------------------------------------------------------|
| `config.yaml`  | every setting, resolved                                            |
| `run.json`     | status, versions, sizes, times                                     |
| `genes.txt`    | the genes, one a line                                              |
| `metrics.csv`  | losses and hidden shares, a row for each step and each validation  |
| `checkpoints/` | `last.ckpt` and `best.ckpt`, to go on from                         |
| `model.pt`     | the final weights; there once the status is "done"                 |
| `schedule.csv` | hidden shares that a run of strategy "matched" was given           |

Each file is written whole or not at all; metrics.csv grows by whole rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mam_kernels.weights import WeightsError
from mam_kernels.weights.files import fill, read_checkpoint

from .config import Config, as_yaml, flat, load_config
from .errors import CellsError, ConfigError, RunError, one_line
from .objective import Pretraining, build_pretraining
from .settings.studies import SPLIT
from .storage import new_file, new_folder, read_csv, read_json, write_file

CONFIG, RECORD, GENES, METRICS = "config.yaml", "run.json", "genes.txt", "metrics.csv"
WEIGHTS, SCHEDULE, CHECKPOINTS = "model.pt", "schedule.csv", "checkpoints"
AGAIN = "restore it, or delete the folder and pretrain again"
GIVE_A_RUN = "give the folder of a run, as `scmam pretrain` writes it"
SECTIONS = ("data", "model", "masking", "training")
# Settings that do not change the result: a run may go on with other values.
INCIDENTAL = {f"training.{x}" for x in ("device", "workers", "tensorboard", "checkpoint_every")}
METRIC_COLUMNS = (
    *("step", "epoch", "phase", "loss", "reconstruction", "cell", "penalty"),
    *("hidden", "hidden_nonzero", "hidden_zero", "entropy", "lr"),
)


@dataclass(frozen=True)
class Run:
    """A run folder that was opened."""

    folder: Path
    config: Config
    record: dict[str, Any]  #: run.json
    genes: tuple[str, ...]

    @property
    def status(self) -> str:
        """One of "running", "interrupted" and "done"; a run that was killed without warning stays
        "running".
        """
        return self.record["status"]

    @property
    def done(self) -> bool:
        """True if the final weights are there."""
        return self.status == "done"

    @property
    def device(self) -> torch.device:
        """What to compute on: a GPU where there is one, unless ``training.device`` is cpu."""
        on_gpu = self.config.training.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")

    def metrics(self) -> pd.DataFrame:
        """metrics.csv: a row for each step (phase "train") and each validation, in order; no row
        where no step was made.

        The columns are `METRIC_COLUMNS`. ``hidden``, ``hidden_nonzero`` and ``hidden_zero`` are
        shares of all, the non-zero and the zero genes; ``entropy`` is that of the masking
        distribution over its maximum, at every tenth step from the first and at validations.
        """

        path = self.folder / METRICS
        if not path.is_file():
            return pd.DataFrame(columns=list(METRIC_COLUMNS))
        table = read_csv(path, AGAIN)
        if missing := [column for column in METRIC_COLUMNS if column not in table.columns]:
            raise RunError(f"{path}: has no column {', '.join(missing)}; {AGAIN}")
        return table

    def schedule(self) -> Tensor:
        """(steps, 2) float32: the shares of the zeros and of the non-zeros that were hidden at each
        step.

        Raises:
            RunError: the run is not done, or made no step.
        """
        self._require_done()
        steps = self.metrics().query("phase == 'train'")
        if steps.empty:
            raise RunError(
                f"{self.folder}: made no step, so there are no hidden shares to match; name a run"
                " that was trained"
            )
        shares = steps[["hidden_zero", "hidden_nonzero"]].to_numpy()
        return torch.tensor(shares, dtype=torch.float32)

    def load(self, device: torch.device | str = "cpu") -> Pretraining:
        """The pretrained objective with its final weights, in evaluation mode.

        Raises:
            RunError: the run is not done, or its weights are missing, damaged or do not belong to
                its settings.
        """
        self._require_done()
        path = self.folder / WEIGHTS
        contents = load_file(path, AGAIN, required=("state_dict", "config", "num_genes"))
        schedule = by_batch(read_schedule(self.folder), self.config)
        pretraining = build_pretraining(self.config, len(self.genes), schedule=schedule)
        try:
            fill(pretraining, contents["state_dict"], str(path))
        except WeightsError as error:
            raise RunError(
                f"{path}: its weights do not fit {CONFIG} and {GENES} beside it"
                f" ({str(error).removeprefix(f'{path}: ')}); pretrain again"
            ) from error
        return pretraining.to(device).eval()

    def _require_done(self) -> None:
        if not self.done:
            steps = f"step {self.record.get('steps', 0)} of {self.config.training.steps}"
            raise RunError(
                f"{self.folder}: pretraining is not done ({self.status} after {steps}); pretrain"
                " again with the same configuration and folder, which goes on from there"
            )


def open_run(folder: str | Path) -> Run:
    """Open a run folder, done or not.

    Raises:
        RunError: there is no such folder, it holds no run, or a file of it is missing or cannot be
            read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; {GIVE_A_RUN}")
    if not (folder / RECORD).is_file():
        raise RunError(f"{folder}: not a run, for it has no {RECORD}; {GIVE_A_RUN}")
    record = _read_record(folder / RECORD)
    try:
        config = load_config(folder / CONFIG)
    except ConfigError as error:
        raise RunError(f"{error}; {CONFIG} of a run is not to be changed: {AGAIN}") from error
    if not (folder / GENES).is_file():
        raise RunError(f"{folder / GENES}: no such file; {AGAIN}")
    try:
        return Run(folder, config, record, read_genes(folder / GENES))
    except UnicodeDecodeError as error:
        raise RunError(f"{folder / GENES}: damaged ({one_line(error)}); {AGAIN}") from error


def read_genes(path: Path) -> tuple[str, ...]:
    """Gene names, one a line. Only a line feed ends a line: names may hold whatever else Python
    takes for a line's end.
    """
    with open(path, encoding="utf-8", newline="\n") as file:
        return tuple(line.removesuffix("\n") for line in file)


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide what a run computes, as ``{"section.name": value}``."""
    settings = flat(config)
    deciding = {name for name in settings if name.partition(".")[0] in SECTIONS} - INCIDENTAL
    if config.training.cells == "training":  # which cells those are
        deciding |= {f"evaluation.{name}" for name in SPLIT}
    return {name: value for name, value in settings.items() if name in deciding}


def differences(old: Config, new: Config) -> list[str]:
    """The deciding settings in which two configurations differ, as "section.name: old -> new"."""
    before, after = identity(old), identity(new)
    return [
        f"{name}: {before[name]} -> {value}"
        for name, value in after.items()
        if name in before and before[name] != value
    ]


def create_folder(
    folder: Path,
    config: Config,
    genes: tuple[str, ...],
    record: Mapping[str, Any],
    schedule: Tensor | None,
) -> None:
    """Make a run folder, atomically, with everything that is known before the first step.

    Raises:
        CellsError: a gene name holds a line feed.
        OSError: the folder cannot be written.
    """
    if broken := [gene for gene in genes if "\n" in gene]:
        raise CellsError(f"genes: expected names without line feeds; got {broken[0]!r}")
    with new_folder(folder) as beside:
        write_file(beside / CONFIG, as_yaml(config))
        write_file(beside / GENES, "".join(f"{gene}\n" for gene in genes))
        if schedule is not None:
            rows = "".join(f"{zeros!r},{nonzeros!r}\n" for zeros, nonzeros in schedule.tolist())
            write_file(beside / SCHEDULE, "hidden_zero,hidden_nonzero\n" + rows)
        write_record(beside, record)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json."""
    write_file(folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")


def update_record(folder: Path, **changes: Any) -> None:
    """Set some entries of run.json."""
    write_record(folder, {**_read_record(folder / RECORD), **changes})


def write_weights(
    folder: Path, config: Config, genes: tuple[str, ...], state_dict: Mapping[str, Tensor]
) -> None:
    """Write model.pt."""
    save_file(
        folder / WEIGHTS,
        {
            "state_dict": {name: tensor.detach().cpu() for name, tensor in state_dict.items()},
            "config": config.model_dump(mode="json"),
            "genes": list(genes),
            "num_genes": len(genes),
        },
    )


def read_schedule(folder: Path) -> Tensor | None:
    """(rows, 2) float32: the contents of schedule.csv; None where there is none.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / SCHEDULE
    if not path.is_file():
        return None
    try:
        rows = np.loadtxt(path, np.float32, delimiter=",", skiprows=1, usecols=(0, 1))
        return torch.from_numpy(rows.reshape(-1, 2))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({one_line(error)}); {AGAIN}") from error


def by_batch(schedule: Tensor | None, config: Config) -> Tensor | None:
    """Repeat the row of each step for its accumulated batches, which masks are counted by."""
    return None if schedule is None else schedule.repeat_interleave(config.training.accumulate, 0)


def save_file(path: Path, contents: Mapping[str, Any]) -> None:
    """``torch.save``, atomically.

    Raises:
        OSError: it cannot be written there.
    """
    with new_file(path) as beside, open(beside, "wb") as file:
        try:
            torch.save(dict(contents), file)
        except RuntimeError as error:  # torch's own, in which the system's is hidden
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_file(
    path: Path, remedy: str, required: tuple[str, ...] = (), map_location: Any = "cpu"
) -> dict[str, Any]:
    """Read what `save_file` wrote: tensors and plain values only, nothing that could run code.

    Args:
        path: the file.
        remedy: what to do if it cannot be used, as the end of the error.
        required: names that it must hold.
        map_location: as in ``torch.load``.

    Raises:
        RunError: it is missing, or cut short or changed anywhere (its checksums are looked at), or
            holds something else.
    """
    try:
        contents = read_checkpoint(path, map_location)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
        found = f"damaged ({reason})" if path.is_file() else reason
        raise RunError(f"{path}: {found}; {remedy}") from error
    missing = [name for name in required if not isinstance(contents, dict) or name not in contents]
    if missing:
        raise RunError(
            f"{path}: holds no {', '.join(missing)}, so it was not written by pretraining; {remedy}"
        )
    return contents


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path, AGAIN)
    known = ("running", "interrupted", "done")
    if not isinstance(record, dict) or record.get("status") not in known:
        raise RunError(f"{path}: not the record of a run, for it has no status; {GIVE_A_RUN}")
    return record
