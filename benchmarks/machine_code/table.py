"""What a path is: sizes, and what it launches. The paths are in the files beside this one.

To add a kernel of CUDA C++: a ``Kernel`` in its path. A Triton (or Gluon) path is a function that
calls the launchers with tensors on the CPU: whatever they launch is recorded, compiled and counted.
Either way the loops of the sources carry ``trips:`` comments (see ``annotations.py``), whose
formulas use the names of ``sizes``, and the constants in capitals of a Triton launch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Kernel:
    """A kernel of csrc/cuda. ``symbol`` is a part of its mangled name; the rest are formulas."""

    name: str
    source: str
    symbol: str
    blocks: str
    threads: str
    bytes: str  # that have to be moved between the GPU and its memory
    shared: str = "0"  # bytes of dynamic shared memory
    sizes: Mapping[str, float] = field(default_factory=dict)


class Library(NamedTuple):
    """Launches of an operation of torch."""

    name: str
    operations: float  # floating point operations of 16-bit products
    operations32: float  # and of products in float32
    bytes: float
    launches: int = 1


@dataclass(frozen=True)
class Path:
    """One of the paths whose bounds are committed."""

    name: str
    sizes: Mapping[str, float]
    batch: str  # the name of the size that counts rows
    cuda: tuple[Kernel, ...] = ()
    triton: Callable[[], None] | None = None
    triton_bytes: Mapping[str, str] = field(default_factory=dict)  # by the kernel's name
    triton_sizes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # Calls the step of a backend on tensors of the device "meta": what torch launches there.
    around: Callable[[str], None] | None = None
