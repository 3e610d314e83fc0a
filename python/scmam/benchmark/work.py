"""One task of the benchmark: some arms of one data set and seed, one after the other, in one
process, which reads the cells and starts torch once.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mam_kernels.weights.files import fill

from ..config import Config, with_settings
from ..data import Cells, open_cells
from ..evaluation.embedding import embed
from ..evaluation.methods import fine_tune
from ..evaluation.test_bed import bed_scores
from ..objective import Pretraining
from ..runs import Run
from ..settings import Evaluation
from ..storage import write_file
from ..study.arms import arm_config
from ..training import pretrain
from ..training.checkpoints import read_snapshot, snapshots
from .arms import ARMS
from .folder import DataSet, open_benchmark, scores_file, work_folder

Scores = dict[str, dict[str, float]]
"""By part of the cells, and metric."""

FINE_TUNING = "fine-tuning"


def do_arms(
    folder: Path, name: str, seed: int, arms: Sequence[str], say: Callable[[str], None]
) -> None:
    """Pretrain and score the arms whose scores are missing.

    Args:
        folder: of the benchmark.
        name: of the data set.
        seed: of the runs.
        arms: in this order; one that follows another after it.
        say: is told what is being done.

    Raises:
        ScmamError: an arm failed; those before it are kept.
    """
    opened = open_benchmark(folder)
    one = opened.sets[name]
    config = one.config(opened.config)
    say("reading cells")
    cells = open_cells(config.data, need_label=True)
    for arm in arms:
        output = scores_file(folder, name, arm, seed)
        if output.is_file():
            continue
        say(f"{arm}: pretraining")
        begin = time.perf_counter()
        run = _pretrained(config, folder, one, arm, seed, cells, opened.curve)
        say(f"{arm}: scoring")
        scores = _scores(run, cells, config.evaluation)
        curve = {} if opened.curve is None else _curve(run, cells, config.evaluation, scores)
        record = {
            "data": one.data,
            "genes": cells.num_genes,
            "arm": arm,
            "seed": seed,
            "scores": scores,
            "curve": curve,
            "masks": _masks(run),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, json.dumps(record, indent=1) + "\n")
        if not any(ARMS[other].follows == arm for other in ARMS):
            shutil.rmtree(run.folder)


def _pretrained(
    config: Config, folder: Path, one: DataSet, arm: str, seed: int, cells: Cells, curve: int | None
) -> Run:
    settings, leader = arm_config(config, arm, seed), ARMS[arm].follows
    if leader is not None:
        run = work_folder(folder, one.name, leader, seed)
        settings = with_settings(settings, masking={"matched_to": str(run)})
    place = work_folder(folder, one.name, arm, seed)
    return pretrain(settings, place, cells=cells, snapshot_every=curve, progress=False)


def _scores(run: Run, cells: Cells, settings: Evaluation) -> Scores:
    """Of the final weights: those of the test bed and, where the settings ask for it, of
    fine-tuning.
    """
    pretraining = run.load()
    scores = _bed(pretraining, cells, settings)
    if FINE_TUNING in settings.methods:
        tuned = fine_tune(pretraining, cells, settings, run.config.training.seed)
        scores[settings.part][FINE_TUNING] = tuned.mean("macro_f1")
    return scores


def _curve(run: Run, cells: Cells, settings: Evaluation, last: Scores) -> dict[int, Scores]:
    """Scores of the test bed by steps; `last`: those of the final weights."""
    pretraining, curve = run.load(), {}
    for step, path in snapshots(run.folder).items():
        if step < run.record["steps"]:
            fill(pretraining, read_snapshot(path), str(path))
            curve[step] = _bed(pretraining, cells, settings)
    return {**curve, run.record["steps"]: last}


def _bed(pretraining: Pretraining, cells: Cells, settings: Evaluation) -> Scores:
    return bed_scores(embed(pretraining, cells, max_tokens=settings.max_tokens), cells, settings)


def _masks(run: Run) -> dict[str, Any]:
    """What the masks hid, mean over the steps, and how far they were from uniform in the end; of a
    run without steps nothing.
    """
    steps = run.metrics().query("phase == 'train'")
    if steps.empty:
        return {}
    means = steps[["hidden", "hidden_nonzero", "hidden_zero"]].mean()
    entropy = steps["entropy"].dropna()  # of some steps
    facts = {**means.to_dict(), "entropy": entropy.tail(max(1, len(entropy) // 10)).mean()}
    return {name: round(float(value), 5) for name, value in facts.items()}
