"""The CUDA kernels compile for every architecture, without spills, within the shared memory that
needs no opt-in. No GPU is needed.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "90", "100")
STATIC_SHARED_BYTES = 48 * 1024  # what a block gets without asking for more
REGISTERS = 65536  # of a multiprocessor
THREADS = {  # of a block, by what the kernel's name contains; others are small kernels of 256
    "select_kernel": 128,
    "draw_latents_kernel": 128,
    "value_kernel": 128,
    "project_kernel": 128,
    "finish_kernel": 128,
}
# At least so many fit on a multiprocessor, so that one works while the other waits.
BLOCKS_AT_ONCE = 2
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    shared: int
    spilled: int
    stack: int


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    return (
        os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    )


def parse(report: str) -> list[Kernel]:
    """The kernels in the output of ``ptxas -v``."""
    kernels = []
    for entry in ENTRY.finditer(report):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        kernels.append(
            Kernel(
                name=re.search(r"\d+([a-z_]+_kernel)", entry["name"])[1],
                arch=entry["arch"],
                registers=int(entry["registers"]),
                shared=int(shared[1]) if shared else 0,
                spilled=int(entry["stores"]) + int(entry["loads"]),
                stack=int(entry["stack"]),
            )
        )
    return kernels


@pytest.fixture(scope="module")
def archs() -> list[str]:
    """The architectures that this nvcc knows; skips the tests where there is none."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found: the CUDA kernels are not compiled here")
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    return [arch for arch in ARCHS if f"compute_{arch}" in known.split()]


def compile_verbosely(source: Path, archs: list[str], target: Path) -> str:
    """Compiles for every architecture at once; what ptxas said."""
    targets = [
        flag for arch in archs for flag in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")
    ]
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "--threads", "2"]
    macros = [
        "-DMAM_BACKEND=cuda",
        "-DMAM_TOKEN_GRADIENTS=1",
        f"-I{ROOT / 'csrc' / 'include'}",
        f"-I{ROOT / 'csrc'}",
    ]
    line = [find_nvcc(), *flags, *macros, *targets, "-c", str(source), "-o", str(target)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_without_spills(source, archs, tmp_path, record_property):
    kernels = parse(compile_verbosely(source, archs, tmp_path / "object.o"))
    assert {kernel.arch for kernel in kernels} == set(archs)
    for kernel in kernels:
        print(kernel)
        record_property(
            f"{kernel.name} sm_{kernel.arch}",
            f"{kernel.registers} registers, {kernel.shared} bytes shared",
        )
        assert kernel.spilled == 0, kernel
        assert kernel.stack == 0, kernel
        assert kernel.shared <= STATIC_SHARED_BYTES, kernel
        assert kernel.registers * THREADS.get(kernel.name, 256) * BLOCKS_AT_ONCE <= REGISTERS, (
            kernel
        )


@pytest.mark.slow
def test_the_extension_is_built_and_loads_where_there_is_no_gpu(archs, tmp_path):
    """By setup.py, for one architecture; what a machine without a driver says of it."""
    where = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    command = [sys.executable, "setup.py", "--quiet", "build_ext", *where]
    chosen = {"MAM_WITH_CUDA": "1", "MAM_CUDA_ARCHS": "90", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **chosen}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (module,) = tmp_path.glob("lib/mam_kernels/_cuda*.so")
    program = """
import mam_kernels as mam
from mam_kernels._core import extension
print(extension.cuda().build_info)
print(mam.backends()["cuda"])
"""
    environment |= {"MAM_CUDA_EXTENSION": str(module), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info, state = done.stdout.splitlines()
    assert "sm_90" in info
    assert state == "Unavailable(reason='no NVIDIA GPU that torch can use')"


def test_reads_what_ptxas_says():
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3mam4cuda13select_kernelENS_6ValuesE' for 'sm_90'
ptxas info    : Function properties for _ZN3mam4cuda13select_kernelENS_6ValuesE
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8592 bytes smem
"""
    assert parse(report) == [
        Kernel("select_kernel", "90", registers=64, shared=8592, spilled=20, stack=16)
    ]
