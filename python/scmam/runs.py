"""Run folders: one pretraining run on disk, and how to open one.

    config.yaml   every setting, resolved             metrics.csv   losses and hidden shares, a row
    a step and a row a validation run.json      status, versions, sizes, times      checkpoints/
    last.ckpt and best.ckpt, to go on from genes.txt     the genes, one a line
    model.pt      the final weights; there once the status is "done" schedule.csv  hidden shares
    that a run of strategy "matched" was given

Each file is written whole or not at all; metrics.csv grows by whole rows.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mam_kernels.weights.files import WeightsError, read_checkpoint

from .config import Config, as_yaml, load_config, write_atomically
from .errors import ConfigError, RunError
from .objective import Pretraining, build_pretraining

if TYPE_CHECKING:
    import pandas as pd

CONFIG, RECORD, GENES, METRICS, WEIGHTS, SCHEDULE, CHECKPOINTS = (
    "config.yaml",
    "run.json",
    "genes.txt",
    "metrics.csv",
    "model.pt",
    "schedule.csv",
    "checkpoints",
)
SECTIONS = ("data", "model", "masking", "training")
# where and how comfortably it runs, not what comes out: a run may go on with other values
INCIDENTAL = {
    "training": {"device", "workers", "tensorboard", "checkpoint_every"},
}
METRIC_COLUMNS = (
    "step",
    "epoch",
    "phase",
    "loss",
    "reconstruction",
    "cell",
    "penalty",
    "hidden",
    "hidden_nonzero",
    "hidden_zero",
    "entropy",
    "lr",
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
        """Whether the final weights are there."""
        return self.status == "done"

    def metrics(self) -> "pd.DataFrame":
        """metrics.csv: a row for each step (phase "train") and each validation, in order; no row
        where no step was made.

        The columns are `METRIC_COLUMNS`. ``hidden``, ``hidden_nonzero`` and ``hidden_zero`` are
        shares of all, the non-zero and the zero genes; ``entropy`` is that of the masking
        distribution over its maximum.
        """
        import pandas as pd

        path = self.folder / METRICS
        if not path.is_file():
            return pd.DataFrame(columns=list(METRIC_COLUMNS))
        table = pd.read_csv(path)
        missing = [column for column in METRIC_COLUMNS if column not in table.columns]
        if missing:
            raise RunError(
                f"{path}: has no column {', '.join(missing)}; delete the folder and pretrain again"
            )
        return table

    def schedule(self) -> Tensor:
        """(steps, 2) float32: the shares of the zeros and of the non-zeros that were hidden at each
        step.

        Raises:
            RunError: the run is not done, or made no step.
        """
        self._require_done()
        table = self.metrics()
        steps = table[table["phase"] == "train"]
        if steps.empty:
            raise RunError(
                f"{self.folder}: made no step, so there are no hidden shares to match; name a run that was trained"
            )
        return torch.tensor(
            steps[["hidden_zero", "hidden_nonzero"]].to_numpy(), dtype=torch.float32
        )

    def load(self, device: torch.device | str = "cpu") -> Pretraining:
        """The pretrained objective with its final weights, in evaluation mode.

        Raises:
            RunError: the run is not done, or its weights are missing, damaged or do not belong to
                its settings.
        """
        self._require_done()
        path = self.folder / WEIGHTS
        contents = load_file(
            path,
            f"delete {self.folder} and pretrain again",
            required=("state_dict", "config", "num_genes"),
        )
        pretraining = build_pretraining(
            self.config, len(self.genes), schedule=by_batch(read_schedule(self.folder), self.config)
        )
        try:
            pretraining.load_state_dict(contents["state_dict"])
        except RuntimeError as error:
            raise RunError(
                f"{path}: its weights do not fit {CONFIG} and {GENES} beside it ({_one_line(error)}); pretrain again"
            ) from error
        return pretraining.to(device).eval()

    def _require_done(self) -> None:
        if not self.done:
            raise RunError(
                f"{self.folder}: pretraining is not done ({self.status} after step {self.record.get('steps', 0)} of"
                f" {self.config.training.steps}); pretrain again with the same configuration and folder, which goes on from there"
            )


def open_run(folder: str | Path) -> Run:
    """Open a run folder, done or not.

    Raises:
        RunError: there is no such folder, it holds no run, or a file of it is missing or cannot be
            read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no such folder; give the folder of a run, as `scmam pretrain` writes it"
        )
    if not (folder / RECORD).is_file():
        raise RunError(
            f"{folder}: not a run, for it has no {RECORD}; give the folder of a run, as `scmam pretrain` writes it"
        )
    record = _read_record(folder / RECORD)
    try:
        config = load_config(folder / CONFIG)
    except ConfigError as error:
        raise RunError(
            f"{error}; {CONFIG} of a run is not to be changed: restore it, or delete the folder and pretrain again"
        ) from error
    genes = folder / GENES
    if not genes.is_file():
        raise RunError(
            f"{genes}: no such file; restore it, or delete the folder and pretrain again"
        )
    return Run(folder, config, record, tuple(genes.read_text(encoding="utf-8").splitlines()))


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide what a run computes, as ``{"section.name": value}``."""
    settings = config.model_dump(mode="json", include=set(SECTIONS))
    return {
        f"{section}.{name}": value
        for section in SECTIONS
        for name, value in settings[section].items()
        if name not in INCIDENTAL.get(section, ())
    }


def run_fingerprint(config: Config) -> str:
    """A short hash of `identity`: two runs with the same one were asked for the same thing."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Config, new: Config) -> list[str]:
    """The deciding settings in which two configurations differ, as "section.name: old -> new"."""
    before, after = identity(old), identity(new)
    return [
        f"{name}: {before[name]} -> {value}"
        for name, value in after.items()
        if before[name] != value
    ]


def create_folder(
    folder: Path,
    config: Config,
    genes: tuple[str, ...],
    record: Mapping[str, Any],
    schedule: Tensor | None,
) -> None:
    """Make a run folder with all that is known before the first step; it appears whole or not at
    all.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write_atomically(beside / CONFIG, as_yaml(config))
        write_atomically(beside / GENES, "".join(f"{gene}\n" for gene in genes))
        if schedule is not None:
            rows = "".join(f"{zeros!r},{nonzeros!r}\n" for zeros, nonzeros in schedule.tolist())
            write_atomically(beside / SCHEDULE, "hidden_zero,hidden_nonzero\n" + rows)
        write_record(beside, record)
        beside.chmod(0o755)
        beside.replace(folder)  # replaces an empty folder too
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json."""
    write_atomically(folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")


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
    """(rows, 2) float32: what schedule.csv holds; None where there is none.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / SCHEDULE
    if not path.is_file():
        return None
    try:
        rows = [
            [float(value) for value in line.split(",")]
            for line in path.read_text(encoding="utf-8").splitlines()[1:]
        ]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"{path}: damaged ({_one_line(error)}); delete {folder} and pretrain again"
        ) from error


def by_batch(schedule: Tensor | None, config: Config) -> Tensor | None:
    """A row a batch, which is what masks count, from a row a step."""
    return (
        None if schedule is None else schedule.repeat_interleave(config.training.accumulate, dim=0)
    )


def save_file(path: Path, contents: Mapping[str, Any]) -> None:
    """``torch.save`` to a file that appears whole or not at all: written beside its place, and
    renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            torch.save(dict(contents), file)
            file.close()
            beside = Path(file.name)
            beside.chmod(0o644)
            beside.replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def load_file(
    path: Path, remedy: str, required: tuple[str, ...] = (), map_location: Any = "cpu"
) -> dict[str, Any]:
    """What `save_file` wrote: tensors and plain values only, nothing that could run code.

    Args:
        path: the file.
        remedy: what to do if it cannot be used, as the end of the error.
        required: names that it must hold.
        map_location: as in ``torch.load``.

    Raises:
        RunError: it is missing, or cut short or changed anywhere (its checksums are looked at), or
            holds something else.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; {remedy}")
    try:
        contents = read_checkpoint(path, map_location)
    except WeightsError as error:
        raise RunError(
            f"{path}: damaged ({str(error).removeprefix(f'{path}: ')}); {remedy}"
        ) from error
    missing = [name for name in required if not isinstance(contents, dict) or name not in contents]
    if missing:
        raise RunError(
            f"{path}: holds no {', '.join(missing)}, so it was not written by pretraining; {remedy}"
        )
    return contents


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: damaged ({_one_line(error)}); restore it, or delete the folder and pretrain again"
        ) from error
    if not isinstance(record, dict) or record.get("status") not in (
        "running",
        "interrupted",
        "done",
    ):
        raise RunError(
            f"{path}: not the record of a run, for it has no status; give the folder of a run, as `scmam pretrain` writes it"
        )
    return record


def _one_line(error: BaseException, longest: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + " ..."
