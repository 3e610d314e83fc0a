"""The process that does one task of a study: ``python -m scmam.study.worker STUDY run ARM SEED`` or
``... baseline NAME`` or, with the folder of a benchmark, ``... benchmark SET SEED ARM,ARM``. The
queue starts it, and reads from a pipe what it is at and what went wrong.
"""

import argparse
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, load_config
from ..errors import ScmamError
from .arms import arm_config
from .folder import CONFIG, baseline_file, run_folder
from .queue import REPORTS

if TYPE_CHECKING:
    import torch

    from ..data import Cells

ABANDONED = 10.0  # seconds for a checkpoint when the study was killed


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the task; returns the exit status. A user's error is the last line of the output."""
    options = _parser().parse_args(arguments)
    # A study in the background of a script ignores Ctrl-C, and so would its processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    import torch

    torch.set_num_threads(options.threads)
    try:
        if options.task == "benchmark":
            from ..benchmark.work import do_arms

            do_arms(options.study, options.set, options.seed, options.arms.split(","), _say)
        elif options.task == "baseline":
            _baseline(load_config(options.study / CONFIG), options)
        else:
            _run(load_config(options.study / CONFIG), options)
    except ScmamError as error:
        print(f"error: {error}", flush=True)
        _report(error=str(error))
        return 2
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scmam.study.worker", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument(
        "--cells", type=Path, help="a pickle of the cells, instead of what the configuration names"
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    run = tasks.add_parser("run")
    run.add_argument("arm")
    run.add_argument("seed", type=int)
    run.add_argument("--interpret", action="store_true")
    baseline = tasks.add_parser("baseline")
    baseline.add_argument("name")
    benchmark = tasks.add_parser("benchmark")
    benchmark.add_argument("set")
    benchmark.add_argument("seed", type=int)
    benchmark.add_argument("arms")
    for task in (run, baseline, benchmark):
        task.add_argument("--threads", type=int, required=True)
    return parser


def _run(config: Config, options: argparse.Namespace) -> None:
    from ..evaluation.folder import evaluate
    from ..training import pretrain

    settings = arm_config(config, options.arm, options.seed)
    cells, folder = _cells(settings, options), run_folder(options.study, options.arm, options.seed)
    _say("pretraining")
    schedule = _schedule(settings, options)
    run = pretrain(settings, folder, cells=cells, schedule=schedule, progress=False)
    _say("evaluating")
    evaluate(run, cells, settings.evaluation)  # a line for each fold, for the log
    if options.interpret:
        from ..interpretation.folder import interpret

        _say("interpreting")
        interpret(run, cells, seed=options.seed, progress=False)


def _baseline(config: Config, options: argparse.Namespace) -> None:
    from ..evaluation.baselines import baseline

    cells = _cells(config, options)
    _say("evaluating")
    found = baseline(options.name, cells, config.evaluation)
    found.save(baseline_file(options.study, options.name))


def _cells(config: Config, options: argparse.Namespace) -> "Cells":
    if options.cells is not None:
        with open(options.cells, "rb") as file:
            return pickle.load(file)
    from ..data import open_cells

    _say("reading cells")
    return open_cells(config.data, need_label=True)


def _schedule(config: Config, options: argparse.Namespace) -> "torch.Tensor | None":
    """The hidden fractions of the run that this one is matched to: an arm of the study, or a
    folder.
    """
    target = config.masking.matched_to
    if target is None:
        return None
    from ..runs import open_run

    arm = run_folder(options.study, target, options.seed)
    return open_run(target if Path(target).is_dir() else arm).schedule()


def _say(stage: str) -> None:
    print(f"stage: {stage}", flush=True)
    _report(stage=stage)


def _report(**said: str) -> None:
    """Tell the queue; of the processes that Lightning starts for more devices, the first does."""
    if REPORTS in os.environ and "LOCAL_RANK" not in os.environ:
        os.write(int(os.environ[REPORTS]), (json.dumps(said) + "\n").encode())


def _end_with_the_study() -> None:
    """Wait for the end of standard input, which comes when the study ends. Then stop as on Ctrl-C,
    and kill this process if that takes too long.
    """
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ABANDONED)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
