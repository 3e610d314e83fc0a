"""The queue of a study: order, shares, failures, processes and workers that die, interruptions.

The processes here are a few lines of Python; dask is what it is.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

pytest.importorskip("distributed", reason="the single-cell layer is not installed")

from distributed import Client, LocalCluster
from scmam.errors import ConfigError, RunError
from scmam.settings import Study
from scmam.storage import alone
from scmam.study.progress import Lines, Silent, shown
from scmam.study.queue import run_tasks, thread_share
from scmam.study.tasks import Task


class Recorder(Silent):
    """Remembers what happened."""

    def __init__(self):
        self.events, self.most, self.stages, self.dashboard = [], 0, set(), None

    def opened(self, dashboard):
        self.dashboard = dashboard

    def started(self, task, again):
        self.events.append(("started again" if again else "started", task.name))

    def ended(self, outcome):
        self.events.append(("ended", outcome.task.name))

    def tick(self, running):
        self.most = max(self.most, len(running))
        self.stages |= {(task.name, stage) for task, (stage, seconds) in running.items()}


def task(folder, name, script, needs=None):
    """A task that runs `script`, and is done when a file of its name is there; OUT is that file in
    the script.
    """
    output = folder / name
    return Task(
        name,
        ("-c", f"OUT = {str(output)!r}\n" + textwrap.dedent(script)),
        folder / "logs" / f"{name}.txt",
        (output,),
        needs,
    )


WRITE = "open(OUT, 'w').close()"
REPORT = """
import json, os
def report(**said):
    os.write(int(os.environ['SCMAM_REPORTS']), (json.dumps(said) + '\\n').encode())
"""
KILLED_ONCE = """
import os, signal, time
if not os.path.exists(OUT + '.tried'):
    open(OUT + '.tried', 'w').close()
    os.kill(os.getpid(), signal.SIGKILL)
open(OUT, 'w').close()
"""


@pytest.fixture
def run(tmp_path):
    def go(tasks, jobs=2, watcher=None, after=lambda: None, retries=0, **options):
        settings = Study(jobs=jobs, retries=retries, **options)
        with alone(tmp_path / ".lock", "held by {owner}") as lock:
            return run_tasks(
                tasks, [], settings, lock=lock, watcher=watcher or Silent(), after=after
            )

    return go


def test_every_task_runs_and_at_most_so_many_at_a_time(tmp_path, run):
    recorder, done = Recorder(), []
    tasks = [
        task(tmp_path, f"task {i}", f"import time; time.sleep(0.2); {WRITE}") for i in range(4)
    ]
    outcomes = run(tasks, watcher=recorder, after=lambda: done.append(1))
    assert {outcome.task.name for outcome in outcomes} == {"task 0", "task 1", "task 2", "task 3"}
    assert all(outcome.error is None and outcome.seconds >= 0.2 for outcome in outcomes)
    assert recorder.most == 2
    assert len(done) == 4


def test_a_task_follows_the_one_that_it_needs(tmp_path, run):
    recorder = Recorder()
    first = task(tmp_path, "mam", f"import time; time.sleep(0.3); {WRITE}")
    second = task(
        tmp_path,
        "matched",
        f"import os; assert os.path.exists({str(tmp_path / 'mam')!r}); {WRITE}",
        needs="mam",
    )
    outcomes = run([first, second], watcher=recorder)
    assert all(outcome.error is None for outcome in outcomes)
    assert recorder.events.index(("ended", "mam")) < recorder.events.index(("started", "matched"))


def test_one_that_is_done_already_is_no_obstacle(tmp_path, run):
    (outcome,) = run([task(tmp_path, "matched", WRITE, needs="mam")])
    assert outcome.error is None


def test_a_failure_ends_neither_the_others_nor_is_it_lost(tmp_path, run):
    tasks = [
        task(tmp_path, "mam", "print('stage: pretraining'); 1 / 0"),
        task(tmp_path, "matched", WRITE, needs="mam"),
        task(tmp_path, "uniform", WRITE),
    ]
    outcomes = {outcome.task.name: outcome.error for outcome in run(tasks, jobs=1)}
    assert outcomes["uniform"] is None
    assert "ended with status 1" in outcomes["mam"]
    assert "ZeroDivisionError: division by zero" in outcomes["mam"]
    assert outcomes["matched"] == "not started, because mam failed"
    assert not (tmp_path / "matched").exists()


def test_an_error_of_the_user_is_one_line(tmp_path, run):
    (outcome,) = run(
        [
            task(
                tmp_path,
                "mam",
                REPORT + "report(error='label: no such column'); raise SystemExit(2)",
            )
        ],
        retries=3,
    )
    assert outcome.error == "label: no such column"
    assert (tmp_path / "logs" / "mam.txt").read_text().count(": mam\n") == 1  # no second try


def test_a_task_that_leaves_nothing_has_failed(tmp_path, run):
    (outcome,) = run([task(tmp_path, "mam", "print('I did nothing')")])
    assert outcome.error.startswith(f"ended without {tmp_path / 'mam'}: its log ends with")
    assert "I did nothing" in outcome.error


def test_the_log_is_of_all_tries_and_the_error_of_the_last(tmp_path, run):
    run([task(tmp_path, "mam", "print('error: first'); raise SystemExit(4)")])
    (outcome,) = run([task(tmp_path, "mam", "raise SystemExit(3)")])
    assert outcome.error.startswith("ended with status 3")
    log = (tmp_path / "logs" / "mam.txt").read_text()
    assert log.count(": mam\n") == 2
    assert "error: first" in log


def test_equal_shares_of_the_threads(tmp_path, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert (thread_share(1), thread_share(2), thread_share(3), thread_share(100)) == (8, 4, 2, 1)
    script = (
        "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'],"
        " os.environ['OMP_WAIT_POLICY'])\n" + WRITE
    )
    run([task(tmp_path, name, script) for name in ("a", "b")], jobs=2)
    assert "['--threads', '4'] 4 passive" in (tmp_path / "logs" / "a.txt").read_text()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (thread_share(2), thread_share(4)) == (3, 2)


def test_interrupted_it_lets_the_running_ones_end_tidily(tmp_path, run):
    script = """
        import time
        try:
            open(OUT + '.running', 'w').close()
            time.sleep(60)
        except KeyboardInterrupt:
            open(OUT + '.saved', 'w').close()
            raise SystemExit(130)
    """

    def interrupt():
        deadline = time.monotonic() + 20
        while not (tmp_path / "mam.running").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run([task(tmp_path, "mam", script), task(tmp_path, "later", WRITE)], jobs=1)
    thread.join()
    assert (tmp_path / "mam.saved").exists()
    assert not (tmp_path / "later").exists()


def test_workers_of_a_killed_study_end_and_let_go_of_its_folder(tmp_path):
    worker = """
        import sys, threading, time
        sys.argv[1:] = ['STUDY', 'baseline', 'x', '--threads', '1']
        from scmam.study import worker
        threading.Thread(target=worker._end_with_the_study, daemon=True).start()
        open(OUT + '.running', 'w').close()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            open(OUT + '.saved', 'w').close()
    """
    process = _study(tmp_path, worker)
    _wait_for(tmp_path / "mam.running")
    with (
        pytest.raises(RunError, match=rf"^held by {process.pid}$"),
        alone(tmp_path / ".lock", "held by {owner}"),
    ):
        pass
    process.kill()
    process.wait()
    with alone(tmp_path / ".lock", "held by {owner}", patience=20):
        assert (tmp_path / "mam.saved").exists()


def _study(folder, script, **environment):
    """A process with a study of one task, "mam", that runs `script`."""
    study = f"""
        from pathlib import Path
        from scmam.settings import Study
        from scmam.storage import alone
        from scmam.study.progress import Silent
        from scmam.study.queue import run_tasks
        from scmam.study.tasks import Task
        folder = Path({str(folder)!r})
        script = {f"OUT = {str(folder / 'mam')!r}" + textwrap.dedent(script)!r}
        with alone(folder / ".lock", "held") as lock:
            task = Task("mam", ("-c", script), folder / "log.txt", (folder / "mam",))
            options = {{"lock": lock, "watcher": Silent(), "after": lambda: None}}
            run_tasks([task], [], Study(jobs=1, retries=0), **options)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(study)], env=_with_path() | environment
    )


def test_a_study_that_is_suspended_goes_on(tmp_path):
    """As a laptop that sleeps does it. Dask would drop the silent worker after five minutes, here
    after the shortest time that it allows, and nobody would hear of the task's end.
    """
    script = f"""
        import os, time
        open(OUT + '.running', 'w').close()
        while not os.path.exists(OUT + '.go'):
            time.sleep(0.05)
        {WRITE}
    """
    process = _study(tmp_path, script, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1 s")
    try:
        _wait_for(tmp_path / "mam.running")
        process.send_signal(signal.SIGSTOP)
        time.sleep(5.5)  # ten of a worker's heartbeats, the least that dask waits, take 5 s
        process.send_signal(signal.SIGCONT)
        time.sleep(1.5)  # dask looks each second
        (tmp_path / "mam.go").touch()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "mam").exists()


def _with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _wait_for(path: Path, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_what_a_process_says_it_is_at_is_shown(tmp_path, run):
    recorder = Recorder()
    script = (
        "import time; time.sleep(0.5)\n"
        + REPORT
        + f"report(stage='pretraining'); time.sleep(0.5); {WRITE}"
    )
    run([task(tmp_path, "mam", script)], watcher=recorder)
    assert recorder.stages == {("mam", "starting"), ("mam", "pretraining")}
    assert recorder.dashboard.startswith("http://127.0.0.1:")


def test_a_process_that_is_killed_is_started_again(tmp_path, run):
    recorder = Recorder()
    (outcome,) = run([task(tmp_path, "mam", KILLED_ONCE)], watcher=recorder, retries=1)
    assert outcome.error is None
    assert recorder.events == [("started", "mam"), ("started again", "mam"), ("ended", "mam")]


def test_a_process_that_is_killed_too_often_has_failed(tmp_path, run):
    (outcome,) = run([task(tmp_path, "mam", KILLED_ONCE)])
    assert outcome.error.startswith("was ended by SIGKILL: its log ends with")


def test_on_a_cluster_a_task_survives_the_worker_that_ran_it(tmp_path):
    script = f"""
        import os, signal, time
        first = not os.path.exists(OUT + '.tried')
        open(OUT + '.tried', 'w').write(str(os.getppid()))
        if first:
            time.sleep(60)
        {WRITE}
    """

    def kill_its_worker():
        _wait_for(tmp_path / "mam.tried")
        time.sleep(0.2)  # until the number is in it
        os.kill(int((tmp_path / "mam.tried").read_text()), signal.SIGKILL)

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        thread = threading.Thread(target=kill_its_worker)
        thread.start()
        outcomes = run_tasks(
            [task(tmp_path, "mam", script), task(tmp_path, "matched", WRITE, needs="mam")],
            [],
            Study(jobs=1, retries=0, scheduler=cluster.scheduler_address),
            watcher=Silent(),
            after=lambda: None,
        )
        thread.join()
        with Client(cluster) as client:
            assert client.run(os.getpid)  # it is there for others still
    assert {outcome.task.name: outcome.error for outcome in outcomes} == {
        "mam": None,
        "matched": None,
    }
    assert (tmp_path / "logs" / "mam.txt").read_text().count(": mam\n") == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_where_no_scheduler_answers(tmp_path, run, monkeypatch, address):
    monkeypatch.setattr("scmam.study.queue.CONNECT", 1.0)
    message = rf"^study.scheduler: no dask scheduler answers at {address} \([^\n]*\); start one"
    with pytest.raises(ConfigError, match=message):
        run([task(tmp_path, "mam", WRITE)], scheduler=address)


def test_plain_progress_says_what_ends_and_what_is_left(tmp_path, run, capsys):
    tasks = [
        task(tmp_path, "uniform", WRITE),
        task(tmp_path, "mam", REPORT + "report(error='no'); raise SystemExit(2)"),
    ]
    with shown(2, progress=True) as watcher:
        run(tasks, jobs=1, watcher=watcher)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Dashboard: http://127.0.0.1:")
    assert lines[1] == "[0/2] uniform: started"
    assert lines[2].startswith("[1/2] uniform: done in 0 s (about ")
    assert lines[4] == "[2/2] mam: FAILED: no"


def test_plain_progress_shows_what_is_running_now_and_then(tmp_path, capsys, monkeypatch):
    lines = Lines(3)
    task = Task("mam", (), tmp_path / "log.txt", (), None, tmp_path / "metrics.csv", 300)
    lines.tick({task: ("pretraining", 61.0)})
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("scmam.study.progress.HEARTBEAT", 0.0)
    lines.tick({task: ("pretraining", 61.0)})
    assert capsys.readouterr().out == "[0/3] mam: pretraining, 61 s\n"  # no step is written yet
    task.metrics.write_text("step,epoch\n1,0\n27,1\n")
    lines.tick({task: ("pretraining", 61.0)})
    assert capsys.readouterr().out == "[0/3] mam: pretraining, step 27 of 300, 61 s\n"
    lines.tick({task: ("evaluating", 75.0)})
    assert capsys.readouterr().out == "[0/3] mam: evaluating, 75 s\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to make here")
def test_bars_on_a_terminal(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from scmam.study.progress import Outcome, shown
        from scmam.study.tasks import Task
        folder = Path({str(tmp_path)!r})
        task = Task("mam", (), folder / "log.txt", (), None, folder / "metrics.csv", 300)
        task.metrics.write_text("step,epoch\\n27,1\\n")
        with shown(2, progress=True) as watcher:
            watcher.started(task, False)
            watcher.last -= 1
            watcher.tick({{task: ("pretraining", 1.0)}})
            watcher.display.refresh()
            watcher.ended(Outcome(task, "it is [broken]", 2.0))
    """
    terminal, end = os.openpty()
    environment = {**_with_path(), "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=end, stdin=end, env=environment
    )
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal without a writer
        while more := os.read(terminal, 4096):
            shown += more
    os.close(terminal)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "mam: pretraining" in text
    assert "27/300" in text
    assert "[1/2] mam: FAILED: it is [broken]" in text


def test_plain_progress_says_when_a_cluster_has_no_workers(capsys, monkeypatch):
    monkeypatch.setattr("scmam.study.progress.HEARTBEAT", 0.0)
    Lines(3).tick({})
    assert capsys.readouterr().out == "[0/3] waiting for a worker\n"


def test_no_progress_prints_nothing(tmp_path, run, capsys):
    with shown(1, progress=False) as watcher:
        run([task(tmp_path, "uniform", WRITE)], watcher=watcher)
    assert capsys.readouterr().out == ""
