"""The cells of a run as Lightning takes them: one long epoch of training batches, and the cells
that are kept aside.
"""

import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer

from ..data import CellLoader, Cells, holdout
from ..sequences import CellBatch
from ..settings import Training


class TrainingBatches:
    """Epochs of a loader one after another, as a single epoch of known length.

    Lightning makes an optimizer step at the end of each of its epochs, however few batches were
    accumulated, and looks one batch ahead where it does not know how many follow; a single epoch of
    ``steps * accumulate`` batches has neither. The place is the loader's own.

    Args:
        loader: the cells.
        num_batches: how many batches all of training takes.
    """

    def __init__(self, loader: CellLoader, num_batches: int) -> None:
        self.loader, self.num_batches = loader, num_batches
        self._waited = 0.0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[CellBatch]:
        while True:  # Lightning stops asking after len(self) batches
            batches = iter(self.loader)
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self._waited += time.perf_counter() - start
                if batch is None:
                    break
                yield batch

    def take_waited(self) -> float:
        """Seconds spent waiting for batches since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def epoch_of(self, batch_index: int) -> int:
        """The pass over the cells that a batch belongs to."""
        return batch_index // len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


class CellData(LightningDataModule):
    """Training and validation cells of a run, shared out between its processes.

    Args:
        cells: all of them.
        training: `validation`, `seed`, `batch_size`, `steps`, `accumulate` and `workers` are used.
        pin_memory: put batches into page-locked memory, for a GPU.
    """

    def __init__(self, cells: Cells, training: Training, pin_memory: bool) -> None:
        super().__init__()
        self.settings, self.pin_memory = training, pin_memory
        train, kept_aside = holdout(cells, training.validation, training.seed)
        self.training = cells.subset(train)
        self.validation = cells.subset(kept_aside) if len(kept_aside) else None
        self.batches: TrainingBatches | None = None

    def train_dataloader(self) -> TrainingBatches:
        processes = cast(Trainer, self.trainer).world_size
        enough = len(self.training) >= self.settings.batch_size * processes
        loader = self._loader(
            self.training, seed=self.settings.seed, drop_last=enough, workers=self.settings.workers
        )
        self.batches = TrainingBatches(loader, self.settings.steps * self.settings.accumulate)
        return self.batches

    def val_dataloader(self) -> CellLoader | list[Any]:
        return [] if self.validation is None else self._loader(self.validation, shuffle=False)

    def transfer_batch_to_device(
        self, batch: CellBatch, device: torch.device, dataloader_idx: int
    ) -> CellBatch:
        return batch.to(device, non_blocking=True)

    def _loader(self, cells: Cells, **options: Any) -> CellLoader:
        trainer = cast(Trainer, self.trainer)  # which asks for the batches
        return CellLoader(
            cells,
            self.settings.batch_size,
            sparse=True,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            pin_memory=self.pin_memory,
            **options,
        )


def batches_of(trainer: Trainer) -> TrainingBatches:
    """The training batches of the ``CellData`` that a trainer trains with."""
    # Lightning sets the attribute in fit, and does not declare it.
    return cast(Any, trainer).datamodule.batches
