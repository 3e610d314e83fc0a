"""metrics.csv: the losses of each step and each validation.

Lightning's own CSV logger puts training and validation into one wide row, and empties its file when
a run is resumed; here a row is a step or a validation, and what a resumed run does again is taken
out first, so that no step appears twice.
"""

import csv
import itertools
import math
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..errors import RunError
from ..runs import METRIC_COLUMNS
from ..settings import Training
from ..storage import write_file
from .batches import batches_of
from .module import PretrainingModule, rate_factor

STEPS_TOGETHER = 10  # rows that are written at a time: each time waits for a GPU


def keep_until(path: Path, step: int) -> None:
    """Drop the rows of later steps from metrics.csv, and a row that a killed process left
    unfinished; begin the file where there is none.

    Raises:
        RunError: it is damaged.
    """
    rows = []
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                whole = [row for row in csv.reader(file) if len(row) == len(METRIC_COLUMNS)][1:]
            rows = [row for row in whole if int(row[0]) <= step]
        except (ValueError, csv.Error) as error:
            remedy = "restore it, or delete the folder and pretrain again"
            raise RunError(f"{path}: damaged ({error}); {remedy}") from error
    write_file(path, "".join(f"{','.join(row)}\n" for row in [METRIC_COLUMNS, *rows]))


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to metrics.csv, in one write."""
    table = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
    table.to_csv(path, mode="a", header=False, index=False, float_format="%.9g", na_rep="nan")


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
        self.path, self.settings = path, training
        self.latest: dict[str, float] = {}  # of the last row that was written, for the progress bar
        self._sum: Tensor | None = None
        self._waiting: list[tuple[int, int, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            keep_until(self.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = outputs["losses"] if self._sum is None else self._sum + outputs["losses"]
        step, incomplete = divmod(batch_idx + 1, self.settings.accumulate)
        if incomplete:
            return
        mean, epoch = self._sum / self.settings.accumulate, batches_of(trainer).epoch_of(batch_idx)
        self._waiting.append((step, epoch, mean))
        self._sum = None
        if len(self._waiting) >= STEPS_TOGETHER:
            self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)
        vector = cast(PretrainingModule, pl_module).validation_losses
        losses = [] if vector is None else vector.tolist()
        step = trainer.global_step
        epoch = batches_of(trainer).epoch_of(step * self.settings.accumulate - 1)
        self._add(trainer, [self._row(step, epoch, "validation", losses)])

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)

    def on_exception(self, trainer: Trainer, _: Any, exception: BaseException) -> None:
        # Other processes may not come to the reduction.
        if trainer.world_size == 1 and not isinstance(exception, RunError):
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
        steps, epochs, losses = zip(*waiting, strict=True)
        means = trainer.strategy.reduce(torch.stack(losses), reduce_op="mean").tolist()
        rows = zip(steps, epochs, means, strict=True)
        self._add(trainer, [self._row(step, epoch, "train", mean) for step, epoch, mean in rows])

    def _row(self, step: int, epoch: int, phase: str, losses: list[float]) -> dict[str, Any]:
        rate = self.settings.lr * rate_factor(step - 1, self.settings)
        return dict(zip(METRIC_COLUMNS, (step, epoch, phase, *losses, rate), strict=True))

    def _add(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        """Write the rows before the first loss that is not finite, which is an error."""
        finite = list(itertools.takewhile(lambda row: math.isfinite(row["loss"]), rows))
        for row in finite:
            self.latest[row["phase"]] = row["loss"]
        if trainer.is_global_zero:
            append(self.path, finite)
            for row in finite:
                known = {k: x for k, x in row.items() if isinstance(x, float) and not math.isnan(x)}
                values = {f"{row['phase']}/{name}": x for name, x in known.items()}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=row["step"])
        if len(finite) < len(rows):
            bad = rows[len(finite)]
            raise RunError(
                f"training: the loss is {bad['loss']} at step {bad['step']}; set a smaller"
                " training.lr or training.masking_lr, a longer training.warmup, or"
                " training.precision: 32-true"
            )
