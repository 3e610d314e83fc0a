"""The driver of the measurements on a GPU: a stage that hangs, crashes or raises loses nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import PATHS, driver, launch_shapes
from benchmarks.gpu import __main__ as main
from benchmarks.gpu.__main__ import SECONDS, plan
from benchmarks.gpu.driver import Background, Stage
from benchmarks.machine_code import paths
from benchmarks.machine_code.launches import kernels, recording

ROOT = Path(__file__).resolve().parents[1]


def stage(name: str, program: str, seconds: float = 20, **options) -> Stage:
    code = f"from benchmarks.gpu.driver import record\n{program}"
    return Stage(
        name, [sys.executable, "-c", code], 1.0, seconds, {"PYTHONPATH": str(ROOT)}, **options
    )


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
run([Stage("one", [sys.executable, "-c", code], 1, 600, {{"PYTHONPATH": {str(ROOT)!r}}})],
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


def test_a_stage_that_waits_imports_while_the_one_before_it_runs(tmp_path):
    program = """
import time
from benchmarks.gpu.driver import wait_for_turn
started = time.time()
wait_for_turn()
record(started=started, began=time.time())
time.sleep(2)
record(done=time.time())
"""
    stages = [stage(name, program, waits=True) for name in ("first", "second", "third")]
    endings = driver.run(stages, tmp_path, seconds=60)
    assert [ending["ended"] for ending in endings] == ["ok"] * 3
    records = driver.read(tmp_path / "gpu.jsonl")
    for before, after in zip(records[:-3:3], records[3::3], strict=True):
        assert after["stage"] != before["stage"]
    started, began, done = (
        [record[key] for record in records if key in record] for key in ("started", "began", "done")
    )
    for n in range(2):
        assert started[n + 1] < done[n] < began[n + 1]


def test_a_stage_that_dies_or_is_too_late_while_it_waits(tmp_path):
    waits = "from benchmarks.gpu.driver import wait_for_turn"
    stages = [
        stage("first", "import time; time.sleep(2)"),
        stage("dies", f"{waits}; import os; os.abort()", waits=True),
        stage("is killed", f"{waits}; wait_for_turn(); import time; time.sleep(60)", 2, waits=True),
        stage("is late", f"{waits}; wait_for_turn(); record(late=True)", waits=True),
    ]
    endings = driver.run(stages[:3], tmp_path, seconds=60)
    assert [x["ended"] for x in endings] == ["ok", "crashed: SIGABRT", "killed after 2 s"]
    endings = driver.run([stages[0], stages[3]], tmp_path, seconds=driver.LEAST_SECONDS + 1)
    assert endings[1]["ended"] == "left out: no time left"
    assert not [record for record in driver.read(tmp_path / "gpu.jsonl") if "late" in record]


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


def test_the_measurements_are_rehearsed_on_the_cpu(tmp_path, monkeypatch, capsys):
    """Selection and inclusion at a tiny size, Triton by its interpreter, among stages that hang,
    crash and raise; `make gpu` runs the same stages on a GPU, and `--rehearse` all of them.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the driver changes it, and the folder
    monkeypatch.chdir(ROOT)
    planned, _ = plan(rehearse=True)
    names = ("selection, triton", "launch shape 0, selection", "inclusion_forward_backward, triton")
    measured = [next(x for x in planned if x.name == name) for name in names]
    stages = [
        stage("hangs", "import time; record(value=1); time.sleep(600)", seconds=4),
        measured[0],
        stage("crashes", "import os; record(value=2); os.abort()"),
        measured[1],
        stage("raises", "record(value=3); raise ValueError('no')"),
        measured[2],
    ]
    monkeypatch.setattr(main, "plan", lambda rehearse: (stages, None))
    assert main.main(["--rehearse", "--seconds=500", f"--out={tmp_path}"]) == 1
    records = json.loads((tmp_path / "gpu.json").read_text())
    log = (tmp_path / "gpu.log").read_text()
    endings = [record["ended"] for record in records if "ended" in record]
    expected = ["killed after 4 s", "ok", "crashed: SIGABRT", "ok", "failed: exit status 1", "ok"]
    assert endings == expected, log
    right = [record["path"] for record in records if record.get("right")]
    assert right == ["selection", "inclusion_forward_backward"]
    assert [record["value"] for record in records if "value" in record] == [1, 2, 3]
    taken = [x for x in records if "as_called_us" in x]
    early, timed, early_shape, shape, *_, of_both_passes = taken
    assert of_both_passes["bound_us"] > 0
    assert timed["as_called_us"] == early["as_called_us"] > 0
    assert "bound_us" in timed
    assert shape["shape"] == early_shape["shape"] == str({"num_warps": 2})
    table = capsys.readouterr().out
    assert table.count("selection, select_kernel {'num_warps': 2}") == 1
    assert "crashes: crashed: SIGABRT" in table


def test_every_path_and_backend_has_a_stage():
    stages, _ = plan(rehearse=False)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert {f"{path}, {backend}" for path in PATHS for backend in ("triton", "cuda")} <= set(names)
    first_of_cuda = next(n for n, stage in enumerate(stages) if stage.needs_background)
    assert all("triton" in name or name == "machine" for name in names[:first_of_cuda])
    assert sum(stage.planned for stage in stages) <= SECONDS
    assert all(stage.planned < stage.seconds for stage in stages)


def test_every_alternative_names_a_kernel_and_its_arguments():
    from triton.runtime.jit import KernelInterface

    options = {"num_warps", "num_stages", "maxnreg"}
    assert set(launch_shapes.ALTERNATIVES) <= set(PATHS)
    for alternatives in launch_shapes.ALTERNATIVES.values():
        assert 2 <= len(alternatives) <= 3
        for kernel, chosen in alternatives:
            function = kernels()[kernel]
            assert isinstance(function, KernelInterface)
            assert set(chosen) <= {*options, *function.arg_names}


@pytest.mark.parametrize("path", launch_shapes.ALTERNATIVES)
def test_other_launch_shapes_are_those_of_the_path(path):
    counted = next(known for known in paths.PATHS if known.name == path)
    for kernel, options in launch_shapes.ALTERNATIVES[path]:
        with recording() as recorded:
            with launch_shapes.applied(kernel, options) as launches:
                counted.triton()
            with_options = [x.variant for x in recorded if x.variant.kernel == kernel]
            recorded.clear()
            counted.triton()
            usual = [x.variant for x in recorded if x.variant.kernel == kernel]
        assert len(with_options) == len(usual) == len(launches) > 0
        assert with_options[0] != usual[0]  # it is another shape
        used = dict(with_options[0].constants) | dict(with_options[0].options)
        assert {name: used[name] for name in options} == options
