"""The queue of a study, by dask.distributed: on this machine, or on a running cluster.

Dask orders the tasks by their dependencies, retries those that died, and moves those of a lost
worker. Each task is a process that a worker starts (`scmam.study.worker`): it has signals and
settings of torch to itself, and frees all memory at its end.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, one_line
from ..settings import Study
from .tasks import Task

if TYPE_CHECKING:
    from distributed import Client, Future

DASHBOARD = "127.0.0.1:8787"  # another port where this one is taken
GRACE = 30.0  # seconds for a process to write a checkpoint after it was asked to end
CONNECT = 10.0  # seconds for the scheduler of a cluster to answer
POLL = 0.1  # seconds
SHOWN_LINES, TAIL = 15, 16384  # of a log, in the error of a process that died; bytes
STARTING, ENDED = "starting", "ended"  # stages of every task, before and after those of its process
REPORTS = "SCMAM_REPORTS"  # names the descriptor to which a process writes its reports


class Outcome(NamedTuple):
    """How a task ended."""

    task: Task
    error: str | None  # None: done
    seconds: float


class Silent:
    """Receives the events of the tasks and shows nothing; `scmam.study.progress` shows them."""

    def opened(self, dashboard: str) -> None:
        """The cluster runs; `dashboard` is the address of its page."""

    def started(self, task: Task, again: bool) -> None:
        """A task was started, or started again because its process died."""

    def ended(self, outcome: Outcome) -> None:
        """A task ended."""

    def tick(self, running: Mapping[Task, tuple[str, float]]) -> None:
        """Called often; `running` holds the stage of each task and the seconds since its start."""


class ProcessDied(RuntimeError):
    """A process ended without its results and without saying why; dask starts it again."""


def run_tasks(
    tasks: Sequence[Task],
    command: Sequence[str],
    settings: Study,
    *,
    watcher: Silent,
    after: Callable[[], None],
    lock: int | None = None,
) -> list[Outcome]:
    """Run the tasks in their order, one that needs another after it.

    Args:
        tasks: those that are to do; a task in `needs` that is not among them is taken as done.
        command: what Python runs as the worker; a task's arguments are added.
        settings: `jobs`, `scheduler` and `retries` are used.
        watcher: is told what happens.
        after: called after each task that was done.
        lock: a file descriptor that processes on this machine keep open.

    Returns:
        how each ended; a task whose `needs` failed is not started and fails too.

    Raises:
        ConfigError: no scheduler answers there.
        KeyboardInterrupt: passed on, after the running processes have written their checkpoints.
    """
    from distributed import as_completed, wait

    if not tasks:
        return []
    topic = f"scmam-{uuid.uuid4().hex}"
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    by_name = {task.name: task for task in tasks}
    outcomes: dict[str, Outcome] = {}
    running: dict[Task, tuple[str, float]] = {}  # what each is at, and since when it runs
    scheduler = settings.scheduler
    with _connected(min(settings.jobs, len(tasks)), scheduler) as client, client.as_current():
        watcher.opened(client.dashboard_link)
        client.subscribe_topic(topic, lambda event: reports.put(event[1]))
        futures: dict[str, Future] = {}
        for place, task in enumerate(tasks):
            shared = {"topic": topic, "lock": lock if scheduler is None else None}
            needed, key = futures.get(task.needs or ""), f"{task.name}, {topic}"
            order = {"priority": -place, "retries": settings.retries}
            futures[task.name] = client.submit(
                perform, task, tuple(command), needed=needed, key=key, **shared, **order
            )
        names = {future.key: name for name, future in futures.items()}
        ending = as_completed(futures.values())

        def conclude(task: Task) -> None:
            if task.name in outcomes:
                return
            running.pop(task, None)
            outcome = outcomes[task.name] = _outcome(task, futures[task.name], outcomes)
            watcher.ended(outcome)
            if outcome.error is None:
                after()

        try:
            while len(outcomes) < len(tasks):
                ended = ending.next_batch(block=False)
                while not reports.empty():
                    report = reports.get()
                    task, stage = by_name[report["task"]], report.get("stage")
                    if stage == STARTING:
                        watcher.started(task, again=task in running)
                    if stage == ENDED:
                        conclude(task)
                    elif stage is not None and task.name not in outcomes:
                        running[task] = stage, running.get(task, (stage, time.monotonic()))[1]
                for future in ended:
                    conclude(by_name[names[future.key]])
                now = time.monotonic()
                watcher.tick({task: (at, now - begin) for task, (at, begin) in running.items()})
                time.sleep(POLL)
        except BaseException:
            client.run(stop, topic, on_error="ignore")
            with suppress(TimeoutError):
                wait(list(futures.values()), timeout=GRACE + 5)
            raise
    return list(outcomes.values())


def perform(
    task: Task,
    command: Sequence[str],
    *,
    topic: str,
    needed: tuple[str | None, float] | None,
    lock: int | None,
) -> tuple[str | None, float]:
    """Do one task, in a process that ends when this one does. Dask calls it in a worker's thread.

    Args:
        task: what to do.
        command: what Python runs.
        topic: of the events that say what the process is at.
        needed: how the task that this one needs ended.
        lock: a file descriptor that the process keeps open.

    Returns:
        The error of a user, or None, and seconds.

    Raises:
        ProcessDied: it ended in another way.
    """
    from distributed import get_worker

    if topic in _stopped:
        return "interrupted", 0.0
    if needed is not None and needed[0] is not None:
        return f"not started, because {task.needs} failed", 0.0
    worker, begin = get_worker(), time.monotonic()
    error: list[str] = []

    def report(said: dict[str, str]) -> None:
        if "error" in said:
            error.append(said["error"])
        worker.log_event(topic, {"task": task.name, **said})

    report({"stage": STARTING})
    threads = thread_share(worker.state.nthreads)
    process, reader, place = _started(task, command, threads, lock, report)
    while process.poll() is None and topic not in _stopped:
        time.sleep(POLL)
    status = process.poll()
    if status is None:
        _end(process)
    if process.stdin is not None:
        process.stdin.close()
    reader.join(timeout=1)
    if status is None or (status == 0 and task.done()) or error:
        report({"stage": ENDED})
        said = "interrupted" if status is None else error[-1] if error else None
        return said, time.monotonic() - begin
    missing = ", ".join(str(path) for path in task.outputs if not path.exists())
    ending = f"ended without {missing}" if status == 0 else f"ended with status {status}"
    if status < 0:
        ending = f"was ended by {signal.Signals(-status).name}"
    raise ProcessDied(f"{ending}: {_last_lines(task.log, place)}")


def stop(topic: str) -> None:
    """Have the processes of a study on this machine write their checkpoints and end."""
    _stopped.add(topic)


_stopped: set[str] = set()


def thread_share(jobs: int) -> int:
    """Threads for each of `jobs` processes: an equal share of the cores of this process, never
    above OMP_NUM_THREADS.
    """
    share = max(1, len(os.sched_getaffinity(0)) // jobs)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


def worker_command(folder: Path, cells: Path | None) -> list[str]:
    """What Python runs as the worker of a study; `cells`: a pickle of them instead of what the
    configuration names.
    """
    command = ["-m", "scmam.study.worker", str(folder)]
    return command if cells is None else [*command, "--cells", str(cells)]


@contextmanager
def _connected(jobs: int, scheduler: str | None) -> Iterator["Client"]:
    """A client of a running cluster, or of one in this process, which runs `jobs` tasks at a time
    and ends with the block.
    """
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, AssertionError) as error:  # what distributed raises here
            raise ConfigError(
                f"study.scheduler: no dask scheduler answers at {scheduler} ({one_line(error)});"
                " start one with `dask scheduler`, or leave it out to use this machine"
            ) from error
        with client:
            yield client
        return
    # By default dask drops a worker that is silent for five minutes. This one is silent while this
    # process is suspended, as on a laptop that sleeps, and no other would take over.
    with warnings.catch_warnings(), dask.config.set({"distributed.scheduler.worker-ttl": None}):
        warnings.filterwarnings("ignore", message=r"(?s).*Port \d+ is already in use")
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=jobs,
            processes=False,  # a thread waits for a process of ours; one more would do nothing
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address=DASHBOARD,
            memory_limit=0,  # the processes' memory is not the worker's
            silence_logs="CRITICAL",
        )
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


def _outcome(task: Task, future: "Future", before: Mapping[str, Outcome]) -> Outcome:
    """How a task ended, by what dask returned; waits for that."""
    failure = future.exception()
    if failure is None:
        error, seconds = future.result()
        if error is None and not task.done():
            error = f"{task.outputs[0]} is not there: workers have to share the study's folder"
        return Outcome(task, error, seconds)
    if task.needs is not None and task.needs in before and before[task.needs].error is not None:
        return Outcome(task, f"not started, because {task.needs} failed", 0.0)
    kind = "" if isinstance(failure, ProcessDied) else f"{type(failure).__name__}: "
    return Outcome(task, f"{kind}{failure}", 0.0)


def _started(
    task: Task,
    command: Sequence[str],
    threads: int,
    lock: int | None,
    report: Callable[[dict[str, str]], None],
) -> tuple[subprocess.Popen, threading.Thread, int]:
    """The process of a task, the thread that forwards its reports, and the start of its log."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    with open(task.log, "ab") as log:
        place = log.tell()
        log.write(f"--- {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}: {task.name}\n".encode())
        log.flush()
        # Its standard input is a pipe from here, which ends when this process is killed. In a new
        # session it does not receive Ctrl-C, which this process turns into an orderly end of all.
        process = subprocess.Popen(
            [sys.executable, *command, *task.arguments, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(threads) | {REPORTS: str(write)},
            pass_fds=[write] if lock is None else [write, lock],
            start_new_session=True,
        )
    os.close(write)
    reader = threading.Thread(target=_forward, args=(read, report), daemon=True)
    reader.start()
    return process, reader, place


def _forward(descriptor: int, report: Callable[[dict[str, str]], None]) -> None:
    with open(descriptor) as lines:
        for line in lines:
            report(json.loads(line))


def _end(process: subprocess.Popen) -> None:
    """Ask a process, and what it started, to end as on Ctrl-C, and after a while end them."""
    for number, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _environment(threads: int) -> dict[str, str]:
    """This process's environment with the limits of threads. Idle OpenMP threads sleep, so that the
    other processes get the cores.
    """
    limits = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")]
    others = {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **dict.fromkeys(limits, str(threads)), **others}


def _last_lines(log: Path, place: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(place, log.stat().st_size - TAIL))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return "\n    ".join(["its log ends with", *lines[-SHOWN_LINES:]])
