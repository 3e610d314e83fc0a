"""The host side that the Triton launchers share."""

import contextlib

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton runs its kernels in the interpreter; it decides that when a kernel is defined."""

_NO_DEVICE_CHANGE = contextlib.nullcontext()

LARGEST_ROW_BLOCK = 4096
SMALLEST_ROW_BLOCK = 256


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches inside go to ``device``: Triton takes the current one, whatever its arguments live on."""
    if device.type != "cuda" or device.index is None or device.index == torch.cuda.current_device():
        return _NO_DEVICE_CHANGE
    return torch.cuda.device(device)


def row_block(num_positions: int) -> int:
    """Positions that a program of 8 warps holds at a time: 16 a thread hide the latency of a row's passes, and more spill."""
    return min(max(triton.next_power_of_2(num_positions), SMALLEST_ROW_BLOCK), LARGEST_ROW_BLOCK)


def word(x: Tensor) -> tuple[int, Tensor | None]:
    """A seed or step as (value, pointer): by value from the CPU, by pointer from a device, whose content the host must not wait for."""
    return (int(x), None) if x.device.type == "cpu" else (0, x)


def strides(x: Tensor | None, dims: int) -> tuple[int, ...]:
    """The strides of an optional tensor, in elements."""
    return (0,) * dims if x is None else x.stride()
