"""Kernels of CUDA C++ and of Triton, compiled ahead of time; no GPU is needed."""

import functools
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from .launches import Launch, Variant, recording
from .sass import Function, parse

# Triton's keys do not name the file of a kernel: what it kept of another checkout, or before a file
# was moved, names lines that are not there. The tests name a folder of their own.
_compiled_here = tempfile.TemporaryDirectory(prefix="triton-")
os.environ.setdefault("TRITON_CACHE_DIR", _compiled_here.name)

ROOT = Path(__file__).resolve().parents[2]


class Binary(NamedTuple):
    """One kernel in machine code, and what it takes of a multiprocessor."""

    function: Function
    registers: int
    static_shared: int
    local: int  # bytes a thread: spills and stack frames


@functools.cache
def nvdisasm() -> str:
    """The disassembler of Triton's wheel, or that of the toolkit."""
    return _tool("nvdisasm")


def _tool(name: str) -> str:
    if found := importlib.util.find_spec("triton"):
        path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    if path := shutil.which(name):
        return path
    raise RuntimeError(f"{name} was not found: it comes with the package triton")


def disassemble(cubin: bytes) -> list[Binary]:
    """The kernels of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [nvdisasm(), "-c", "-gi", file.name], capture_output=True, text=True, check=True
        ).stdout
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    resources = {}
    for name, line in re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", usage):
        resources[name] = {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", line)}
    binaries = []
    for function in parse(listing):
        used = resources[function.name]
        local = used.get("STACK", 0) + used.get("LOCAL", 0)
        binaries.append(Binary(function, used["REG"], used.get("SHARED", 0), local))
    return binaries


_objects: Path | None = None


def use_objects(folder: Path) -> None:
    """Take the kernels of csrc/cuda from the objects of a build, which has ``-lineinfo``, and do
    not compile them again.
    """
    global _objects
    _objects = folder


def _built(source: str, arch: int) -> bytes | None:
    """The cubin in the object of a file of csrc/cuda; None where there is no build."""
    if _objects is None:
        return None
    (found,) = _objects.rglob(f"{Path(source).stem}.o")
    with tempfile.TemporaryDirectory() as folder:
        command = [_tool("cuobjdump"), "-xelf", f"sm_{arch}", str(found.resolve())]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        (cubin,) = Path(folder).glob("*.cubin")
        return cubin.read_bytes()


@functools.cache
def cuda(source: str, arch: int) -> list[Binary]:
    """The kernels of a file of csrc/cuda."""
    if (built := _built(source, arch)) is not None:
        return disassemble(built)
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        target = f"sm_{arch}a" if arch == 90 else f"sm_{arch}"
        line = [nvcc, "-std=c++17", "-O3", f"-arch={target}", "-cubin", "-lineinfo"]
        line += ["-DMAM_BACKEND=cuda"]
        line += [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*line, str(ROOT / source), "-o", str(cubin)], check=True)
        return disassemble(cubin.read_bytes())


def recorded(call: Callable[[], None], arch: int) -> list[Launch]:
    """The launches of Triton kernels by a call of their launchers on a GPU of a generation; none of
    them runs.
    """
    from mam_kernels._core import triton_launch

    on_it = mock.patch.object(triton_launch, "architecture", return_value=arch)
    with on_it, recording() as launches:
        call()
    return launches


def triton(launch: Launch, arch: int) -> tuple[Binary, int, int]:
    """A launch in machine code, its threads and the bytes of shared memory."""
    return _compiled(launch.variant, arch)


@functools.cache
def _compiled(variant: Variant, arch: int) -> tuple[Binary, int, int]:
    from triton.backends.compiler import GPUTarget

    binary = variant.compiled(GPUTarget("cuda", arch, 32))
    (found,) = disassemble(binary.asm["cubin"])
    return found, 32 * binary.metadata.num_warps, binary.metadata.shared
