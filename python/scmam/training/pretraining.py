"""`pretrain`: from a configuration to a finished run folder, from the beginning or from the last
checkpoint.
"""

import contextlib
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, fingerprint, with_absolute_paths, with_settings
from ..data import Cells, open_cells
from ..doctor import versions
from ..errors import ConfigError, RunError
from ..masking import BY_GENE
from ..objective import Pretraining, build_pretraining
from ..runs import (
    CHECKPOINTS,
    RECORD,
    Run,
    by_batch,
    create_folder,
    differences,
    identity,
    open_run,
    read_schedule,
    update_record,
    write_weights,
)
from ..storage import alone, remove_unfinished, writing
from .processes import check_processes, global_rank, num_processes
from .start import start_from


def pretrain(
    config: Config,
    folder: str | Path,
    *,
    cells: Cells | None = None,
    schedule: Tensor | None = None,
    knowledge: Tensor | None = None,
    snapshot_every: int | None = None,
    progress: bool = True,
) -> Run:
    """Pretrain a model into a run folder, or go on with one that was interrupted.

    A run is a function of its settings and cells: interrupted anywhere and resumed, it gives the
    same losses and weights as in one go. It goes on from ``checkpoints/last.ckpt``, which is
    written every `training.checkpoint_every` steps, and on Ctrl-C, SIGTERM and SLURM's warning at
    the end of the step under way. A run that is done is opened and returned; strategy "none" saves
    the initial weights.

    torchrun: ``torchrun --nproc-per-node 4 -m scmam pretrain --set training.devices=4 --out RUN``.
    Without it, ``training.devices: 4`` starts the command three more times (so not from a
    notebook), a device each.

    SLURM: ``srun`` it with ``--ntasks-per-node`` and ``--nodes`` as `training.devices` and
    `training.num_nodes`. With ``#SBATCH --signal=SIGUSR1@90 --requeue`` it saves and requeues
    itself 90 s before its time is over.

    Args:
        config: all settings; `data`, `model`, `masking` and `training` are used.
        folder: of the run; new, empty, or of a run with the same settings.
        cells: the result of ``open_cells(config.data)``; None: it is called.
        schedule: (steps, 2) hidden shares of zeros and of non-zeros for strategy "matched"; None:
            those of the run folder `masking.matched_to`.
        knowledge: (G,) what the strategy knows of the genes, see `scmam.gene_knowledge`; None: it
            is computed from the cells, or from the run `masking.matched_to`.
        snapshot_every: steps after which the weights are kept, each time; None: never.
        progress: show a progress bar.

    Returns:
        The run, on every process.

    Raises:
        ConfigError: settings that contradict one another or this machine.
        RunError: the folder holds something else, a run of other settings, or a damaged checkpoint;
            another process trains it; it cannot be written to; the loss is no longer finite.
        CellsError: from the data.
    """
    config, folder = _with_absolute_paths(config), Path(folder)
    _check(config)
    run = _existing(folder, config)
    if run is not None and run.done:
        return run
    writes = global_rank(config.training) == 0
    remedy = "make room, or name another folder; the same command goes on from what is there"
    with writing(folder, remedy), _alone(folder) if writes else contextlib.nullcontext():
        run = _existing(folder, config)  # again: another process may have finished it by now
        if run is None or not run.done:
            if writes:
                remove_unfinished(folder.parent, folder, folder / CHECKPOINTS)
            needs_label = config.training.cells == "training"
            cells = open_cells(config.data, need_label=needs_label) if cells is None else cells
            pretraining = _begun(config, folder, run, cells, schedule, knowledge, writes)
            with _interruption_recorded(folder) if writes else contextlib.nullcontext():
                wait_for_others = _train(
                    config, folder, cells, pretraining, writes, progress, snapshot_every
                )
            wait_for_others()
    return open_run(folder)


def _begun(
    config: Config,
    folder: Path,
    run: Run | None,
    cells: Cells,
    schedule: Tensor | None,
    knowledge: Tensor | None,
    writes: bool,
) -> Pretraining:
    """The objective with its first weights, and a folder that says that it is trained."""
    schedule = _schedule(config, schedule, run)
    found = (tuple(cells.genes), cells.num_cells)
    if run is not None and (run.genes, run.record.get("cells")) != found:
        begun = f"{run.record.get('cells')} cells of {len(run.genes)} genes"
        raise RunError(
            f"{folder}: its run was started with {begun}, and these are {cells.num_cells} of"
            f" {cells.num_genes}, or other genes; name another folder, or delete this one to train"
            " it anew"
        )
    if knowledge is None and config.masking.strategy in BY_GENE:
        from ..gene_knowledge import knowledge_of  # scikit-learn takes a second to import

        knowledge = knowledge_of(config, cells)
    pretraining = build_pretraining(
        config, cells.num_genes, schedule=by_batch(schedule, config), knowledge=knowledge
    )
    source: dict[str, Any] = {}
    start = config.training.start_from
    if start is not None and not any((folder / CHECKPOINTS).glob("*.ckpt")):
        source = start_from(start, pretraining, tuple(cells.genes), config)
    if writes and run is None:
        record = {**_record(config, cells, pretraining), **source}
        create_folder(folder, config, cells.genes, record, schedule)
    elif writes:
        update_record(folder, status="running", reason=None, **source)
    return pretraining


def _train(
    config: Config,
    folder: Path,
    cells: Cells,
    pretraining: Pretraining,
    writes: bool,
    progress: bool,
    snapshot_every: int | None,
) -> Callable[[], None]:
    """Train from the last checkpoint or, where there is none, from the beginning, and write the
    results into the folder. The result waits until every process has called it.
    """
    results, wait_for_others = {"steps": 0, "seconds": 0.0}, lambda: None
    if config.training.cells == "training":
        from ..evaluation.cross_validation import without_test

        cells = cells.subset(without_test(cells, config.evaluation))
    if config.masking.strategy != "none" and config.training.steps > 0:
        from .fitting import fit  # Lightning takes seconds to import

        results, wait_for_others = fit(config, folder, cells, pretraining, progress, snapshot_every)
    if writes:
        write_weights(folder, config, cells.genes, pretraining.state_dict())
        update_record(folder, status="done", **results)
    return wait_for_others


@contextlib.contextmanager
def _interruption_recorded(folder: Path) -> Iterator[None]:
    """Write the error that ends training early into run.json."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # it may be the full disk that ended the run
            update_record(folder, status="interrupted", reason=_reason(error))
        raise


def _reason(error: BaseException) -> str:
    """The cause that ended a run, in one line."""
    cause = (isinstance(error, SystemExit) and error.__cause__) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(":")


def _existing(folder: Path, config: Config) -> Run | None:
    """The run that is in the folder already; None where there is none yet."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a file; name a folder for the run")
    contents = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not contents:
        return None
    if RECORD not in contents:
        raise RunError(
            f"{folder}: not a run, and not empty; name a new folder, or that of a run with these"
            " settings"
        )
    run = open_run(folder)
    changed = differences(run.config, config)
    if changed:
        raise RunError(
            f"{folder}: its run has other settings ({'; '.join(changed)}); name another folder, or"
            " delete this one to train it anew"
        )
    return run


def _check(config: Config) -> None:
    """Settings that contradict one another or this machine, before anything is read."""
    training = config.training
    check_processes(training)
    if training.keeps_best and training.validation == 0:
        name, other = "patience", "no patience"
        if training.patience is None:
            name, other = "keep: best", "keep: last"
        raise ConfigError(
            f"training.{name}: watches the loss on cells kept aside, and training.validation is"
            f" 0; set that above 0, or {other}"
        )
    if training.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard: needs the package tensorboard; install it, or set false"
        )
    if training.device == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < training.devices:
            raise ConfigError(
                f"training.device: cuda with training.devices: {training.devices} needs as many"
                f" GPUs, and PyTorch sees {found}; use device: cpu or fewer"
            )
    if training.precision == "16-mixed" and not on_gpu(config):
        raise ConfigError(
            "training.precision: 16-mixed needs a GPU; use bf16-mixed or 32-true on the CPU"
        )


def on_gpu(config: Config) -> bool:
    """Whether the run takes GPUs."""
    device = config.training.device
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _schedule(config: Config, schedule: Tensor | None, run: Run | None) -> Tensor | None:
    """The hidden shares of strategy "matched", as given, as begun with, or from the run that is
    named.
    """
    if config.masking.strategy != "matched":
        if schedule is not None:
            raise ConfigError(
                f"schedule: is of strategy matched; got one with strategy {config.masking.strategy}"
            )
        return None
    begun = None if run is None else read_schedule(run.folder)
    if schedule is None:
        schedule = begun
    if schedule is None:
        if config.masking.matched_to is None:
            raise ConfigError("masking.matched_to: required by strategy matched; got None")
        schedule = open_run(config.masking.matched_to).schedule()
    schedule = schedule.detach().to("cpu", torch.float32)
    if run is not None and begun is not None and not torch.equal(begun, schedule):
        raise RunError(
            f"{run.folder}: was begun with other hidden shares than those of"
            f" {config.masking.matched_to} now; delete it to train it anew"
        )
    return schedule


def _alone(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Hold a folder against other processes."""
    busy = f"{folder}: another process is training this run; wait for it, or name another folder"
    return alone(folder.parent / f".{folder.name}.lock", busy)


def _with_absolute_paths(config: Config) -> Config:
    """Paths that mean the same from another working directory: a run is opened from anywhere."""
    config = with_absolute_paths(config)
    matched_to = config.masking.matched_to
    if matched_to is not None and (Path(matched_to) / RECORD).is_file():
        config = with_settings(config, masking={"matched_to": str(Path(matched_to).absolute())})
    return config


def _record(config: Config, cells: Cells, pretraining: Pretraining) -> dict[str, Any]:
    """run.json at the start."""
    processor = f"CPU ({platform.processor() or platform.machine()})"
    latents = [p for name, p in pretraining.named_parameters() if not name.startswith("model.")]
    return {
        "status": "running",
        "reason": None,
        "fingerprint": fingerprint(identity(config)),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if on_gpu(config) else processor,
        "threads": torch.get_num_threads(),
        "processes": num_processes(config.training),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": cells.num_cells,
        "genes": "genes.txt",
        "num_genes": cells.num_genes,
        "source": cells.source,
        "unit": cells.unit,
        "parameters": sum(p.numel() for p in pretraining.parameters()),
        "masking_parameters": sum(p.numel() for p in latents),
        "steps": 0,
    }
