"""The progress bar: steps done, the last losses, the time that is left."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from .losses import LossLog

LINES = 20  # of a bar that is written to a file, where no line replaces the one before


class StepBar(TQDMProgressBar):
    """One bar for all of training, also when it is resumed; validation shows as its loss.

    Args:
        log: where the losses are taken from: those that were written last, so that a GPU is not
            waited for.
        num_batches: in all of training.
    """

    def __init__(self, log: LossLog, num_batches: int) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else max(1, num_batches // LINES))
        self.losses = log

    @property
    def total_train_batches(self) -> int | float:
        return self.trainer.num_training_batches

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(
            desc="Pretraining",
            # The time left is then told from the pace of this session.
            initial=self.trainer.fit_loop.batch_idx + 1,
            total=self.total_train_batches,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Lightning starts its bar anew here, an epoch at a time."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        latest = self.losses.latest.items()
        return {{"train": "loss"}.get(phase, phase): f"{loss:.4f}" for phase, loss in latest}
