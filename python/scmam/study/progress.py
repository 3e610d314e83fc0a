"""Progress of a study: bars that move on a terminal, plain lines where output goes to a file or a
log.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich import progress as rich
from rich.progress import TaskID

from ..settings import Study
from .queue import Outcome, Silent, run_tasks
from .tasks import Task

HEARTBEAT = 30.0  # seconds between plain lines when nothing ends
REDRAW = 0.5


class Lines(Silent):
    """A line for each start and end, and one every `HEARTBEAT` seconds for the running tasks."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self.begin = self.last = time.monotonic()

    def opened(self, dashboard: str) -> None:
        self.say(f"Dashboard: {dashboard}")

    def started(self, task: Task, again: bool) -> None:
        self.say(f"{self._place()} {task.name}: started{' again' * again}")

    def ended(self, outcome: Outcome) -> None:
        self.count += 1
        done = f"done in {_duration(outcome.seconds)}"
        how = done if outcome.error is None else f"FAILED: {outcome.error}"
        self.say(f"{self._place()} {outcome.task.name}: {how}{self._left()}")

    def tick(self, running: Mapping[Task, tuple[str, float]]) -> None:
        if time.monotonic() - self.last >= HEARTBEAT:
            said = [
                f"{task.name}: {_now(task, stage)}, {_duration(spent)}"
                for task, (stage, spent) in running.items()
            ]
            self.say(f"{self._place()} {'; '.join(said) or 'waiting for a worker'}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.last = time.monotonic()
        print(text, flush=True)

    def _place(self) -> str:
        return f"[{self.count:{len(str(self.total))}}/{self.total}]"

    def _left(self) -> str:
        if not 0 < self.count < self.total:
            return ""
        each = (time.monotonic() - self.begin) / self.count
        return f" (about {_duration(each * (self.total - self.count))} left)"


class Bars(Lines):
    """A line for each end, above a bar for all tasks and one for each running task."""

    def __init__(self, total: int) -> None:

        super().__init__(total)
        name, bar = rich.TextColumn("{task.description}", markup=False), rich.BarColumn(20)
        columns = (rich.SpinnerColumn(), name, bar, rich.MofNCompleteColumn())
        self.display = rich.Progress(*columns, rich.TimeElapsedColumn(), transient=True)
        self.overall = self.display.add_task("study", total=total)
        self.rows: dict[str, TaskID] = {}

    def started(self, task: Task, again: bool) -> None:
        if again:
            super().started(task, again)
        else:
            self.rows[task.name] = self.display.add_task(f"{task.name}: starting", total=None)

    def ended(self, outcome: Outcome) -> None:
        if (row := self.rows.pop(outcome.task.name, None)) is not None:
            self.display.remove_task(row)
        super().ended(outcome)
        self.display.update(self.overall, completed=self.count, description=f"study{self._left()}")

    def tick(self, running: Mapping[Task, tuple[str, float]]) -> None:
        if time.monotonic() - self.last < REDRAW:
            return
        self.last = time.monotonic()
        for task, (stage, _) in running.items():
            step, row = _step(task, stage), self.rows[task.name]
            self.display.update(row, description=f"{task.name}: {stage}")
            if step is not None:
                self.display.update(row, total=task.steps, completed=step)

    def say(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown(total: int, *, progress: bool) -> Iterator[Silent]:
    """The watcher of `total` tasks: bars on a terminal, lines elsewhere, silent without
    `progress`."""
    if not progress or not total:
        yield Silent()
    elif sys.stdout.isatty():
        bars = Bars(total)
        with bars.display:
            yield bars
    else:
        yield Lines(total)


def carry_out(
    tasks: Sequence[Task],
    command: Sequence[str],
    settings: Study,
    lock: int,
    after: Callable[[], None],
    *,
    progress: bool,
) -> list[Outcome]:
    """`run_tasks` as the settings say, and show it."""
    with shown(len(tasks), progress=progress) as watcher:
        return run_tasks(tasks, command, settings, watcher=watcher, after=after, lock=lock)


def _now(task: Task, stage: str) -> str:
    step = _step(task, stage)
    return stage if step is None else f"{stage}, step {step} of {task.steps}"


def _step(task: Task, stage: str) -> int | None:
    """The last step in the metrics of a task that is pretraining."""
    if task.metrics is None or stage != "pretraining":
        return None
    with suppress(OSError), open(task.metrics, "rb") as file:
        file.seek(max(0, task.metrics.stat().st_size - 1024))
        step = file.read().decode(errors="replace").rstrip().rpartition("\n")[2].partition(",")[0]
        return int(step) if step.isdigit() else None
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
