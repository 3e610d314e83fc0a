"""The whole study: plan, run what is missing, keep the record and the tables up to date."""

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Config, fingerprint, flat, with_absolute_paths
from ..data import Cells
from ..doctor import versions
from ..errors import RunError
from ..storage import held, new_file
from .folder import RECORD, Failure, Study, is_study, joined, open_study, save
from .progress import carry_out
from .queue import Outcome, worker_command
from .statistics import summarize
from .tasks import Task, planned

BUSY = (
    "another process (started by {owner}) computes this study; wait for it, or end it and start"
    " again"
)


def compare(
    config: Config,
    folder: str | Path,
    *,
    cells: Cells | None = None,
    interpret: bool = True,
    progress: bool = True,
) -> Study:
    """Pretrain and evaluate every arm with every seed, and compare them.

    Each run is a process of its own, ``config.study.jobs`` at a time, on an equal share of the
    cores; an arm that is matched to another follows it. What is done is kept: called again on the
    same folder, only what is missing runs, and arms, seeds and baselines may be added. A run that
    fails does not end the others; it is in `Study.failures`.

    Args:
        config: what to compare and how.
        folder: of the study; new, empty, or a study of the same settings.
        cells: instead of what ``config.data`` names; they have to be the same at each call on a
            folder.
        interpret: also interpret the first seed of every arm that hides anything.
        progress: show it.

    Raises:
        ConfigError: arms, seeds and reference do not fit together.
        CellsError: the cells cannot be used.
        RunError: the folder is something else, a study of other settings or cells, is computed by
            another process, or cannot be written to.
        KeyboardInterrupt: passed on, after the runs have written their checkpoints.
    """
    folder = Path(folder).absolute()
    config = with_absolute_paths(config)
    planned(config, folder, interpret=interpret)
    earlier = _earlier(folder)
    if earlier is not None:
        config = joined(earlier, config)
    tasks = planned(config, folder, interpret=interpret)
    # Errors in the settings are raised above and here, before anything is written or trained.
    if earlier is None or not all(task.done() for task in tasks):
        summary = _cells_summary(config, cells)
    else:
        summary = earlier.record["cells"]
    if earlier is not None:
        _check_same_cells(earlier, summary)
    with held(folder, BUSY) as lock:
        study = Study(folder, config, _record(config, summary, earlier))
        with _handed_over(cells, folder) as pickled, _recorded(study):
            outcomes = _run(study, tasks, lock, pickled, progress)
            study.record["failures"] = [
                Failure(outcome.task.name, outcome.error, str(outcome.task.log))._asdict()
                for outcome in outcomes
                if outcome.error is not None
            ]
    return open_study(folder)


def _run(
    study: Study, tasks: list[Task], lock: int, cells: Path | None, progress: bool
) -> list[Outcome]:
    to_do = [task for task in tasks if not task.done()]
    if progress:
        print(_opening(study, len(tasks), len(to_do)), flush=True)
    command = worker_command(study.folder, cells)
    after = partial(summarize, study.folder)
    return carry_out(to_do, command, study.config.study, lock, after, progress=progress)


def _opening(study: Study, total: int, to_do: int) -> str:
    cells, settings = study.record["cells"], study.config.study
    done = f" ({total - to_do} of {total} tasks are done already)" if to_do < total else ""
    lists = {"arms": settings.arms, "seeds": settings.seeds}
    lists["baselines"] = settings.baselines or ("none",)
    plan = "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in lists.items())
    size = f"{cells['num_cells']} cells, {cells['num_genes']} genes"
    return f"{size}, from {cells['source']}\n{plan}{done}"


@contextmanager
def _recorded(study: Study) -> Iterator[None]:
    """Record in ``study.json`` that the study runs, and then how it ended; update the tables at the
    end.
    """
    begin, before = time.monotonic(), study.record["seconds"]
    save(study)
    try:
        yield
        study.record["status"] = "failed" if study.record["failures"] else "done"
    except BaseException:
        study.record["status"] = "interrupted"
        raise
    finally:
        study.record["seconds"] = round(before + time.monotonic() - begin, 1)
        save(study)
        summarize(study.folder)


@contextmanager
def _handed_over(cells: Cells | None, folder: Path) -> Iterator[Path | None]:
    """A file from which the workers read the cells that the caller gave, while they run."""
    path = folder / ".cells.pickle"
    try:
        if cells is not None:
            with new_file(path) as beside, open(beside, "wb") as file:
                pickle.dump(cells, file, protocol=pickle.HIGHEST_PROTOCOL)
        yield None if cells is None else path
    finally:
        path.unlink(missing_ok=True)  # also one that a killed study left


def _earlier(folder: Path) -> Study | None:
    """The study that is in the folder; None where it is new.

    Raises:
        RunError: there is something else.
    """
    if is_study(folder):
        return open_study(folder)
    if folder.exists() and (
        not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())
    ):
        raise RunError(
            f"{folder}: exists and is no study ({RECORD} is missing); give another folder"
        )
    return None


def _cells_summary(config: Config, cells: Cells | None) -> dict[str, Any]:
    """Description of the cells, for the record.

    Raises:
        CellsError: the file cannot be used, or its classes are too small for the folds.
    """
    from ..data import open_cells
    from ..evaluation.cross_validation import scored, splits

    if cells is None:
        cells = open_cells(config.data, need_label=True)
    splits(scored(cells, config.evaluation), config.evaluation)
    return {
        "source": cells.source,
        "unit": cells.unit,
        "notes": list(cells.notes),
        "num_cells": cells.num_cells,
        "num_genes": cells.num_genes,
        "density": cells.density,
        "label": cells.label,
        "donor": cells.donor,
        "classes": cells.class_sizes,
        "digest": cells.fingerprint(),
    }


def _check_same_cells(earlier: Study, summary: dict[str, Any]) -> None:
    there = earlier.record["cells"]
    if there["digest"] != summary["digest"]:
        was = f"{there['num_cells']} cells, {there['num_genes']} genes of {there['source']}"
        now = f"{summary['num_cells']}, {summary['num_genes']} of {summary['source']}"
        raise RunError(
            f"{earlier.folder}: was begun with other cells ({was}; now {now});"
            " give another folder, or those cells"
        )


def _record(config: Config, cells: dict[str, Any], earlier: Study | None) -> dict[str, Any]:
    return {
        "status": "running",
        "fingerprint": fingerprint(flat(config)),
        "cells": cells,
        "arms": list(config.study.arms),
        "seeds": list(config.study.seeds),
        "baselines": list(config.study.baselines),
        "reference": config.study.reference,
        "versions": versions(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0 if earlier is None else earlier.record["seconds"],
        "failures": [],
    }
