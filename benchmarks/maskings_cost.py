"""What the maskings of `scmam benchmark` cost: processor time of a step of its small model, beside
that of uniform masks which hide as much, step by step in one process.

    python -m benchmarks.maskings_cost                   # 300 and 2000 genes
    python -m benchmarks.maskings_cost --data FILE.h5ad  # of these cells instead of made-up ones

A step is forward, backward, clipping and Adam. Each arm runs as it is and without the injection of
its context, so that two costs are told apart: *masking* is the draw, the attention of the latents,
what rewards teach them, the gradients and the update of their parameters; *injection* is what the
model does with the context, its adapter and the tokens that it is added to.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from scmam.benchmark.arms import ARMS, SETTINGS, with_arms
from scmam.benchmark.folder import DataSet
from scmam.config import Config, load_config, with_settings
from scmam.data import Cells, open_cells
from scmam.objective import Pretraining, build_pretraining
from scmam.study.arms import arm_config
from scmam.training.module import ENTROPY_EVERY

from .share import counts

CELLS, ROUNDS, WARMUP = 32, 100, 3
COMPARED = ("mam", "mam-50", "mam-embedding-50", "mam-sharp-50", "mam-reward-50", "expression-50")
ALONE = " without injection"


class Cost(NamedTuple):
    """What an arm adds to a step of its reference, in shares of that step."""

    arm: str
    masking: float
    injection: float
    step_ms: float  # of the reference


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maskings_cost", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="an .h5ad file; default: made-up cells")
    parser.add_argument("--genes", nargs="+", type=int, default=[300, 2000])
    parser.add_argument("--arms", nargs="+", choices=COMPARED, default=COMPARED, metavar="ARM")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for genes in chosen.genes:
            path = chosen.data or Path(folder) / f"{genes}.h5ad"
            if chosen.data is None:
                counts(4 * CELLS, genes).write_h5ad(path)
            for cost in measured(path, genes, chosen.arms, chosen.rounds):
                print(
                    f"{genes:>5} genes, {ARMS[cost.arm].what:47} masking {cost.masking:+6.1%},"
                    f" injection {cost.injection:+6.1%} of a step of {cost.step_ms:.0f} ms",
                    flush=True,
                )
    return 0


def measured(path: Path, genes: int, arms: tuple[str, ...], rounds: int) -> list[Cost]:
    """The costs of arms: medians over paired steps, whose order changes from round to round."""
    config = DataSet(str(path), genes).config(with_arms(load_config(None, defaults=SETTINGS)))
    cells = open_cells(config.data)
    references = {arm: str(ARMS[arm].same_share) for arm in arms}
    configs = {arm: arm_config(config, arm, 0) for arm in {*arms, *references.values()}}
    for arm in arms:
        if configs[arm].masking.injection != "none":
            configs[arm + ALONE] = with_settings(configs[arm], masking={"injection": "none"})
    steps = {name: Step(one, cells) for name, one in configs.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    random = np.random.default_rng(0)
    for number in range(rounds + WARMUP):
        chosen = random.choice(len(cells), CELLS, replace=False)
        for name in random.permutation(list(steps)):
            times[name].append(steps[name](chosen, number))

    def ratio(name: str, other: str) -> float:
        pairs = zip(times[name][WARMUP:], times[other][WARMUP:], strict=True)
        return median(ours / theirs for ours, theirs in pairs)

    found = []
    for arm, reference in references.items():
        whole = ratio(arm, reference)
        alone = ratio(arm + ALONE, reference) if arm + ALONE in times else whole
        step = 1e3 * median(times[reference][WARMUP:])
        found.append(Cost(arm, alone - 1, whole - alone, step))
    return found


class Step:
    """Training steps of one arm."""

    def __init__(self, config: Config, cells: Cells) -> None:
        training = config.training
        self.cells, self.clip = cells, training.clip
        self.model: Pretraining = build_pretraining(config, cells.num_genes).train()
        groups = self.model.parameter_groups(
            training.lr, training.masking_lr, training.weight_decay, training.decay_of_latents
        )
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def __call__(self, chosen: np.ndarray, number: int) -> float:
        """Seconds of processor time of a step on some cells."""
        batch = self.cells.batch(chosen)
        begin = time.process_time()
        self.optimizer.zero_grad()
        measured = number % ENTROPY_EVERY == 0
        self.model(batch, seed=0, step=number, entropy=measured).total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return time.process_time() - begin


if __name__ == "__main__":
    raise SystemExit(main())
