"""Processes of a study: order, shares, failures, interruptions.

The workers here are a few lines of Python.
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

from scmam.errors import RunError
from scmam.study.lock import locked
from scmam.study.progress import Lines, Silent, shown
from scmam.study.queue import run_tasks, stage, thread_share
from scmam.study.tasks import Task


class Recorder(Silent):
    """Remembers what happened."""

    def __init__(self):
        self.events, self.most = [], 0

    def started(self, task):
        self.events.append(("started", task.name))

    def ended(self, outcome):
        self.events.append(("ended", outcome.task.name))

    def tick(self, running):
        self.most = max(self.most, len(running))


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


@pytest.fixture
def run(tmp_path):
    def go(tasks, jobs=2, watcher=None, after=lambda: None):
        with locked(tmp_path) as lock:
            return run_tasks(
                tasks,
                [sys.executable],
                jobs=jobs,
                inherited=lock,
                watcher=watcher or Silent(),
                after=after,
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
                "print('much'); print('error: label: no such column'); raise SystemExit(2)",
            )
        ]
    )
    assert outcome.error == "label: no such column"


def test_a_task_that_leaves_nothing_has_failed(tmp_path, run):
    (outcome,) = run([task(tmp_path, "mam", "print('I did nothing')")])
    assert outcome.error.startswith(f"ended without {tmp_path / 'mam'}: its log ends with")
    assert "I did nothing" in outcome.error


def test_the_log_is_of_all_tries_and_the_error_of_the_last(tmp_path, run):
    run([task(tmp_path, "mam", "print('error: first'); raise SystemExit(2)")])
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
        "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'])\n"
        + WRITE
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
    study = f"""
        import sys
        from pathlib import Path
        from scmam.study.lock import locked
        from scmam.study.progress import Silent
        from scmam.study.queue import run_tasks
        from scmam.study.tasks import Task
        folder = Path({str(tmp_path)!r})
        script = {f"OUT = {str(tmp_path / 'mam')!r}" + textwrap.dedent(worker)!r}
        with locked(folder) as lock:
            task = Task("mam", ("-c", script), folder / "log.txt", (folder / "mam",))
            run_tasks([task], [sys.executable], jobs=1, inherited=lock, watcher=Silent(), after=lambda: None)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(study)], env=_with_path())
    _wait_for(tmp_path / "mam.running")
    with (
        pytest.raises(
            RunError,
            match=rf"another process \(started by {process.pid}\) computes this study; wait for it",
        ),
        locked(tmp_path, 0.3),
    ):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path, patience=20):
        assert (tmp_path / "mam.saved").exists()


def _with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _wait_for(path: Path, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_the_stage_of_a_task_is_its_last_word_and_step(tmp_path):
    task = Task("mam", (), tmp_path / "log.txt", (), None, tmp_path / "metrics.csv", 300)
    assert stage(task) == ("starting", None)
    task.log.write_text(
        "--- 2026: mam\nstage: reading cells\nwarning: stage: no\nstage: pretraining\nmore\n"
    )
    assert stage(task) == ("pretraining", None)
    task.metrics.write_text("step,epoch,phase\n1,0,train\n27,1,train\n")
    assert stage(task) == ("pretraining", 27)
    with open(task.log, "a") as log:
        log.write("stage: evaluating\n")
    assert stage(task) == ("evaluating", None)
    with open(task.log, "a") as log:
        log.write("--- 2026: mam\n")
    assert stage(task) == ("starting", None)


def test_plain_progress_says_what_ends_and_what_is_left(tmp_path, run, capsys):
    tasks = [
        task(tmp_path, "uniform", WRITE),
        task(tmp_path, "mam", "raise SystemExit('error: no')"),
    ]
    with shown(2, progress=True) as watcher:
        run(tasks, jobs=1, watcher=watcher)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[0/2] uniform: started"
    assert lines[1].startswith("[1/2] uniform: done in 0 s (about ")
    assert lines[3] == "[2/2] mam: FAILED: no"


def test_plain_progress_shows_what_is_running_now_and_then(tmp_path, capsys, monkeypatch):
    lines = Lines(3)
    task = Task("mam", (), tmp_path / "log.txt", (), None, tmp_path / "metrics.csv", 300)
    task.log.write_text("stage: pretraining\n")
    task.metrics.write_text("step,epoch\n27,1\n")
    lines.tick({task: 61.0})
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("scmam.study.progress.HEARTBEAT", 0.0)
    lines.tick({task: 61.0})
    assert capsys.readouterr().out == "[0/3] mam: pretraining, step 27 of 300, 61 s\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to make here")
def test_bars_on_a_terminal(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from scmam.study.progress import Outcome, shown
        from scmam.study.tasks import Task
        folder = Path({str(tmp_path)!r})
        task = Task("mam", (), folder / "log.txt", (), None, folder / "metrics.csv", 300)
        task.log.write_text("stage: pretraining\\n")
        task.metrics.write_text("step,epoch\\n27,1\\n")
        with shown(2, progress=True) as watcher:
            watcher.started(task)
            watcher.last -= 1
            watcher.tick({{task: 1.0}})
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
    with contextlib.suppress(OSError):  # the end of a terminal that nobody writes to any more
        while more := os.read(terminal, 4096):
            shown += more
    os.close(terminal)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "mam: pretraining" in text
    assert "27/300" in text
    assert "[1/2] mam: FAILED: it is [broken]" in text


def test_no_progress_prints_nothing(tmp_path, run, capsys):
    with shown(1, progress=False) as watcher:
        run([task(tmp_path, "uniform", WRITE)], watcher=watcher)
    assert capsys.readouterr().out == ""
