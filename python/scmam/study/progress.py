"""Progress of a study: bars that move on a terminal, plain lines where output goes to a file or a
log.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .queue import Outcome, Watcher, stage
from .tasks import Task

HEARTBEAT = 30.0  # seconds between plain lines when nothing ends
REDRAW = 0.5


class Silent:
    """Says nothing."""

    def started(self, task: Task) -> None:
        """A task was started."""

    def ended(self, outcome: Outcome) -> None:
        """A task ended."""

    def tick(self, running: Mapping[Task, float]) -> None:
        """Time went by; `running` has the seconds that each task has run."""


class Lines(Silent):
    """A line for what starts and ends, and one now and then for what is running; `total` tasks are
    to do.
    """

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self.begin = self.last = time.monotonic()

    def started(self, task: Task) -> None:
        self.say(f"{self._place()} {task.name}: started")

    def ended(self, outcome: Outcome) -> None:
        self.count += 1
        how = (
            f"done in {_duration(outcome.seconds)}"
            if outcome.error is None
            else f"FAILED: {outcome.error}"
        )
        self.say(f"{self._place()} {outcome.task.name}: {how}{self._left()}")

    def tick(self, running: Mapping[Task, float]) -> None:
        if time.monotonic() - self.last >= HEARTBEAT:
            self.say(
                f"{self._place()} "
                + "; ".join(
                    f"{task.name}: {_now(task)}, {_duration(spent)}"
                    for task, spent in running.items()
                )
            )

    def say(self, text: str) -> None:
        """Print a line."""
        self.last = time.monotonic()
        print(text, flush=True)

    def _place(self) -> str:
        return f"[{self.count:{len(str(self.total))}}/{self.total}]"

    def _left(self) -> str:
        if not 0 < self.count < self.total:
            return ""
        return f" (about {_duration((time.monotonic() - self.begin) / self.count * (self.total - self.count))} left)"


class Bars(Lines):
    """The lines of what ends, above a bar for all and a line for each running task."""

    def __init__(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__(total)
        self.display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            transient=True,
        )
        self.overall = self.display.add_task("study", total=total)
        self.rows: dict[str, object] = {}

    def started(self, task: Task) -> None:
        self.rows[task.name] = self.display.add_task(f"{task.name}: starting", total=None)

    def ended(self, outcome: Outcome) -> None:
        if (row := self.rows.pop(outcome.task.name, None)) is not None:
            self.display.remove_task(row)
        super().ended(outcome)
        self.display.update(self.overall, completed=self.count, description=f"study{self._left()}")

    def tick(self, running: Mapping[Task, float]) -> None:
        if time.monotonic() - self.last < REDRAW:
            return
        self.last = time.monotonic()
        for task in running:
            now, step = stage(task)
            done = {} if step is None else {"total": task.steps, "completed": step}
            self.display.update(self.rows[task.name], description=f"{task.name}: {now}", **done)

    def say(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown(total: int, *, progress: bool) -> Iterator[Watcher]:
    """Who watches `total` tasks: bars on a terminal, lines elsewhere, nobody without `progress`."""
    if not progress or not total:
        yield Silent()
    elif sys.stdout.isatty():
        bars = Bars(total)
        with bars.display:
            yield bars
    else:
        yield Lines(total)


def _now(task: Task) -> str:
    now, step = stage(task)
    return now if step is None else f"{now}, step {step} of {task.steps}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
