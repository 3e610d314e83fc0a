"""The count of every path: what ``python -m benchmarks.machine_code`` prints and writes."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from . import compiled
from .count import Counted, count, value
from .device import H200, Count, limits, resident
from .table import Kernel, Library, Path
from .torch_operations import operations


@dataclass
class Row:
    """One kernel at the target sizes on one architecture."""

    path: str
    backend: str
    kernel: str
    arch: int
    launches: int
    blocks: int
    threads: int
    registers: int
    shared: int
    local: int
    counted: Counted | None
    seconds: dict[str, float]

    @property
    def microseconds(self) -> float:
        """The bound: the unit that needs longest."""
        return 1e6 * max(self.seconds.values())

    @property
    def resident(self) -> int:
        """Blocks a multiprocessor."""
        return resident(H200, self.threads, self.registers, self.shared)


def rows(path: Path, backend: str, arch: int) -> Iterator[Row]:
    """What a path launches on a backend."""
    parts = path.cuda if backend == "cuda" else _launched(path, arch)
    for part in (*parts, *_of_torch(path, backend)):
        if isinstance(part, Library):
            yield _library(path, backend, part, arch)
        elif isinstance(part, Kernel):
            yield _cuda(path, part, arch)
        else:
            yield _triton(path, part, arch)


def _launched(path: Path, arch: int) -> list[compiled.Launch]:
    return [] if path.triton is None else compiled.recorded(path.triton, arch)


def _of_torch(path: Path, backend: str) -> list[Library]:
    return [] if path.around is None else operations(functools.partial(path.around, backend))


def _library(path: Path, backend: str, part: Library, arch: int) -> Row:
    seconds = {
        "tensor": part.operations / H200.tensor,
        "float32": part.operations32 / H200.float32,
        "bytes": part.bytes / H200.bandwidth,
    }
    return Row(
        path.name, backend, part.name, arch, part.launches, 0, 0, 0, 0, 0, None, seconds
    )  # fmt: skip


def _cuda(path: Path, part: Kernel, arch: int) -> Row:
    found = [x for x in compiled.cuda(part.source, arch) if part.symbol in x.function.name]
    if len(found) != 1:
        raise ValueError(f"{part.source} has {len(found)} kernels whose name holds {part.symbol}")
    (binary,) = found
    sizes = path.sizes | part.sizes
    blocks, threads = int(value(part.blocks, sizes)), int(value(part.threads, sizes))
    shared = binary.static_shared + int(value(part.shared, sizes))
    return _row(path, "cuda", part.name, arch, binary, (blocks, threads, shared), sizes, part.bytes)


def _triton(path: Path, launch: compiled.Launch, arch: int) -> Row:
    binary, threads, shared = compiled.triton(launch, arch)
    name, constants = launch.variant.kernel, launch.variant.constants
    sizes = path.sizes | path.triton_sizes.get(name, {})
    sizes |= {key: x for key, x in constants if isinstance(x, int) and key.isupper()}
    shape = launch.blocks, threads, shared
    return _row(path, "triton", name, arch, binary, shape, sizes, path.triton_bytes.get(name, "0"))


def _row(
    path: Path,
    backend: str,
    name: str,
    arch: int,
    binary: compiled.Binary,
    shape: tuple[int, int, int],
    sizes: dict[str, float],
    moved: str,
) -> Row:
    blocks, threads, shared = shape
    warps = threads // 32
    counted = count(binary.function, sizes | {"threads": threads, "warps": warps, "blocks": blocks})
    grid = Count()
    grid.plus(counted.total, blocks * warps)
    seconds = limits(grid, value(moved, sizes), blocks, H200)
    return Row(
        path.name, backend, name, arch, 1, blocks, threads, binary.registers, shared,
        binary.local, counted, seconds,
    )  # fmt: skip


def total(rows: list[Row], unit: str) -> float:
    """Seconds that a unit of the device needs at least for all of them."""
    return sum(row.launches * row.seconds.get(unit, 0.0) for row in rows)


def describe(row: Row, rows_of_batch: float, with_loops: bool) -> str:
    """A kernel's lines of the report; instructions are of warps, for a row of the batch."""
    seconds = " ".join(f"{unit} {1e6 * x:.2f}" for unit, x in row.seconds.items() if x > 0)
    name = f"{row.path} {row.backend} sm_{row.arch} {row.kernel}"
    head = f"{name}: {row.microseconds:.2f} us ({seconds})"
    if row.counted is None:
        return head
    warps = row.blocks * row.threads / 32 / rows_of_batch
    shape = f"{row.blocks} blocks of {row.threads} threads, {row.registers} registers"
    shape += f", {row.shared} B shared, {row.resident} blocks a multiprocessor"
    lines = [head, f"  {shape}, {row.local} B local"]
    for title, phase in [*row.counted.phases.items(), ("in all", row.counted.total)]:
        counts = {
            "issue": phase.issue * warps,
            "alu": phase.alu * warps,
            "float64": phase.float64 * warps,
            "mufu": phase.mufu * warps,
            "tensor": phase.tensor_instructions * warps,
            "shared KB": phase.shared * warps / 1024,
            "memory": phase.memory * warps,
            "barriers": phase.barriers,
        }
        numbers = "  ".join(f"{unit} {count:7.0f}" for unit, count in counts.items())
        lines.append(f"  {title or '(no phase)':<34} {numbers}")
    lines += [f"  UNSTATED {x}" for x in row.counted.unstated]
    if with_loops:
        lines += [f"    {x}" for x in row.counted.loops]
    return "\n".join(lines)
