"""metrics.csv: the losses of each step and each validation.

Lightning's own CSV logger puts training and validation into one wide row, and empties its file when
a run is resumed; here a row is a step or a validation, and what a resumed run does again is taken
out first, so that no step appears twice.
"""

import csv
import math
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..config import Training
from ..errors import RunError
from ..objective import Losses
from ..runs import METRIC_COLUMNS
from ..storage import write_file
from .batches import batches_of
from .module import PretrainingModule, rate_factor

STEPS_TOGETHER = (
    10  # rows that are kept before they are written: a GPU is waited for that much less often
)


class MetricsFile:
    """A CSV file that grows by whole rows.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drop the rows of later steps, and a row that a killed process left unfinished; begin the
        file where there is none.
        """
        kept = []
        if self.path.is_file():
            try:
                with self.path.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.reader(file) if len(row) == len(METRIC_COLUMNS)][1:]
                kept = [row for row in rows if int(row[0]) <= step]
            except (ValueError, csv.Error) as error:
                raise RunError(
                    f"{self.path}: damaged ({error}); restore it, or delete the folder and pretrain"
                    " again"
                ) from error
        write_file(self.path, "".join(f"{','.join(row)}\n" for row in [METRIC_COLUMNS, *kept]))

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, in one write."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                "".join(
                    ",".join(_text(row[column]) for column in METRIC_COLUMNS) + "\n" for row in rows
                )
            )


class LossLog(Callback):
    """Collects losses and writes them, by the first process, to metrics.csv and to Lightning's
    loggers.

    The losses of a step are means over its batches and processes. They stay on their device until
    they are written: every few steps, before each checkpoint and validation, and at the end.

    Args:
        path: of metrics.csv.
        training: the settings of the recipe.
    """

    def __init__(self, path: Path, training: Training) -> None:
        self.file, self.settings = MetricsFile(path), training
        self.latest: dict[str, float] = {}  # of the last row that was written, for the progress bar
        self._sum: Tensor | None = None
        self._waiting: list[tuple[int, int, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.file.keep_until(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = outputs["losses"] if self._sum is None else self._sum + outputs["losses"]
        if (batch_idx + 1) % self.settings.accumulate:
            return
        epoch = batches_of(trainer).epoch_of(batch_idx)
        self._waiting.append(
            (
                (batch_idx + 1) // self.settings.accumulate,
                epoch,
                self._sum / self.settings.accumulate,
            )
        )
        self._sum = None
        if len(self._waiting) >= STEPS_TOGETHER:
            self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)
        vector = cast(PretrainingModule, pl_module).validation_losses
        losses = [] if vector is None else vector.tolist()
        epoch = batches_of(trainer).epoch_of(trainer.global_step * self.settings.accumulate - 1)
        self._add_finite(
            trainer,
            [self._row(trainer.global_step, epoch, "validation", losses)],
        )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if trainer.world_size == 1 and not isinstance(
            exception, RunError
        ):  # the other processes may not come to the reduction
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write the rows that are waiting.

        Raises:
            RunError: a loss that is not finite; nothing is written from there on, so no checkpoint
                holds what it did to the weights.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        means = trainer.strategy.reduce(
            torch.stack([losses for _, _, losses in waiting]), reduce_op="mean"
        ).tolist()
        rows = [
            self._row(step, epoch, "train", losses)
            for (step, epoch, _), losses in zip(waiting, means, strict=True)
        ]
        self._add_finite(trainer, rows)

    def _row(self, step: int, epoch: int, phase: str, losses: list[float]) -> dict[str, Any]:
        named = dict(zip(("loss", *Losses._fields[1:]), losses, strict=True))
        return {
            "step": step,
            "epoch": epoch,
            "phase": phase,
            **named,
            "lr": self.settings.lr * rate_factor(step - 1, self.settings),
        }

    def _add_finite(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        bad = next(
            (index for index, row in enumerate(rows) if not math.isfinite(row["loss"])), len(rows)
        )
        self._add(trainer, rows[:bad])
        if bad < len(rows):
            raise RunError(
                f"training: the loss is {rows[bad]['loss']} at step {rows[bad]['step']}; set a"
                " smaller training.lr or training.masking_lr, a longer training.warmup, or"
                " training.precision: 32-true"
            )

    def _add(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.latest[row["phase"]] = row["loss"]
        if not trainer.is_global_zero or not rows:
            return
        self.file.append(rows)
        for row in rows:
            values = {
                f"{row['phase']}/{name}": value
                for name, value in row.items()
                if isinstance(value, float)
            }
            for logger in trainer.loggers:
                logger.log_metrics(values, step=row["step"])


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
