"""Measuring: interleaved timing on a cold cache, peak memory of a call, and the machine that it was
done on.
"""

import contextlib
import ctypes
import datetime
import gc
import itertools
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from .._core import extension

# Assumed where the machine does not tell the size of its last-level cache.
TYPICAL_CACHE_BYTES = 64 * 2**20
SMALLEST_SAMPLE_SECONDS = 20e-3  # a sample on the CPU repeats a short call until it lasts this long


@dataclass(frozen=True)
class Contender:
    """One thing to time: a function, and input sets to take turns with, so that no call finds its
    inputs in the cache.

    `calls` is how many calls of interest one call of `function` stands for.
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
    first: float | None = (
        # median of the first call of each sample, which finds other work's data in the caches;
        # None: not known
        None
    )

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


@dataclass(frozen=True)
class Peak:
    """The most memory, in bytes, that a call held beyond its inputs and outputs; None where the
    machine cannot tell.
    """

    bytes: int | None
    method: str


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
    sample is one call between two events, after another array was read through the L2 cache; on
    the CPU a sample
    repeats a short call, input sets take turns, and the first call of each sample, which comes
    right after another contender's work, is also reported by itself.
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
            seconds_a_call, seconds_of_first = sampler(
                contender.function, inputs[name], repeats[name]
            )
            taken[name].append(seconds_a_call / contender.calls)
            first[name].append(seconds_of_first / contender.calls)
    method = (
        "CUDA events, another array read before each call"
        if device.type == "cuda"
        else "wall clock, rotating inputs"
    )
    return {
        name: summarize(
            taken[name],
            repeats[name],
            f"interleaved, {method} ({len(contenders[name].inputs)} input sets)",
            first[name],
        )
        for name in contenders
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
    fifths = (
        statistics.quantiles(samples, n=5, method="inclusive")
        if len(samples) > 1
        else [samples[0]] * 4
    )
    median_of_first = statistics.median(first) if first else None
    return Timing(
        statistics.median(samples),
        fifths[0],
        fifths[-1],
        tuple(samples),
        calls_per_sample,
        method,
        median_of_first,
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


def last_level_cache_bytes() -> int:
    """Size of the CPU's largest cache, or a typical one where the machine does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in units
    ]
    return max(sizes, default=TYPICAL_CACHE_BYTES)


def peak_memory(
    function: Callable[..., object],
    inputs: tuple = (),
    *,
    small_inputs: tuple | None = None,
    device: torch.device | str = "cpu",
) -> Peak:
    """Measure the memory that one call of `function(*inputs)` holds at its peak, beyond its inputs
    and its outputs.

    A call on `small_inputs` goes first and takes what is taken once for all, such as thread pools.
    Outputs are the tensors that the function returns. On the GPU this is the allocator's own count.
    On the CPU it is the kernel's high-water mark of resident memory (Linux), reset just before the
    call once free heap pages have been given back; elsewhere the resident size is sampled.
    """
    device = torch.device(device)
    if small_inputs is not None:
        function(*small_inputs)
    gc.collect()
    if device.type == "cuda":
        return _cuda_peak(function, inputs, device)
    _return_free_pages()
    before = _resident_bytes()
    if before is None:
        return Peak(None, "not measurable on this system")
    with _high_water() as high_water:
        result = function(*inputs)
    return Peak(max(0, high_water.bytes - before - tensor_bytes(result)), high_water.method)


def _cuda_peak(function: Callable, inputs: tuple, device: torch.device) -> Peak:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function(*inputs)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before - tensor_bytes(result)
    return Peak(max(0, peak), "torch.cuda.max_memory_allocated")


def tensor_bytes(result: object) -> int:
    """Bytes of memory behind the tensors of a (nested) result; what several of them share counts
    once.
    """
    return sum(dict(_pieces(result)).values())


def _pieces(result: object) -> Iterator[tuple[int, int]]:
    """Address and bytes of each piece of memory."""
    if isinstance(result, torch.Tensor) and result.layout is torch.sparse_csr:
        for part in (result.crow_indices(), result.col_indices(), result.values()):
            yield part.data_ptr(), part.nbytes
    elif isinstance(result, torch.Tensor):
        yield result.untyped_storage().data_ptr(), result.untyped_storage().nbytes()
    elif isinstance(result, Mapping):
        yield from _pieces(tuple(result.values()))
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _pieces(item)


class _HighWater:
    bytes: int = 0
    method: str = ""


@contextlib.contextmanager
def _high_water() -> Iterator[_HighWater]:
    mark = _HighWater()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        mark.method = "resident size, sampled every 0.2 ms"
        with _sampled_high_water(mark):
            yield mark
        return
    mark.method = "VmHWM of the process, reset before the call"
    yield mark
    mark.bytes = _status_bytes("VmHWM")


@contextlib.contextmanager
def _sampled_high_water(mark: _HighWater) -> Iterator[None]:
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(2e-4):
            mark.bytes = max(mark.bytes, _resident_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        mark.bytes = max(mark.bytes, _resident_bytes() or 0)


def _resident_bytes() -> int | None:
    try:
        return _status_bytes("VmRSS")
    except OSError:
        return None


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _return_free_pages() -> None:
    """Hand the allocator's free pages back, so that memory which the call reuses is counted as well
    (glibc only).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def environment(device: torch.device | str = "cpu") -> dict:
    """What a measurement needs to be understood later: device, cores, threads, instruction set,
    versions, date.
    """
    device = torch.device(device)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions("mam-kernels", "torch", "triton", "numpy"),
        "native": extension.build_info(),
    }
    if device.type == "cuda":
        report["gpu"] = _gpu(device)
    return report


def load_average() -> float | None:
    """Processes that wanted a core, on average over the last minute; None where the system does not
    tell.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"torch": torch.__version__}


def _gpu(device: torch.device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
