"""The progress bar: steps done, the last losses, the time that is left."""

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from .losses import LossLog

LINES = 20  # of a bar that is written to a file, where no line replaces the one before


class StepBar(Callback):
    """One bar for all of training, also when it is resumed; validation shows as its loss.

    Args:
        log: where the losses are taken from: those that were written last, so that a GPU is not
            waited for.
    """

    def __init__(self, log: LossLog) -> None:
        self.losses, self._bar = log, tqdm(disable=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.num_training_batches)
        pace: dict[str, Any] = {"smoothing": 0}  # the time left is told from that of this session
        if not sys.stderr.isatty():
            pace |= {"miniters": max(1, total // LINES), "mininterval": 0}
        self._bar = tqdm(
            desc="Pretraining",
            initial=trainer.fit_loop.batch_idx + 1,
            total=total,
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
            **pace,
        )

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._show_losses(refresh=False)
        self._bar.update()

    def on_validation_end(self, *arguments: Any) -> None:
        self._show_losses(refresh=True)

    def on_train_end(self, *arguments: Any) -> None:
        self._bar.close()

    def on_exception(self, *arguments: Any) -> None:
        self._bar.close()

    def _show_losses(self, *, refresh: bool) -> None:
        names, latest = {"train": "loss"}, self.losses.latest.items()
        told = {names.get(phase, phase): f"{loss:.4f}" for phase, loss in latest}
        self._bar.set_postfix(told, refresh=refresh)
