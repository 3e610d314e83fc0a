"""The objective as a LightningModule: a step, its validation, and the optimizer."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from mam_kernels.randomness import substream

from ..learning_rate import rise_and_fall
from ..objective import Losses, Pretraining
from ..sequences import CellBatch
from ..settings import Training

# The step of the masks of validation: always the same, so that losses can be compared.
VALIDATION_STEP = 0
ENTROPY_EVERY = 10  # optimizer steps, from the first


class PretrainingModule(LightningModule):
    """The module that Lightning trains.

    Masks are a function of (seed, batch number, cell id), and the batch number is counted by
    Lightning from the beginning of the run, so it is the same after a resumption.

    Args:
        pretraining: the objective.
        training: the settings of the recipe.
        dropout: whether the model draws from torch's own generator.
    """

    def __init__(self, pretraining: Pretraining, training: Training, dropout: bool) -> None:
        super().__init__()
        self.pretraining, self.settings, self.dropout = pretraining, training, dropout
        self.validation_losses: Tensor | None = None  # (8,) as `Losses`: of the last validation
        self._sums = torch.zeros(0)  # of the losses, then the cells; set as a validation begins

    def training_step(self, batch: CellBatch, batch_idx: int) -> dict[str, Tensor]:
        if self.dropout:  # a function of (seed, batch number, process) as well
            name = f"dropout {batch_idx} {self.global_rank}"
            torch.manual_seed(substream(self.settings.seed, name))
        measured = batch_idx // self.settings.accumulate % ENTROPY_EVERY == 0
        losses = self.pretraining(batch, seed=self.settings.seed, step=batch_idx, entropy=measured)
        return {"loss": losses.total, "losses": as_vector(losses)}

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(len(Losses._fields) + 1, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: CellBatch, batch_idx: int) -> None:
        losses = as_vector(self.pretraining(batch, seed=self.settings.seed, step=VALIDATION_STEP))
        cells = len(batch.cell_ids)
        self._sums[:-1] += losses * cells
        self._sums[-1] += cells

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        self.validation_losses = sums[:-1] / sums[-1]
        self.log("validation/loss", self.validation_losses[0].float(), logger=False, sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: CellBatch, batch_idx: int) -> None:
        if self.trainer.global_step >= self.settings.steps:
            self.trainer.should_stop = True  # it would stop without; told to, it validates first

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.settings
        groups = self.pretraining.parameter_groups(
            recipe.lr,
            recipe.masking_lr,
            recipe.weight_decay,
            recipe.decay_of_latents,
            recipe.rate_groups,
        )
        # One call for all parameters, which are many and small. Lightning does not clip gradients
        # for such an optimizer under autocast.
        fused = recipe.precision == "32-true"
        optimizer = torch.optim.Adam(groups, amsgrad=recipe.amsgrad, fused=fused)
        factor = partial(rate_factor, training=recipe)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def as_vector(losses: Losses) -> Tensor:
    """(8,) float64, without gradient."""
    return torch.stack([x.detach().double() for x in losses])


def rate_factor(step: int, training: Training) -> float:
    """Factor of the learning rates at a step, counted from 0: a linear rise, then half a cosine
    down to 0, or 1.
    """
    warmup = round(training.warmup * training.steps)
    if step >= warmup and training.schedule == "constant":
        return 1.0
    return rise_and_fall(step, warmup, training.steps)
