"""Interleaved timing on a cold cache."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .machine import last_level_cache_bytes

SMALLEST_SAMPLE_SECONDS = 20e-3  # a sample on the CPU repeats a short call until it lasts this long


@dataclass(frozen=True)
class Contender:
    """One thing to time: a function, and input sets that take turns, so that no call finds its
    inputs in the cache.

    `calls` is how many calls of interest one call of `function` makes.
    """

    function: Callable[..., object]
    inputs: Sequence[tuple] = ((),)
    calls: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over interleaved samples."""

    median: float
    p20: float
    p80: float
    samples: tuple[float, ...] = field(repr=False)
    calls_per_sample: int = 1
    method: str = ""
    #: median of the first call of each sample, which finds other data in the caches; None: unknown
    first: float | None = None

    @property
    def spread(self) -> float:
        """Width of the middle 60 % of the samples, relative to the median."""
        return (self.p80 - self.p20) / self.median

    def record(self, units: int = 1) -> dict:
        """As plain data for a JSON file, per unit (say, per cell) of the `units` that one call
        processes.
        """
        return {
            "median_us": self.median / units * 1e6,
            "p20_us": self.p20 / units * 1e6,
            "p80_us": self.p80 / units * 1e6,
            "first_call_us": None if self.first is None else self.first / units * 1e6,
            "samples": len(self.samples),
            "calls_per_sample": self.calls_per_sample,
            "method": self.method,
        }


def time_interleaved(
    contenders: Mapping[str, Contender],
    *,
    device: torch.device | str = "cpu",
    samples: int = 7,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Time the contenders in turns, A B A B ..., so that a slow phase of the machine meets all of
    them.

    Takes `samples` rounds, or fewer (but at least three) when `seconds` have passed. On a GPU each
    sample is one call between two events, after another array was read through the L2 cache. On
    the CPU a sample repeats a short call, and input sets take turns. The first call of each sample,
    which follows another contender's work, is also reported by itself.
    """
    device = torch.device(device)
    sampler = _cuda_sampler(device) if device.type == "cuda" else _cpu_sampler
    inputs = {name: itertools.cycle(contender.inputs) for name, contender in contenders.items()}
    for name, contender in contenders.items():
        contender.function(*next(inputs[name]))
    _synchronize(device)
    repeats = {
        name: _repeats(contender, inputs[name], device) for name, contender in contenders.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, list[float]] = {name: [] for name in contenders}
    end = None if seconds is None else time.perf_counter() + seconds
    for done in range(samples):
        if done >= 3 and end is not None and time.perf_counter() > end:
            break
        for name, contender in contenders.items():
            each, earliest = sampler(contender.function, inputs[name], repeats[name])
            taken[name].append(each / contender.calls)
            first[name].append(earliest / contender.calls)
    method = "interleaved, wall clock, rotating inputs"
    if device.type == "cuda":
        method = "interleaved, CUDA events, another array read before each call"
    return {
        name: summarize(
            taken[name], repeats[name], f"{method} ({len(one.inputs)} input sets)", first[name]
        )
        for name, one in contenders.items()
    }


def summarize(
    samples: Sequence[float],
    calls_per_sample: int = 1,
    method: str = "",
    first: Sequence[float] = (),
) -> Timing:
    """Median and the 20th and 80th percentiles of samples in seconds a call, and the median of
    their first calls.
    """
    fifths = [samples[0]] * 4
    if len(samples) > 1:
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(
        median=statistics.median(samples),
        p20=fifths[0],
        p80=fifths[-1],
        samples=tuple(samples),
        calls_per_sample=calls_per_sample,
        method=method,
        first=statistics.median(first) if first else None,
    )


def _cpu_sampler(function: Callable, inputs: Iterator[tuple], repeats: int) -> tuple[float, float]:
    """Seconds a call, and those of the first one."""
    start = time.perf_counter()
    function(*next(inputs))
    after_first = time.perf_counter()
    for _ in range(repeats - 1):
        function(*next(inputs))
    return (time.perf_counter() - start) / repeats, after_first - start


def _cuda_sampler(
    device: torch.device,
) -> Callable[[Callable, Iterator[tuple], int], tuple[float, float]]:
    # Read, not written: dirty lines would be written back while the call is timed.
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.ones(size // 4, dtype=torch.float32, device=device)
    total = torch.empty((), device=device)

    def sample(function: Callable, inputs: Iterator[tuple], repeats: int) -> tuple[float, float]:
        arguments = next(inputs)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.sum(flush, dim=0, out=total)
        start.record()
        function(*arguments)
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) * 1e-3
        return seconds, seconds

    return sample


def _repeats(contender: Contender, inputs: Iterator[tuple], device: torch.device) -> int:
    if device.type == "cuda":
        return 1
    shortest = min(_cpu_sampler(contender.function, inputs, 1)[1] for _ in range(3))
    return max(1, round(SMALLEST_SAMPLE_SECONDS / shortest))


def as_cuda_graph(contender: Contender) -> Contender:
    """Capture one call on each input set in a single CUDA graph: its replay is the time of the
    kernels, without that of launching.
    """

    def call_all() -> None:
        for arguments in contender.inputs:
            contender.function(*arguments)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call_all()
        call_all()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call_all()
    return Contender(graph.replay, calls=len(contender.inputs))


def host_seconds(contender: Contender, device: torch.device | str, calls: int = 200) -> Timing:
    """Seconds that the host spends on a call before it can go on; on a GPU, without waiting for the
    result.
    """
    device = torch.device(device)
    inputs = itertools.cycle(contender.inputs)
    samples = []
    for _ in range(calls):
        _synchronize(device)
        start = time.perf_counter()
        contender.function(*next(inputs))
        samples.append(time.perf_counter() - start)
    return summarize(samples, 1, "wall clock on the host, device idle before each call")


def input_sets(make: Callable[[int], tuple], bytes_per_set: int, *, limit: int = 64) -> list[tuple]:
    """`make(0)`, `make(1)`, ...: as many input sets as exceed the last-level cache twice over, at
    least two and at most `limit`.
    """
    count = -(-2 * last_level_cache_bytes() // max(1, bytes_per_set)) + 1
    return [make(index) for index in range(max(2, min(limit, count)))]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
