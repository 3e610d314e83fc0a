"""Files and folders that are whole or not there, and the exclusive use of a folder."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam.errors import RunError
from scmam.storage import (
    alone,
    new_file,
    new_folder,
    read_json,
    remove_unfinished,
    require_writable,
    write_file,
    writing,
)
from scmam.training.timing import StepTimes


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def in_a_process(script: str) -> subprocess.Popen:
    """Python with this one's path; it has written a line when this returns."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_file(path, "Gr\u00fc\u00dfe\n")
    assert path.read_text(encoding="utf-8") == "Gr\u00fc\u00dfe\n"
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(IsADirectoryError), new_file(path) as beside:
        tmp_path.write_text(str(beside.write_text("half")))
    assert path.read_text(encoding="utf-8") == "Gr\u00fc\u00dfe\n"
    assert names(path.parent) == {"file.txt"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    for content in ("first", "second"):
        with new_folder(path) as beside:
            (beside / content).write_text(content)
        assert names(path) == {content}
    with pytest.raises(IsADirectoryError), new_folder(path) as beside:
        beside.write_text(str((beside / "third").touch()))
    assert names(path) == {"second"}
    assert names(tmp_path) == {"folder"}
    path.chmod(0o755)
    (tmp_path / "file").touch()
    with pytest.raises(OSError), new_folder(tmp_path / "file"):
        pass
    assert names(tmp_path) == {"folder", "file"}


def test_a_long_name(tmp_path):
    write_file(tmp_path / ("x" * 250), "there")
    assert names(tmp_path) == {"x" * 250}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, kind):
    script = f"""
        import time
        from pathlib import Path
        from scmam.storage import new_file, new_folder
        with new_{kind}(Path({str(tmp_path / "last.ckpt")!r})) as beside:
            print("ready", flush=True)
            time.sleep(60)
    """
    killed, alive = in_a_process(script), in_a_process(script)
    assert len(names(tmp_path)) == 2
    killed.kill()
    killed.wait()
    write_file(tmp_path / "other", "there")
    (left,) = names(tmp_path) - {"other"}  # that of the one that is still at it
    alive.kill()
    alive.wait()
    assert left in names(tmp_path)
    remove_unfinished(tmp_path, tmp_path / "missing")
    assert names(tmp_path) == {"other"}


def test_only_one_at_a_time(tmp_path):
    script = f"""
        import time
        from pathlib import Path
        from scmam.storage import alone
        with alone(Path({str(tmp_path / "lock")!r}), "held"):
            print("ready", flush=True)
            time.sleep(60)
    """
    process = in_a_process(script)
    message = rf"^x held by {process.pid}$"
    with pytest.raises(RunError, match=message), alone(tmp_path / "lock", "x held by {owner}"):
        pass
    begin = time.monotonic()
    with pytest.raises(RunError), alone(tmp_path / "lock", "held", patience=30):
        pass
    assert time.monotonic() - begin < 15  # its owner lives: there is nothing to wait for
    process.send_signal(signal.SIGKILL)  # the system lets go of it
    process.wait()
    with alone(tmp_path / "lock", "held"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert names(tmp_path) == set()


def test_what_a_killed_owner_started_is_waited_for(tmp_path):
    script = f"""
        import subprocess, sys
        from pathlib import Path
        from scmam.storage import alone
        with alone(Path({str(tmp_path / "lock")!r}), "held") as lock:
            sleep = "import time; time.sleep(2)"
            silent = dict(pass_fds=[lock], stdout=subprocess.DEVNULL)
            subprocess.Popen([sys.executable, "-c", sleep], **silent)
            print("ready", flush=True)
            sys.stdin.read()
    """
    process = in_a_process(script)
    process.kill()
    process.wait()
    with pytest.raises(RunError), alone(tmp_path / "lock", "held", patience=0.1):
        pass
    with alone(tmp_path / "lock", "held", patience=30):
        pass


def test_a_lock_that_its_owner_removes_is_not_shared(tmp_path):
    """Who opened the file before it was removed holds nothing when its owner lets go of it."""
    with alone(tmp_path / "lock", "held"):
        (tmp_path / "lock").unlink()
        with alone(tmp_path / "lock", "held"):
            assert (tmp_path / "lock").exists()


def test_a_place_that_cannot_be_written_to_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    message = r"^place: cannot be written \(.*\); make room$"
    with pytest.raises(RunError, match=message), writing("place", "make room"):
        require_writable(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="no name") as error, writing("place", "make room"):
        raise OSError("a defect, which has no name")
    assert not isinstance(error.value, RunError)
    require_writable(tmp_path / "folder")
    assert names(tmp_path / "folder") == set()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_damage(tmp_path, number):
    path = tmp_path / "run.json"
    path.write_text('{"status": "done", "seconds": %s}' % number)  # noqa: UP031
    with pytest.raises(
        RunError, match=r"run\.json: damaged \(expected finite numbers; got .*\); do"
    ):
        read_json(path, "do it again")


@pytest.mark.parametrize(
    "changed",
    [{"times": 3}, {"times": {}}, {"times": {"step_ms": ["a"]}}, {"seconds": None},
     {"seconds": float("nan")}],
)  # fmt: skip
def test_times_of_a_checkpoint_that_are_none_are_refused(changed):
    times = StepTimes()
    kept = times.state_dict()
    with pytest.raises((TypeError, ValueError, KeyError)):
        times.load_state_dict({**kept, **changed})
    assert times.state_dict() == kept
    times.load_state_dict(kept)
