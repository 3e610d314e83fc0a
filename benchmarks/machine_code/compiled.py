"""Kernels of CUDA C++ and of Triton, compiled ahead of time; no GPU is needed."""

import functools
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from .sass import Function, parse

# What Triton kept of another checkout names the lines of that checkout.
os.environ["TRITON_ALWAYS_COMPILE"] = "1"

ROOT = Path(__file__).resolve().parents[2]


class Binary(NamedTuple):
    """One kernel in machine code, and what it takes of a multiprocessor."""

    function: Function
    registers: int
    static_shared: int
    local: int  # bytes a thread: spills and stack frames


class Launch(NamedTuple):
    """One launch of a Triton kernel."""

    kernel: object
    signature: dict
    constants: dict
    divisible: tuple[str, ...]
    options: dict
    blocks: int


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


@functools.cache
def cuda(source: str, arch: int) -> list[Binary]:
    """The kernels of a file of csrc/cuda."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        target = f"sm_{arch}a" if arch == 90 else f"sm_{arch}"
        line = [nvcc, "-std=c++17", "-O3", f"-arch={target}", "-cubin", "-lineinfo"]
        line += ["-DMAM_BACKEND=cuda", "-DMAM_TOKEN_GRADIENTS=1"]
        line += [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*line, str(ROOT / source), "-o", str(cubin)], check=True)
        return disassemble(cubin.read_bytes())


def recorded(modules: Iterable[str], call: Callable[[], None]) -> list[Launch]:
    """The launches of Triton kernels by a call of their launchers, with tensors on the CPU; none of
    them runs.
    """
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    kernels = {
        kernel
        for module in modules
        for kernel in vars(importlib.import_module(module)).values()
        if isinstance(kernel, JITFunction)
    }
    for kernel in kernels:
        kernel.run = functools.partial(_record, kernel, launches)
    try:
        call()
    finally:
        for kernel in kernels:
            del kernel.run
    return launches


def _record(
    kernel: object, launches: list[Launch], *args: object, grid: object, warmup: bool, **kwargs
) -> None:
    import torch

    names = {
        torch.float64: "fp64",
        torch.float32: "fp32",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
        torch.bool: "i1",
        torch.uint8: "u8",
        torch.int32: "i32",
        torch.int64: "i64",
    }
    options = {
        key: kwargs.pop(key)
        for key in ("num_warps", "num_stages", "maxnreg", "num_ctas")
        if key in kwargs
    }
    bound = kernel.signature.bind(*args, **kwargs).arguments
    signature, constants, divisible = {}, {}, []
    for parameter in kernel.params:
        x = bound[parameter.name]
        is_one = isinstance(x, int) and x == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or x is None or is_one:
            signature[parameter.name], constants[parameter.name] = "constexpr", x
        elif isinstance(x, torch.Tensor):
            signature[parameter.name] = "*" + names[x.dtype]
            divisible.append(parameter.name)
        elif isinstance(x, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = parameter.annotation_type or "i32"
            if x % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(parameter.name)
    grid = grid(bound) if callable(grid) else grid
    blocks = 1
    for size in grid:
        blocks *= size
    launches.append(Launch(kernel, signature, constants, tuple(divisible), options, blocks))


def triton(launch: Launch, arch: int) -> tuple[Binary, int, int]:
    """A launch in machine code, its threads and the bytes of shared memory."""
    import triton as package
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(launch.kernel.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible}
    if hasattr(launch.kernel, "is_gluon") and launch.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    binary = package.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    (found,) = disassemble(binary.asm["cubin"])
    return found, 32 * binary.metadata.num_warps, binary.metadata.shared
