"""The shim that runs CUDA sources on the host: what it computes, and that it reports what would
hang or be undefined on a GPU.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda_shim import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
THREADS = 64


def samples(folder: Path) -> ctypes.CDLL:
    """sample_kernels.cu, built with the flags that the environment asks for."""
    library, sources = folder / "samples.so", Path(__file__).parent
    objects = []
    for name in ("sample_kernels.cu", "scheduler.cpp", "races.cpp"):
        objects.append(str(folder / f"{name}.o"))
        flags = ["-x", "c++", "-c", str(sources / name), "-o", objects[-1]]
        command = [*build.command(), *build.instrumented(sources / name), *flags]
        subprocess.run(command, check=True)
    subprocess.run([build.command()[0], "-shared", *objects, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def caller(library: ctypes.CDLL) -> Callable:
    """Runs a kernel of sample_kernels.cu: (message, output)."""
    function = library.run
    function.restype = ctypes.c_char_p

    def call(name: str, threads: int = THREADS, shared_bytes: int = 0) -> tuple[str, list[int]]:
        out = (ctypes.c_int * THREADS)()
        message = function(name.encode(), out, threads, ctypes.c_long(shared_bytes))
        return message.decode(), list(out)

    return call


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return samples(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def run(library) -> Callable:
    return caller(library)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Callable:
    """The same, with the detector of races."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAM_SHIM_RACES", "1")
        return caller(samples(tmp_path_factory.mktemp("races")))


def test_barriers_and_ballots(run):
    message, out = run("rank_odd")
    assert message == ""
    assert out == [thread // 2 * 1000 + THREADS // 2 for thread in range(THREADS)]


def test_warp_operations(run):
    message, out = run("warp_operations")
    assert message == ""
    for thread, value in enumerate(out):
        lane = thread % 32
        shifted = min(lane + 1, 31) - max(lane - 1, 0)
        assert value == 496 + 1000 * shifted + 30000 + 100000 * (8 if lane < 16 else 16)


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("missing_thread", "thread 5 has finished"),
        ("divergent_barrier", "thread 0 waits at a barrier"),
        ("missing_lane", "thread 0 waits for its warp"),
    ],
)
def test_reports_what_would_hang(run, kernel, report):
    message, _ = run(kernel)
    assert message.startswith(f"{kernel}: block 0 cannot go on")
    assert report in message
    assert run("rank_odd")[0] == ""  # the next launch starts anew


def test_the_order_of_threads_shows_a_missing_barrier(run, monkeypatch):
    outcomes = set()
    for order in ("forward", "reverse", "1"):
        monkeypatch.setenv("MAM_SHIM_ORDER", order)
        outcomes.add(tuple(run("race")[1]))
    assert len(outcomes) > 1


def test_dynamic_shared_memory(run):
    assert run("uses_dynamic_shared", shared_bytes=4 * THREADS) == ("", list(range(THREADS))[::-1])
    message, _ = run("uses_dynamic_shared", shared_bytes=1 << 20)
    assert "invalid configuration" in message


def test_too_many_threads(run):
    assert "invalid configuration" in run("rank_odd", threads=1056)[0]


def test_barriers_are_counted(run, library):
    run("three_barriers")
    assert library.mam_shim_barriers() == 3
    run("race")
    assert library.mam_shim_barriers() == 1


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("race", "shared memory that"),
        ("race_in_a_warp", "shared memory that thread"),
        ("write_after_read", "shared memory that"),
        ("race_in_global_memory", "global memory that"),
        ("race_between_blocks", "global memory that block 0 wrote"),
        ("no_fence_between_blocks", "reads global memory that block 0 wrote"),
    ],
)
def test_planted_races_are_found(watched, monkeypatch, kernel, report):
    for order in ("forward", "reverse", "7"):  # whichever order hides the race from the results
        monkeypatch.setenv("MAM_SHIM_ORDER", order)
        message, _ = watched(kernel)
        assert report in message


@pytest.mark.parametrize(
    "kernel",
    [
        "rank_odd",
        "warp_operations",
        "ordered_in_a_warp",
        "neighbouring_bytes",
        "atomics",
        "ordered_between_blocks",
        "three_barriers",
    ],
)
def test_what_is_ordered_is_no_race(watched, kernel):
    assert watched(kernel)[0] == ""


def test_atomics(run):
    assert run("atomics") == ("", [THREADS] * THREADS)


def test_the_detector_is_asked_for(run):
    assert run("race")[0] == ""
