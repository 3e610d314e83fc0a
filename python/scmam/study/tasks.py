"""The tasks of a study: one for every run and baseline, ordered by seed, so that a study that is
stopped has complete pairs.
"""

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from ..config import Config
from ..errors import ConfigError
from .arms import arm_config
from .folder import baseline_file, evaluation_file, log_file, run_folder

LONGEST_NAME = 100  # bytes of an arm's name


class Task(NamedTuple):
    """A run or a baseline, computed by one process."""

    name: str  # "mam, seed 0"
    arguments: tuple[str, ...]  # of the worker
    log: Path
    outputs: tuple[Path, ...]  # done when all are there; each is written whole or not at all
    needs: str | None = None  # the task that has to be done before
    metrics: Path | None = None  # where its progress can be read, up to ...
    steps: int | None = None  # ... so many optimizer steps

    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(path.exists() for path in self.outputs)


def planned(config: Config, folder: Path, *, interpret: bool) -> list[Task]:
    """All tasks of a study, done or not; with `interpret`, the first seed of each arm that hides
    anything is interpreted.

    Raises:
        ConfigError: arms, seeds or the reference do not fit together.
    """
    _check(config)
    study = config.study
    tasks = [
        _run(config, folder, arm, seed, interpret and seed == study.seeds[0])
        for seed in study.seeds
        for arm in study.arms
    ]
    return _after_needs(tasks) + [_baseline(folder, name) for name in study.baselines]


def _check(config: Config) -> None:
    study = config.study
    several = {"study.arms": study.arms, "study.seeds": study.seeds}
    for name, values in (several | {"evaluation.methods": config.evaluation.methods}).items():
        if not values:
            raise ConfigError(f"{name}: expected at least one, got none")
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: expected each once, got {', '.join(map(str, values))}")
    if study.reference not in study.arms:
        raise ConfigError(
            f"study.reference: {study.reference} is not among the arms ({', '.join(study.arms)});"
            " name one of them, or add it to study.arms"
        )
    if config.training.start_from is None and "orig" in study.arms:
        raise ConfigError(
            "study.arms: orig is the model that training.start_from names; set that to a run folder"
            " or an exported model"
        )
    if config.training.start_from is not None and not config.training.start_from.exists():
        raise ConfigError(
            f"training.start_from: expected a run folder or an exported model; there is no"
            f" {config.training.start_from}"
        )
    for arm in study.arms:
        if arm in study.baselines:
            raise ConfigError(f"study.arms: expected names other than baselines', got {arm!r}")
        if not _names_a_folder(arm):
            raise ConfigError(
                f"study.arms: expected names of 1 to {LONGEST_NAME} printable characters without /,"
                f" commas and outer spaces that do not begin with . or -, got {_short(arm)!r}"
            )
        if (target := _matched_arm(config, arm)) not in (None, *study.arms):
            raise ConfigError(
                f"study.arms: {arm} takes its hidden fractions from {target}, which is no arm here;"
                " add it to study.arms"
            )


def _names_a_folder(arm: str) -> bool:
    """Whether an arm can name a folder, a log and a column of a table."""
    return (
        0 < len(arm.encode(errors="replace")) <= LONGEST_NAME
        and arm.isprintable()
        and arm == arm.strip()
        and arm[0] not in ".-"
        and not set(arm) & set("/,")
    )


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}..."


def _matched_arm(config: Config, arm: str) -> str | None:
    """The arm whose hidden fractions `arm` takes; None for none, or those of a run folder."""
    target = arm_config(config, arm, 0).masking.matched_to
    return None if target is None or Path(target).is_dir() else target


def _run(config: Config, folder: Path, arm: str, seed: int, interpret: bool) -> Task:
    run, settings = run_folder(folder, arm, seed), arm_config(config, arm, seed)
    trains, matched = settings.masking.strategy != "none", _matched_arm(config, arm)
    outputs = [run / "model.pt"]
    outputs += [evaluation_file(run, method) for method in config.evaluation.methods]
    arguments = ["run", arm, str(seed)]
    if interpret and trains:
        outputs.append(run / "genes" / "latents.json")
        arguments.append("--interpret")
    return Task(
        name=f"{arm}, seed {seed}",
        arguments=tuple(arguments),
        log=log_file(folder, f"{arm}-seed-{seed}"),
        outputs=tuple(outputs),
        needs=None if matched is None else f"{matched}, seed {seed}",
        metrics=run / "metrics.csv",
        steps=settings.training.steps if trains else None,
    )


def _baseline(folder: Path, name: str) -> Task:
    output = baseline_file(folder, name)
    return Task(f"baseline {name}", ("baseline", name), log_file(folder, name), (output,))


def _after_needs(tasks: Iterable[Task]) -> list[Task]:
    """The same tasks, each after the one that it needs.

    Raises:
        ConfigError: tasks that wait for each other.
    """
    named = {task.name: task for task in tasks}
    sorter = TopologicalSorter(dict.fromkeys(named, ()))
    for task in named.values():
        if task.needs is not None:
            sorter.add(task.name, task.needs)
    try:
        return [named[name] for name in sorter.static_order()]
    except CycleError as error:
        raise ConfigError(
            f"study.arms: {', '.join(error.args[1][:-1])} wait for each other; match one to an arm"
            " of its own"
        ) from None
