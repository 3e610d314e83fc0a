"""What the maskings of `scmam benchmark` cost: processor time of a step of its small model, beside
that of uniform masks which hide as much, step by step in one process.

    python -m benchmarks.maskings_cost                   # 300 and 2000 genes
    python -m benchmarks.maskings_cost --data FILE.h5ad  # of these cells instead of made-up ones

The difference is all that a masking adds: its draw, its attention, the gradients of both, the
injection of a context and what rewards teach it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scmam.benchmark import ARMS, DataSet
from scmam.benchmark.arms import with_arms
from scmam.cli.benchmarks import SETTINGS
from scmam.cli.options import configuration
from scmam.data import Cells, open_cells
from scmam.objective import Pretraining, build_pretraining
from scmam.study.arms import arm_config

from .share import counts

CELLS, ROUNDS, WARMUP = 32, 20, 2
COMPARED = ("mam", "mam-50", "mam-embedding-50", "mam-sharp-50", "mam-reward-50", "expression-50")


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maskings_cost", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="an .h5ad file; default: made-up cells")
    parser.add_argument("--genes", nargs="+", type=int, default=[300, 2000])
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for genes in chosen.genes:
            path = chosen.data or Path(folder) / f"{genes}.h5ad"
            if chosen.data is None:
                counts(4 * CELLS, genes).write_h5ad(path)
            for arm, ratio, step in measured(path, genes):
                print(
                    f"{genes:>5} genes, {ARMS[arm].what:50} {ratio - 1:+.1%} of a step of"
                    f" {step:.0f} ms",
                    flush=True,
                )
    return 0


def measured(path: Path, genes: int) -> list[tuple[str, float, float]]:
    """Each of `COMPARED`, its step over that of its reference, and milliseconds of the latter."""
    config = with_arms(configuration(None, SETTINGS, {}))
    config = DataSet(str(path), genes).config(config)
    cells = open_cells(config.data)
    references = {arm: str(ARMS[arm].same_share) for arm in COMPARED}
    models = {
        arm: build_pretraining(arm_config(config, arm, 0), cells.num_genes).train()
        for arm in {*COMPARED, *references.values()}
    }
    times: dict[str, list[float]] = {arm: [] for arm in models}
    random = np.random.default_rng(0)
    for step in range(ROUNDS + WARMUP):
        chosen = random.choice(len(cells), CELLS, replace=False)
        for arm, model in models.items():
            times[arm].append(_step(model, cells, chosen, step))
    found = []
    for arm, reference in references.items():
        pairs = list(zip(times[arm], times[reference], strict=True))[WARMUP:]
        ratio = median(ours / theirs for ours, theirs in pairs)
        found.append((arm, ratio, 1e3 * median(theirs for _, theirs in pairs)))
    return found


def _step(model: Pretraining, cells: Cells, chosen: np.ndarray, step: int) -> float:
    """Seconds of processor time, forward and backward."""
    batch = cells.batch(chosen)
    model.zero_grad()
    begin = time.process_time()
    model(batch, seed=0, step=step).total.backward()
    return time.process_time() - begin


if __name__ == "__main__":
    raise SystemExit(main())
