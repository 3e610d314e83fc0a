"""The driver of the measurements on a GPU: a stage that hangs, crashes or raises loses nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import PATHS, driver
from benchmarks.gpu.__main__ import plan
from benchmarks.gpu.driver import Background, Stage

ROOT = Path(__file__).resolve().parents[1]


def stage(name: str, program: str, seconds: float = 20, **options) -> Stage:
    code = f"from benchmarks.gpu.driver import record\n{program}"
    return Stage(name, [sys.executable, "-c", code], seconds, {"PYTHONPATH": str(ROOT)}, **options)


def test_each_stage_ends_by_itself_and_every_record_is_kept(tmp_path):
    stages = [
        stage("hangs", "import time; record(value=1); time.sleep(600)", seconds=4),
        stage("crashes", "import os; record(value=2); os.abort()"),
        stage("raises", "record(value=3); raise ValueError('no')"),
        stage("starts others", "import os; os.fork() or __import__('time').sleep(600)", seconds=4),
        stage("is fine", "record(value=4)"),
    ]
    began = time.monotonic()
    endings = driver.run(stages, tmp_path, seconds=60)
    assert time.monotonic() - began < 45
    assert [ending["ended"] for ending in endings] == [
        "killed after 4 s",
        "crashed: SIGABRT",
        "failed: exit status 1",
        "ok",
        "ok",
    ]
    records = driver.read(tmp_path / "gpu.jsonl")
    assert [record["value"] for record in records if "value" in record] == [1, 2, 3, 4]
    assert "ValueError: no" in (tmp_path / "gpu.log").read_text()
    left = subprocess.run(["pgrep", "-f", "import os; os.fork"], capture_output=True, check=False)
    assert left.stdout == b""


def test_the_time_for_all_is_kept(tmp_path):
    stages = [stage(f"sleeps {n}", "import time; time.sleep(600)", seconds=5) for n in range(4)]
    began = time.monotonic()
    endings = [ending["ended"] for ending in driver.run(stages, tmp_path, seconds=8)]
    assert time.monotonic() - began < 15
    assert endings[0] == "killed after 5 s"
    assert endings[-1] == "left out: no time left"


def test_a_driver_that_is_killed_leaves_its_records(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.driver import Stage, run
code = "from benchmarks.gpu.driver import record; import time; record(value=7); time.sleep(600)"
run([Stage("one", [sys.executable, "-c", code], 600, {{"PYTHONPATH": {str(ROOT)!r}}})],
    Path({str(tmp_path)!r}), 600)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    records = tmp_path / "gpu.jsonl"
    end = time.monotonic() + 30
    while not (records.is_file() and records.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert driver.read(records) == [{"stage": "one", "value": 7}]
    subprocess.run(["pkill", "-f", "record(value=7)"], check=False)


def test_a_record_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "gpu.jsonl").write_text('{"stage": "a", "value": 1}\n{"stage": "b", "val')
    assert driver.read(tmp_path / "gpu.jsonl") == [{"stage": "a", "value": 1}]


@pytest.mark.parametrize(
    ("status", "ended"), [(0, "ok"), (1, "left out: the build did not succeed")]
)
def test_what_needs_the_build_waits_for_it_and_is_left_out_where_it_fails(tmp_path, status, ended):
    code = f"import time; time.sleep(1); print('made'); raise SystemExit({status})"
    build = Background([sys.executable, "-c", code], 20, output_variable="MADE")
    needs = stage("needs it", "import os; record(made=os.environ['MADE'])", needs_background=True)
    before = stage("does not", "record(made='no')")
    endings = driver.run([before, needs], tmp_path, seconds=40, background=build)
    assert [ending["ended"] for ending in endings] == ["ok", ended]
    made = [record["made"] for record in driver.read(tmp_path / "gpu.jsonl") if "made" in record]
    assert made == (["no", "made"] if status == 0 else ["no"])


def test_the_measurements_are_rehearsed_on_the_cpu(tmp_path):
    """At a tiny size, Triton by its interpreter; `make gpu` runs the same stages on a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--seconds=500"]
    done = subprocess.run(
        [*command, f"--out={tmp_path}", "--only=selection, triton"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "gpu.log").read_text()
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert [record["path"] for record in records if record.get("right")] == ["selection"]
    (timed,) = (record for record in records if "as_called_us" in record)
    assert timed["as_called_us"] > 0
    assert "selection" in done.stdout


def test_every_path_and_backend_has_a_stage():
    stages, _ = plan(rehearse=False)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert {f"{path}, {backend}" for path in PATHS for backend in ("triton", "cuda")} <= set(names)
    first_of_cuda = next(n for n, stage in enumerate(stages) if stage.needs_background)
    assert all("triton" in name or name == "machine" for name in names[:first_of_cuda])
    measured = [stage.seconds for stage in stages if stage.name.startswith(PATHS)]
    assert sum(measured) <= 420
