"""Run tasks in processes of their own, some at a time, on equal shares of the cores."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from .tasks import Task

GRACE = 30.0  # seconds for a process to write a checkpoint after it was asked to end
POLL = 0.1  # seconds
SHOWN_LINES = 15
TAIL = 16384  # bytes of a log that are looked at


class Outcome(NamedTuple):
    """How a task ended."""

    task: Task
    error: str | None  # None: done
    seconds: float


class Watcher(Protocol):
    """Who is told about the tasks; `scmam.study.progress` shows them."""

    def started(self, task: Task) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def tick(self, running: Mapping[Task, float]) -> None: ...


class Process:
    """A worker that does one task, with its log; it ends by itself when this process does."""

    def __init__(self, task: Task, command: Sequence[str], threads: int, inherited: int) -> None:
        self.task, self.start = task, time.monotonic()
        task.log.parent.mkdir(parents=True, exist_ok=True)
        self.log_offset = task.log.stat().st_size if task.log.exists() else 0
        with open(task.log, "ab") as log:
            log.write(
                f"--- {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}: {task.name}\n".encode()
            )
            log.flush()
            # Its standard input is a pipe from here: when this process is killed, it reads the end
            # of it. A session of its own keeps Ctrl-C here, where it becomes one orderly end of
            # all.
            self.popen = subprocess.Popen(
                [*command, *task.arguments, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(threads),
                pass_fds=(inherited,),
                start_new_session=True,
            )

    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        status = self.popen.poll()
        if status is None:
            return None
        self.popen.stdin.close()
        seconds = time.monotonic() - self.start
        if status == 0 and self.task.done():
            return Outcome(self.task, None, seconds)
        missing = [str(path) for path in self.task.outputs if not path.exists()]
        ending = f"ended with status {status}" if status else f"ended without {', '.join(missing)}"
        return Outcome(
            self.task, _reason(self._log()) or f"{ending}: {_last_lines(self._log())}", seconds
        )

    def _log(self) -> str:
        with open(self.task.log, "rb") as log:
            log.seek(max(self.log_offset, self.task.log.stat().st_size - TAIL))
            return log.read().decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it started."""
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(self.popen.pid, number)


def run_tasks(
    tasks: Sequence[Task],
    command: Sequence[str],
    *,
    jobs: int,
    inherited: int,
    watcher: Watcher,
    after: Callable[[], None],
) -> list[Outcome]:
    """Run the tasks in their order, `jobs` at a time, one that needs another after it.

    Args:
        tasks: those that are to do; a task in `needs` that is not among them is taken as done.
        command: the worker, to which a task's arguments are added.
        jobs: processes at a time.
        inherited: a file descriptor that they keep open.
        watcher: is told what happens.
        after: called after each task that was done.

    Returns:
        how each ended; a task whose `needs` failed is not started and fails too.

    Interrupted, it lets the running processes write their checkpoints, and raises
    `KeyboardInterrupt` again.
    """
    threads = thread_share(min(jobs, max(1, len(tasks))))
    waiting, running, outcomes = list(tasks), [], []
    to_do = {task.name for task in tasks}

    def conclude(outcome: Outcome) -> None:
        outcomes.append(outcome)
        watcher.ended(outcome)
        if outcome.error is None:
            after()

    try:
        while waiting or running:
            ended = {outcome.task.name: outcome for outcome in outcomes}
            for task in _doomed(waiting, ended):
                waiting.remove(task)
                conclude(Outcome(task, f"not started, because {task.needs} failed", 0.0))
            ready = [
                task
                for task in waiting
                if task.needs is None or task.needs not in to_do or task.needs in ended
            ]
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                running.append(Process(task, command, threads, inherited))
                watcher.started(task)
            watcher.tick({process.task: time.monotonic() - process.start for process in running})
            time.sleep(POLL)
            for process in list(running):
                if (outcome := process.outcome()) is not None:
                    running.remove(process)
                    conclude(outcome)
    finally:
        _end(running)
    return outcomes


def thread_share(jobs: int) -> int:
    """Threads for each of `jobs` processes: an equal share of the cores of this process, never
    above OMP_NUM_THREADS.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = max(1, cores // jobs)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


def worker_command(folder: Path, cells: Path | None) -> list[str]:
    """The start of the command line of a worker of a study; `cells`: a pickle of them instead of
    what the configuration names.
    """
    command = [sys.executable, "-m", "scmam.study.worker", str(folder)]
    return command if cells is None else [*command, "--cells", str(cells)]


def stage(task: Task) -> tuple[str, int | None]:
    """What a running task is at, from its log, and the step of its pretraining, from its metrics."""
    now = "starting"
    with suppress(OSError), open(task.log, "rb") as log:
        log.seek(max(0, task.log.stat().st_size - TAIL))
        for line in log.read().decode(errors="replace").splitlines():
            now = (
                line.removeprefix("stage: ")
                if line.startswith("stage: ")
                else "starting"
                if line.startswith("--- ")
                else now
            )
    return now, _last_step(
        task.metrics
    ) if task.metrics is not None and now == "pretraining" else None


def _doomed(waiting: Sequence[Task], ended: Mapping[str, Outcome]) -> list[Task]:
    return [task for task in waiting if task.needs in ended and ended[task.needs].error is not None]


def _end(running: Sequence[Process]) -> None:
    """Ask processes to end as Ctrl-C does, and after a while end them."""
    for process in running:
        process.signal(signal.SIGINT)
    end = time.monotonic() + GRACE
    for process in running:
        try:
            process.popen.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.signal(signal.SIGKILL)
            process.popen.wait()
        process.popen.stdin.close()


def _environment(threads: int) -> dict[str, str]:
    """Ours, with the share of threads; waiting threads sleep, or they would take the time of the
    other processes.
    """
    limits = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
        str(threads),
    )
    return {**os.environ, **limits, "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}


def _reason(log: str) -> str | None:
    """The message of an error of the user, which a worker prints as its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines and lines[-1].startswith("error: ") else None


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()][-SHOWN_LINES:]
    return "\n    ".join(["its log ends with", *lines])


def _last_step(metrics: Path) -> int | None:
    with suppress(OSError), open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 1024))
        step = file.read().decode(errors="replace").rstrip().rpartition("\n")[2].partition(",")[0]
        return int(step) if step.isdigit() else None
    return None
