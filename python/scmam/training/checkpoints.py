"""Checkpoints: files that are whole or not there, and one at the end of a step from which a run
goes on exactly.
"""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import __version__ as lightning_version
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch import Tensor

from ..errors import RunError
from ..runs import CHECKPOINTS, load_file, save_file
from ..settings import Training
from .signals import Interrupted, StopSignals

VERSION = "pytorch-lightning_version"  # as Lightning names it in a checkpoint
LAST, BEST = "last.ckpt", "best.ckpt"
SNAPSHOTS = "snapshots"


def checkpoint_to_go_on_from(folder: Path) -> Path | None:
    """The last checkpoint of a run folder; where it was deleted, the best; None where there is
    neither.

    Raises:
        RunError: a folder has the name of a checkpoint.
    """
    candidates = [folder / CHECKPOINTS / name for name in (LAST, BEST)]
    for path in candidates:
        if path.is_dir():
            raise RunError(f"{path}: expected a checkpoint; got a folder; delete it")
    return next((path for path in candidates if path.is_file()), None)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint that Lightning saved.

    Raises:
        RunError: it is damaged, or of another Lightning, which would go on from another batch;
            which checkpoint the run goes on from without it.
    """
    required = ("state_dict", "loops", "optimizer_states", "global_step", VERSION)
    contents = load_file(path, without(path), required=required, map_location=map_location)
    written, here = (str(text).partition(".")[0] for text in (contents[VERSION], lightning_version))
    if written != here:
        raise RunError(
            f"{path}: expected a checkpoint of Lightning {here}; got one of {contents[VERSION]!r};"
            f" {without(path)}"
        )
    if not isinstance(contents["loops"], dict) or "fit_loop" not in contents["loops"]:
        raise RunError(f"{path}: does not say which batch it is of; {without(path)}")
    return contents


def without(path: Path) -> str:
    """Advice on a checkpoint that cannot be used."""
    others = (path.with_name(name) for name in (LAST, BEST))
    rest = next((other.name for other in others if other != path and other.is_file()), None)
    return f"delete it, and the run goes on from {rest or 'the beginning'}"


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints through `scmam.runs.save_file` and `load_file`: renamed into place,
    checked when they are read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        save_file(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location or "cpu")


class _Movable(ModelCheckpoint):
    """Lightning's checkpoints in a folder that may have been moved since."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A folder that was moved keeps what was best.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


def best_checkpoint(folder: Path, monitor: str) -> ModelCheckpoint:
    """Writes ``best.ckpt`` of a run folder after a validation that was better than all before, by
    the loss of the name `monitor`.
    """
    name = Path(BEST).stem
    return _Movable(folder / CHECKPOINTS, name, monitor, enable_version_counter=False)


def snapshots_every(folder: Path, steps: int) -> ModelCheckpoint:
    """Writes the weights every so many steps, ``snapshots/step=N.ckpt``; `snapshots` finds them."""
    return _Movable(
        folder / SNAPSHOTS,
        "{step}",
        every_n_train_steps=steps,
        save_top_k=-1,
        save_weights_only=True,
        enable_version_counter=False,
    )


def snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots of a run folder by their steps, in order."""
    paths = (folder / SNAPSHOTS).glob("step=*.ckpt")
    found = {int(path.stem.removeprefix("step=")): path for path in paths}
    return dict(sorted(found.items()))


def read_snapshot(path: Path) -> dict[str, Tensor]:
    """The state of the objective (`scmam.objective.Pretraining`) in a snapshot.

    Raises:
        RunError: it is damaged.
    """
    state = load_file(path, "pretrain again in another folder", required=("state_dict",))
    tensors = state["state_dict"].items()
    return {name.removeprefix("pretraining."): tensor for name, tensor in tensors}


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` at the end of a step, and ends training there when a signal asks for it.

    The end of a step is after the validation that belongs to it. (Lightning's own callback saves
    before: a resumed run then leaves that validation out, and its early stopping counts otherwise.)
    Always a whole optimizer step, so no accumulated gradient is lost.

    Args:
        folder: of the run.
        training: `accumulate`, `steps`, `validate_every` and `checkpoint_every` are used.
        signals: asked at the end of each step.
    """

    def __init__(self, folder: Path, training: Training, signals: StopSignals) -> None:
        self.path, self.settings, self.signals = folder / CHECKPOINTS / LAST, training, signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole = (batch_idx + 1) % self.settings.accumulate == 0
        if whole and not self._validation_follows(trainer):
            self._end_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.ignore()

    def on_exception(self, *_: Any) -> None:
        self.signals.ignore()

    def _validation_follows(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return trainer.enable_validation and (
            step % self.settings.validate_every == 0 or step >= self.settings.steps
        )

    def _end_step(self, trainer: Trainer) -> None:
        step = trainer.global_step
        signal_number = self.signals.agreed(trainer)
        stops = signal_number is not None and step < self.settings.steps
        if stops or step % self.settings.checkpoint_every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)
        if stops and signal_number is not None:
            self.signals.before_stopping(signal_number, self.path.parent, trainer)
            raise Interrupted(signal_number)


class Restored(Callback):
    """Notes that Lightning has taken a checkpoint in, and looks at what Lightning does not: the
    sizes of the optimizer's moments.
    """

    def __init__(self) -> None:
        self.done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(
                            f"{name} of the optimizer has shape {tuple(value.shape)}, and its"
                            f" parameter {tuple(parameter.shape)}"
                        )
        self.done = True
