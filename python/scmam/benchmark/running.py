"""`benchmark`: run what is missing, and bring tables and pictures up to date."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ..config import Config, fingerprint
from ..errors import ConfigError, RunError
from ..storage import held
from ..study.folder import log_file
from ..study.progress import carry_out
from ..study.queue import Outcome
from ..study.tasks import Task
from .arms import ARMS, chosen_arms, with_arms
from .folder import RECORD, Benchmark, DataSet, open_benchmark, save_benchmark, scores_file
from .summary import summarize

ARMS_A_TASK = 6
"""Arms that one process trains: it starts in seconds, and a cluster has enough to share out."""
BUSY = "another process (started by {owner}) computes this benchmark; wait for it"


def benchmark(
    config: Config,
    sets: Sequence[DataSet],
    folder: str | Path,
    *,
    arms: Sequence[str] = ("all",),
    curve: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Pretrain and score every arm on every data set with every seed, and summarise.

    What is done is kept: called again on the same folder, only what is missing runs; arms, seeds
    and data sets may be added. Interrupted, at most the run under way of each process is lost, and
    that goes on from its last checkpoint. Seeds are the outer loop, so that a benchmark that is
    stopped has complete pairs.

    Args:
        config: `model`, `training`, `evaluation` and, of `study`, `seeds`, `jobs`, `scheduler` and
            `retries` are used; `data` for what `sets` does not name.
        sets: the data sets; those of earlier calls are kept.
        folder: new, empty, or of a benchmark of the same settings.
        arms: names, groups and patterns, see `chosen_arms`.
        curve: score runs each time after so many steps too; None: as in earlier calls, at first
            only at the end. Runs that are done stay as they are.
        progress: show it.

    Returns:
        How each task ended.

    Raises:
        ConfigError: no such arm.
        RunError: the folder is something else, of other settings, or another process computes it.
        KeyboardInterrupt: passed on, after the runs have written their checkpoints.
    """
    folder, names = Path(folder).absolute(), chosen_arms(arms)
    config = with_arms(config)
    if not sets:
        raise ConfigError("--data: expected at least one data set; got none")
    known = _known(folder, config)
    now = Benchmark(
        config,
        known.sets | {one.name: one for one in sets},
        known.curve if curve is None else curve,
    )
    tasks = [
        task
        for seed in config.study.seeds
        for one in sets
        for task in _tasks(folder, one, seed, names)
        if not task.done()
    ]
    command, after = ["-m", "scmam.study.worker", str(folder)], partial(summarize, folder)
    with held(folder, BUSY) as lock:
        save_benchmark(folder, now)
        outcomes = carry_out(tasks, command, config.study, lock, after, progress=progress)
        summarize(folder)
    return outcomes


def _known(folder: Path, config: Config) -> Benchmark:
    """The benchmark of earlier calls on a folder."""
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
            raise RunError(f"{folder}: not empty, and no benchmark; give another folder")
        return Benchmark(config, {})
    earlier = open_benchmark(folder)
    for section in ("model", "training", "evaluation"):
        if fingerprint(earlier.config, section) != fingerprint(config, section):
            raise RunError(
                f"{folder}: was begun with other settings of {section}; give another folder, or"
                " those settings"
            )
    return earlier


def _tasks(folder: Path, one: DataSet, seed: int, arms: Sequence[str]) -> Iterator[Task]:
    for place, group in enumerate(_groups(arms), start=1):
        outputs = tuple(scores_file(folder, one.name, arm, seed) for arm in group)
        name = f"{one.name}, seed {seed}, {group[0]} to {group[-1]}"
        yield Task(
            name=name,
            arguments=("benchmark", one.name, str(seed), ",".join(group)),
            log=log_file(folder, f"{one.name}-seed-{seed}-{place}"),
            outputs=outputs,
        )


def _groups(arms: Sequence[str]) -> list[list[str]]:
    """The arms in groups of about `ARMS_A_TASK`; an arm is in the group of the one it follows."""
    groups: list[list[str]] = []
    for arm in arms:
        leader = ARMS[arm].follows
        if leader is not None:
            next(group for group in groups if leader in group).append(arm)
        elif groups and len(groups[-1]) < ARMS_A_TASK:
            groups[-1].append(arm)
        else:
            groups.append([arm])
    return groups
