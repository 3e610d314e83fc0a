"""One task of the benchmark: some arms of one data set and seed, one after the other, in one
process, which reads the cells and starts torch once.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, with_settings
from ..storage import write_file
from ..study.arms import arm_config
from .arms import ARMS
from .folder import DataSet, open_benchmark, scores_file, work_folder

if TYPE_CHECKING:
    from ..data import Cells
    from ..runs import Run


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
    from ..data import open_cells

    config, sets = open_benchmark(folder)
    one = sets[name]
    config = one.config(config)
    say("reading cells")
    cells = open_cells(config.data, need_label=True)
    for arm in arms:
        output = scores_file(folder, name, arm, seed)
        if output.is_file():
            continue
        say(f"{arm}: pretraining")
        begin = time.perf_counter()
        run = _pretrained(config, folder, one, arm, seed, cells)
        say(f"{arm}: scoring")
        scores = {
            "data": one.data,
            "genes": cells.num_genes,
            "arm": arm,
            "seed": seed,
            "scores": _scores(run, cells, config),
            "masks": _masks(run),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, json.dumps(scores, indent=1) + "\n")
        if not any(ARMS[other].follows == arm for other in ARMS):
            shutil.rmtree(run.folder)


def _pretrained(
    config: Config, folder: Path, one: DataSet, arm: str, seed: int, cells: "Cells"
) -> "Run":
    from ..training import pretrain

    settings, leader = arm_config(config, arm, seed), ARMS[arm].follows
    if leader is not None:
        run = work_folder(folder, one.name, leader, seed)
        settings = with_settings(settings, masking={"matched_to": str(run)})
    place = work_folder(folder, one.name, arm, seed)
    return pretrain(settings, place, cells=cells, progress=False)


def _scores(run: "Run", cells: "Cells", config: Config) -> dict[str, dict[str, float]]:
    from ..evaluation import embed, evaluate
    from ..evaluation.test_bed import bed_scores

    settings = config.evaluation
    scores = bed_scores(embed(run.load(), cells, max_tokens=settings.max_tokens), cells, settings)
    if "fine-tuning" in settings.methods:
        tuned = evaluate(run, cells, settings, methods=("fine-tuning",), progress=False)
        scores[settings.part]["fine-tuning"] = tuned["fine-tuning"].mean("macro_f1")
    return scores


def _masks(run: "Run") -> dict[str, Any]:
    """What the masks hid, mean over the steps, and how far they were from uniform in the end."""
    table = run.metrics()
    steps = table[table["phase"] == "train"]
    means = steps[["hidden", "hidden_nonzero", "hidden_zero"]].mean()
    last = steps.tail(max(1, len(steps) // 10))
    facts = {**means.to_dict(), "entropy": last["entropy"].mean()}
    return {name: round(float(value), 5) for name, value in facts.items()}
