"""The measuring itself is measured: known times, known memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mam_kernels.testing import machine, measure, memory
from mam_kernels.testing.measure import Contender

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


class Clock:
    """A clock that shows the time that was slept, whatever else the machine does."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(measure, "time", clock := Clock())
    return clock


def test_times_a_known_wait():
    timing = measure.time_interleaved({"wait": Contender(lambda: time.sleep(0.005))}, samples=5)[
        "wait"
    ]
    assert timing.median >= 0.005
    assert timing.p20 <= timing.median <= timing.p80
    assert len(timing.samples) == 5


def test_takes_turns_and_rotates_the_inputs(clock):
    calls = []
    contenders = {
        name: Contender(
            lambda x, name=name: (calls.append((name, x)), clock.sleep(0.02)), [(0,), (1,), (2,)]
        )
        for name in "ab"
    }
    measure.time_interleaved(contenders, samples=4)
    timed = calls[-8:]
    assert [name for name, _ in timed] == list("abababab")
    assert [x for name, x in timed if name == "a"] in ([0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2])


def test_repeats_short_calls():
    timing = measure.time_interleaved({"short": Contender(lambda: None)}, samples=3)["short"]
    assert timing.calls_per_sample > 100


def test_reports_the_first_call_of_a_sample_by_itself(clock):
    # One call to begin with, three to find how many make a sample, then three samples.
    slow = iter([0.0] * 4 + [0.008, 0.0, 0.0, 0.0] * 3)
    timing = measure.time_interleaved(
        {"some": Contender(lambda: clock.sleep(0.005 + next(slow)))}, samples=3
    )["some"]
    assert timing.calls_per_sample == 4
    assert (timing.first, timing.median) == pytest.approx((0.013, 0.007))
    assert timing.record()["first_call_us"] == timing.first * 1e6


def test_counts_the_calls_that_a_call_stands_for(clock):
    timings = measure.time_interleaved(
        {
            "one": Contender(lambda: clock.sleep(0.004)),
            "four": Contender(lambda: clock.sleep(0.004), calls=4),
        },
        samples=3,
    )
    assert timings["four"].median == pytest.approx(timings["one"].median / 4)


@pytest.mark.parametrize(("seconds", "samples"), [(0.0, 3), (0.09, 5)])
def test_stops_after_the_seconds_but_not_before_three_samples(seconds, samples, clock):
    timing = measure.time_interleaved(  # 0.02 s a sample
        {"wait": Contender(lambda: clock.sleep(0.01))}, samples=50, seconds=seconds
    )["wait"]
    assert len(timing.samples) == samples


def test_summary_of_one_sample():
    timing = measure.summarize([2.0])
    assert (timing.p20, timing.median, timing.p80, timing.spread) == (2.0, 2.0, 2.0, 0.0)


def hold(scratch_mib: int) -> torch.Tensor:
    """Return 16 MiB, holding `scratch_mib` more on the way."""
    scratch = torch.ones(scratch_mib * MIB, dtype=torch.int8)
    return scratch[:1].expand(16 * MIB).clone()


@pytest.mark.parametrize("scratch_mib", [32, 128])
def test_peak_memory_is_what_was_held_beyond_the_outputs(scratch_mib):
    # In a process of its own: the heap that other tests leave may serve a part of it.
    program = (
        "from mam_kernels.testing import memory; from tests.engine.test_measure import hold; "
        f"print(memory.peak_memory(hold, ({scratch_mib},), small_inputs=(1,)).bytes)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    if run.stdout.strip() == "None":
        pytest.skip("not measurable on this system")
    assert int(run.stdout) == pytest.approx(scratch_mib * MIB, rel=0.1)


def test_peak_memory_counts_what_was_freed_before():
    kept = [torch.ones(MIB // 4) for _ in range(64)]
    # The allocator may keep these pages; a call that takes them again must be charged for them.
    del kept
    peak = memory.peak_memory(hold, (32,), small_inputs=(1,))
    if peak.bytes is None:
        pytest.skip(peak.method)
    assert peak.bytes == pytest.approx(32 * MIB, rel=0.2)


def test_peak_memory_by_sampling(monkeypatch):
    if memory._resident_bytes() is None:
        pytest.skip("not measurable on this system")

    def refuse(self, text):
        raise PermissionError("read-only")

    samples, resident = [], memory._resident_bytes
    monkeypatch.setattr(memory.Path, "write_text", refuse)
    monkeypatch.setattr(memory, "_resident_bytes", lambda: samples.append(1) or resident())

    def hold_until_it_was_seen() -> torch.Tensor:
        scratch, before = torch.ones(64 * MIB, dtype=torch.int8), len(samples)
        while len(samples) < before + 2:
            time.sleep(1e-3)
        return scratch[:1].clone()

    peak = memory.peak_memory(hold_until_it_was_seen)
    assert "sampled" in peak.method
    assert peak.bytes == pytest.approx(64 * MIB, rel=0.2)


def test_bytes_of_outputs_count_storages_once():
    x = torch.zeros(10)
    sparse = torch.eye(4).to_sparse_csr()
    assert memory.tensor_bytes({"a": x, "b": [x, x[2:]], "c": None}) == 40
    assert memory.tensor_bytes(sparse) == 5 * 8 + 4 * 8 + 4 * 4


def test_input_sets_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 10 * MIB)
    assert len(measure.input_sets(lambda seed: seed, MIB)) == 21
    assert measure.input_sets(lambda seed: seed, 100 * MIB) == [0, 1]
    assert len(measure.input_sets(lambda seed: seed, 1, limit=8)) == 8


def test_environment_is_plain_data():
    report = json.loads(json.dumps(machine.environment()))
    assert report["versions"]["torch"] == torch.__version__
    assert report["threads"] == torch.get_num_threads()
    assert {"date", "cpu", "cores", "instruction_set", "native"} <= set(report)


def test_records_are_per_unit():
    record = measure.summarize([1e-3, 2e-3, 3e-3], 7, "by hand").record(units=10)
    assert record["median_us"] == pytest.approx(200.0)
    assert record["calls_per_sample"] == 7
