"""The host side that the Triton launchers share."""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton runs its kernels in the interpreter; it decides that when a kernel is defined."""

BEFORE_3_7 = tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 7)
"""Whether Triton is older than 3.7, which orders instructions otherwise: the assembler then spills
registers under other limits and of other tiles.
"""

_NO_DEVICE_CHANGE = contextlib.nullcontext()

SMALLEST_ROW_BLOCK = 256


class RowConfiguration(NamedTuple):
    """How a kernel that gives each row a program is launched; what it computes does not depend on
    it but for the rounding of sums.

    Chosen from the machine code, not measured: what is summed over a block costs by its warps, so
    few of them count 73 us at 512 rows of 20,000 where 16 count 180; 200 registers spill none, and
    leave two programs a multiprocessor.
    """

    warps: int = 4
    registers: int = 200  #: at most so many a thread
    block: int = 1024  #: positions at a time, at most
    series_block: int = 512  #: slopes, or values, whose power series are summed at a time


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches inside go to ``device``: Triton takes the current one, whatever its arguments live
    on.
    """
    if device.type != "cuda" or device.index is None or device.index == torch.cuda.current_device():
        return _NO_DEVICE_CHANGE
    return torch.cuda.device(device)


def row_options(num_positions: int) -> tuple[RowConfiguration, dict[str, int]]:
    """How a kernel with a program for each row is launched; as its configuration, ``block`` fitted
    to the row, and as launch options.
    """
    default = RowConfiguration()
    fitting = max(triton.next_power_of_2(num_positions), SMALLEST_ROW_BLOCK)
    chosen = default._replace(block=min(fitting, default.block))
    # no loop over a row is pipelined: with one stage Triton does not look for what could be
    return chosen, {"num_warps": chosen.warps, "num_stages": 1, **register_limit(chosen.registers)}


def is_amd() -> bool:
    """Whether kernels are compiled for AMD GPUs."""
    return torch.version.hip is not None


def register_limit(registers: int | None) -> dict[str, int]:
    """The launch option that lets NVIDIA's assembler use so many registers a thread: left alone, it
    spills a few for occupancy.
    """
    return {} if is_amd() or registers is None else {"maxnreg": registers}


def word(x: Tensor | int) -> tuple[int, Tensor | None]:
    """A seed or step as (value, pointer): by value from the host, by pointer from a device, whose
    content the host must not wait for.
    """
    return (0, x) if isinstance(x, Tensor) and x.device.type != "cpu" else (int(x), None)


def float32_parts(x: float) -> tuple[float, float, float]:
    """Three numbers of float32 whose sum is x: kernels take no float64."""
    parts = []
    for _ in range(3):
        parts.append(float(torch.tensor(x, dtype=torch.float32)))
        x -= parts[-1]
    return tuple(parts)


def strides(x: Tensor | None, dims: int) -> tuple[int, ...]:
    """The strides of an optional tensor, in elements."""
    return (0,) * dims if x is None else x.stride()


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least; in the interpreter, a number that lets small
    tests split rows and large ones not.
    """
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 16
    )


@functools.cache
def architecture(device: torch.device) -> int:
    """The generation of an NVIDIA GPU: 80, 90, 100; 90 where none is at hand."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have there."""
    kibibytes = {80: 163, 86: 99, 87: 163, 89: 99}.get(architecture(device))
    return 1024 * (kibibytes or (227 if 90 <= architecture(device) < 120 else 99))
