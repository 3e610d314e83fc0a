"""`benchmark`: run what is missing, and bring tables and pictures up to date."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import ceil, inf
from pathlib import Path

from ..config import Config, flat
from ..data import open_cells
from ..errors import ConfigError, RunError, listing
from ..evaluation.intervals import paired_difference
from ..storage import held
from ..study.folder import log_file
from ..study.progress import carry_out
from ..study.queue import Outcome
from ..study.tasks import Task
from .arms import ARMS, UNIFORM, UNTRAINED, chosen_arms, with_arms
from .folder import (
    RECORD,
    Benchmark,
    DataSet,
    open_benchmark,
    read_score,
    save_benchmark,
    scores_file,
)
from .summary import summarize

ARMS_A_TASK = 6
"""Arms that one process trains: it starts in seconds, and a cluster has enough to share out."""
SECTIONS = ("data", "model", "masking", "training", "evaluation")
OF_A_SET = ("data.path", "data.genes", "data.num_genes")
"""Settings that decide a score, and those of them that each data set has for itself."""
SHOWN = 5  # changed settings that an error names
MEASURED = "rest", "probe"  # part and metric whose intervals decide whether seeds are added
MOST_SEEDS = 16
BUSY = "another process (started by {owner}) computes this benchmark; wait for it"


def benchmark(
    config: Config,
    sets: Sequence[DataSet],
    folder: str | Path,
    *,
    arms: Sequence[str] = ("all",),
    curve: int | None = None,
    until: float | None = None,
    most_seeds: int = MOST_SEEDS,
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
        until: add seeds to each arm until its difference to uniform masks (linear probe, cells that
            were not set aside) is known to so many points of 100: half the width of its 95 %
            interval. None: the seeds of `config` alone. `untrained` gets none.
        most_seeds: with `until`, of an arm on a data set at most.
        progress: show it.

    Returns:
        How each task ended.

    Raises:
        ConfigError: no such arm, no data set, or `until` is not positive.
        CellsError: the cells of a data set cannot be used.
        RunError: the folder is something else, of other settings or of other files of the same
            name, or another process computes it.
        KeyboardInterrupt: passed on, after the runs have written their checkpoints.
    """
    folder, names = Path(folder).absolute(), chosen_arms(arms)
    config = with_arms(config)
    if not sets:
        raise ConfigError("--data: expected at least one data set; got none")
    if until is not None and not until > 0:
        raise ConfigError(f"--until: expected points above 0; got {until}")
    known = _known(folder, config)
    _check_names(folder, [*known.sets.values(), *sets])
    curve = known.curve if curve is None else curve
    now = Benchmark(config, known.sets | {one.name: one for one in sets}, curve)
    asked = [(one, seed, names) for seed in config.study.seeds for one in sets]
    tasks = _missing(folder, asked)
    command, after = ["-m", "scmam.study.worker", str(folder)], partial(summarize, folder)
    # Errors in the data are raised here, before anything is written or trained.
    for one in sets:
        if any(task.arguments[1] == one.name for task in tasks):
            open_cells(one.config(config).data, need_label=True)
    with held(folder, BUSY) as lock:
        save_benchmark(folder, now)
        outcomes = carry_out(tasks, command, config.study, lock, after, progress=progress)
        seeds, last = config.study.seeds, max(config.study.seeds)
        seeds += tuple(range(last + 1, last + 1 + most_seeds - len(seeds)))
        while until is not None and not any(outcome.error for outcome in outcomes):
            added = [more for one in sets for more in _added(folder, one, names, seeds, until)]
            if not (tasks := _missing(folder, added)):
                break
            outcomes += carry_out(tasks, command, config.study, lock, after, progress=progress)
        summarize(folder)
    return outcomes


def _missing(folder: Path, runs: Iterable[tuple[DataSet, int, Sequence[str]]]) -> list[Task]:
    """The tasks that are to do, of data sets, seeds and arms."""
    tasks = (task for one, seed, arms in runs for task in _tasks(folder, one, seed, arms))
    return [task for task in tasks if not task.done()]


def _added(
    folder: Path, one: DataSet, arms: Sequence[str], seeds: Sequence[int], until: float
) -> list[tuple[DataSet, int, tuple[str, ...]]]:
    """The first of the seeds, and the arms that need them to be known to `until` points.

    The width of an interval falls with the root of the number of seeds. That number is at most
    doubled at a time: few differences say little about their spread.
    """
    uniform, needed = _measured(folder, one, UNIFORM, seeds), dict.fromkeys(arms, 0)
    for arm in arms:
        scores = _measured(folder, one, arm, seeds)
        both = [(scores[seed], uniform[seed]) for seed in scores if seed in uniform]
        if arm in (UNIFORM, UNTRAINED) or not both:
            continue
        difference, number = paired_difference(*zip(*both, strict=True)), len(both)
        half = inf if number == 1 else (difference.high - difference.low) / 2
        if half > until:
            needed[arm] = ceil(min(2 * number, number * (half / until) ** 2))
    return [
        (one, seed, chosen_arms(wide))
        for place, seed in enumerate(seeds)
        if (wide := [arm for arm in arms if place < needed[arm]])
    ]


def _measured(folder: Path, one: DataSet, arm: str, seeds: Iterable[int]) -> dict[int, float]:
    """The score of `MEASURED` of each seed that has one, in points of 100."""
    files = {seed: scores_file(folder, one.name, arm, seed) for seed in seeds}
    part, metric = MEASURED
    return {
        seed: 100 * read_score(path)["scores"][part][metric]
        for seed, path in files.items()
        if path.is_file()
    }


def _known(folder: Path, config: Config) -> Benchmark:
    """The benchmark of earlier calls on a folder."""
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
            raise RunError(f"{folder}: not empty, and no benchmark; give another folder")
        return Benchmark(config, {})
    earlier = open_benchmark(folder)
    before, after = flat(earlier.config), flat(config)
    changed = [
        f"{name}: {before[name]} -> {value}"
        for name, value in after.items()
        if name.partition(".")[0] in SECTIONS and name not in OF_A_SET and before[name] != value
    ]
    if changed:
        raise RunError(
            f"{folder}: was begun with other settings ({listing(changed, SHOWN)}); give another"
            " folder, or those settings"
        )
    return earlier


def _check_names(folder: Path, sets: Sequence[DataSet]) -> None:
    """Or a `RunError`: scores are kept by the names of files."""
    found: dict[str, str] = {}
    for one in sets:
        if one.path is None:
            continue
        other = found.setdefault(one.name, one.path)
        # A file that is gone has been moved, here or to another machine.
        if other != one.path and Path(other).exists() and not _is_same(other, one.path):
            raise RunError(
                f"{folder}: has scores of {other}, and {one.path} has the same name; rename one, or"
                " give another folder"
            )


def _is_same(path: str, other: str) -> bool:
    return Path(other).exists() and Path(path).samefile(other)


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
