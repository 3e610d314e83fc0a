"""The shim that runs CUDA sources on the host: what it computes, and that it reports what would
hang or be undefined on a GPU.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_shim import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
THREADS = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a kernel of sample_kernels.cu: (message, output)."""
    library = tmp_path_factory.mktemp("shim") / "samples.so"
    folder = Path(__file__).parent
    sources = [str(folder / "sample_kernels.cu"), str(folder / "scheduler.cpp")]
    subprocess.run(
        [*build.command(), "-shared", "-x", "c++", *sources, "-o", str(library)], check=True
    )
    function = ctypes.CDLL(str(library)).run
    function.restype = ctypes.c_char_p

    def call(name: str, threads: int = THREADS, shared_bytes: int = 0) -> tuple[str, list[int]]:
        out = (ctypes.c_int * THREADS)()
        message = function(name.encode(), out, threads, ctypes.c_long(shared_bytes))
        return message.decode(), list(out)

    return call


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
