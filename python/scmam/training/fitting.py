"""Lightning's Trainer for a run: its settings, and the results that it leaves."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from mam_kernels.weights import WeightsError
from mam_kernels.weights.files import fill

from ..config import Config
from ..data import Cells
from ..errors import RunError, ScmamError, one_line
from ..objective import Pretraining
from ..runs import CHECKPOINTS, METRICS, Run, load_file, open_run, update_record
from ..sequences import CellBatch
from .batches import CellData, batches_of
from .checkpoints import (
    BEST,
    LastCheckpoint,
    Restored,
    WholeFiles,
    best_checkpoint,
    checkpoint_to_go_on_from,
    read_checkpoint,
    snapshots_every,
    without,
)
from .losses import LossLog
from .module import PretrainingModule
from .pretraining import on_gpu
from .processes import num_processes
from .progress import StepBar
from .quiet import quiet
from .signals import Interrupted, StopSignals
from .timing import StepTimes

WATCHED = "validation/loss"


def fit(
    config: Config,
    folder: Path,
    cells: Cells,
    pretraining: Pretraining,
    progress: bool,
    snapshot_every: int | None = None,
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Train ``pretraining`` in place, from the folder's last checkpoint where there is one.

    Returns:
        Entries of run.json, and a function that waits until every process has called it.

    Raises:
        KeyboardInterrupt, SystemExit: a signal stopped it, and the checkpoint of its last step is
            written.
    """
    training = config.training
    times, log, restored = StepTimes(), LossLog(folder / METRICS, training), Restored()
    data = CellData(cells, training, pin_memory=on_gpu(config))
    gpus = range(torch.cuda.device_count()) if on_gpu(config) else ()
    with quiet(), torch.random.fork_rng(gpus, enabled=config.model.dropout > 0):
        unused = num_processes(training) > 1 and has_unused_parameters(
            pretraining, data.training.batch(np.arange(1))
        )
        watchers: list[Callback] = [restored, times, log]
        if progress:
            watchers.append(StepBar(log))
        if data.validation is not None:
            watchers.append(best_checkpoint(folder, WATCHED))
            if (patience := training.patience) is not None:
                stop = EarlyStopping(WATCHED, patience=patience, check_on_train_epoch_end=False)
                watchers.append(stop)
        if snapshot_every is not None:
            watchers.append(snapshots_every(folder, snapshot_every))
        trainer = _trainer(config, folder, watchers, unused)
        module = PretrainingModule(pretraining, training, dropout=config.model.dropout > 0)
        checkpoint = checkpoint_to_go_on_from(folder)
        with _steps_recorded(folder, trainer, times), _taken_in(checkpoint, restored):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if training.keeps_best and trainer.global_step:
        _take_best(folder, module)
    results = _results(open_run(folder), trainer, times, data) if trainer.is_global_zero else {}
    return results, trainer.strategy.barrier


def _trainer(config: Config, folder: Path, watchers: list[Callback], unused: bool) -> Trainer:
    training = config.training
    slurm = SLURMEnvironment() if SLURMEnvironment.detect() else None
    requeues = slurm is not None and slurm.auto_requeue
    signals = StopSignals(slurm.requeue_signal if slurm is not None and requeues else None)
    alone = num_processes(training) == 1
    return Trainer(
        accelerator="gpu" if on_gpu(config) else "cpu",
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy="auto" if alone else DDPStrategy(find_unused_parameters=unused),
        precision=training.precision,
        max_steps=training.steps,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.clip or None,
        val_check_interval=training.validate_every * training.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if training.validation else 0,
        num_sanity_val_steps=0,
        callbacks=[*watchers, LastCheckpoint(folder, training, signals)],
        plugins=[WholeFiles(), *([] if slurm is None else [slurm])],
        logger=_tensorboard(folder) if training.tensorboard else False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder / CHECKPOINTS,
    )


def has_unused_parameters(pretraining: Pretraining, batch: CellBatch) -> bool:
    """Whether there are parameters without a gradient, for which DDP must not wait.

    That depends on the strategy, the injection and the loss, not on the cells, so one batch tells.
    Terms of weight zero would give them a gradient of zero instead, but Adam's weight decay would
    then shrink them, unlike in a single process.
    """
    was_training = pretraining.training
    parameters = [p for p in pretraining.parameters() if p.requires_grad]
    total = pretraining.eval()(batch, seed=0, step=0).total
    pretraining.train(was_training)
    return any(
        gradient is None for gradient in torch.autograd.grad(total, parameters, allow_unused=True)
    )


def _tensorboard(folder: Path) -> TensorBoardLogger:
    checkpoint = checkpoint_to_go_on_from(folder)
    done = 0 if checkpoint is None else read_checkpoint(checkpoint)["global_step"]
    # Steps that are repeated are shown once.
    return TensorBoardLogger(folder, name="tensorboard", version="", purge_step=done + 1)


@contextlib.contextmanager
def _steps_recorded(folder: Path, trainer: Trainer, times: StepTimes) -> Iterator[None]:
    """Record in run.json at which step a run was interrupted, and turn the cause into the exception
    that Python expects.
    """
    try:
        yield
    except BaseException as error:
        if trainer.is_global_zero:
            with contextlib.suppress(OSError):  # it may be the full disk that ended the run
                update_record(folder, steps=trainer.global_step, seconds=times.seconds)
        if isinstance(error, Interrupted) and error.signal_number != signal.SIGINT:
            raise SystemExit(128 + error.signal_number) from error
        # Lightning ends the whole program, by SystemExit(1), where Ctrl-C comes outside of a step.
        if isinstance(error, Interrupted) or (
            isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
        ):
            raise KeyboardInterrupt from error
        raise


@contextlib.contextmanager
def _taken_in(checkpoint: Path | None, restored: Restored) -> Iterator[None]:
    """Lightning and torch raise anything on a checkpoint that does not fit; say which one it is.

    Raises:
        RunError: training could not start from the checkpoint.
    """
    try:
        yield
    except (ScmamError, OSError):
        raise
    except Exception as error:
        if checkpoint is None or restored.done:
            raise
        raise RunError(
            f"{checkpoint}: does not fit this run or this version"
            f" ({type(error).__name__}: {one_line(error)}); {without(checkpoint)}"
        ) from error


def _take_best(folder: Path, module: PretrainingModule) -> None:
    """Load the weights of the best validation."""
    path = folder / CHECKPOINTS / BEST
    remedy = f"delete {folder} and pretrain again"
    best = load_file(path, remedy, required=("state_dict",))
    try:
        fill(module, best["state_dict"], str(path))
    except WeightsError as error:
        raise RunError(f"{error}; {remedy}") from error


def _results(run: Run, trainer: Trainer, times: StepTimes, data: CellData) -> dict[str, Any]:
    """Entries of run.json that are known at the end."""
    training, timing = run.config.training, times.summary()
    per_step = training.batch_size * training.accumulate * trainer.world_size
    metrics = run.metrics()
    validations = metrics[metrics["phase"] == "validation"]
    best, best_step = None, None
    if not validations.empty:
        row = validations.loc[validations["loss"].idxmin()]
        best, best_step = float(row["loss"]), int(row["step"])
    return {
        "steps": trainer.global_step,
        "epochs": trainer.global_step * training.accumulate / len(batches_of(trainer).loader),
        "training_cells": len(data.training),
        "validation_cells": 0 if data.validation is None else len(data.validation),
        "cells_per_second": per_step / timing["step_ms"] * 1e3 if timing["step_ms"] else None,
        **timing,
        "best_validation": best,
        "best_validation_step": best_step,
        "weights_of_step": best_step if best_step and training.keeps_best else trainer.global_step,
    }
