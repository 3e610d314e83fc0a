"""The most memory that a call holds beyond its inputs and outputs."""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Peak:
    """The most memory, in bytes, that a call held beyond its inputs and outputs; None where the
    machine cannot tell.
    """

    bytes: int | None
    method: str


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
    """Return the allocator's free pages to the system, so that memory which the call reuses is
    counted too (glibc only).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
