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

from benchmarks.machine_code import compiled

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


BUILD = """
import sys
from setuptools import Extension, setup
sys.path.insert(0, "")
from setup import NativeBuild
setup(ext_modules=[Extension("mam_kernels._cuda", [])], cmdclass={"build_ext": NativeBuild})
"""


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


@dataclass(frozen=True)
class Built:
    """The extension module, and what ptxas said of each source by the stem of its name."""

    module: Path
    reports: dict[str, str]


@pytest.fixture(scope="module")
def built(archs, tmp_path_factory) -> Built:
    """What setup.py makes for every architecture; a warning is an error. The count of the machine
    code takes its objects.
    """
    folder = tmp_path_factory.mktemp("extension")
    where = ["--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    environment = {
        **os.environ,
        "MAM_CUDA_ARCHS": ";".join(archs),
        "NVCC_APPEND_FLAGS": "-lineinfo -Xptxas=-v -Werror=all-warnings",
    }
    command = [sys.executable, "-c", BUILD, "--quiet", "build_ext", *where]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    compiled.use_objects(folder / "temp")
    (module,) = folder.glob("lib/mam_kernels/_cuda*.so")
    # ninja prints each command, then what it said
    steps = re.split(r"^\[\d+/\d+\] ", done.stdout, flags=re.MULTILINE)
    named = ((re.search(r"(\w+)\.cu\b", step), step) for step in steps)
    return Built(module, {name[1]: step for name, step in named if name})


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_without_spills(source, archs, built, record_property):
    kernels = parse(built.reports[source.stem])
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
def test_the_extension_loads_where_there_is_no_gpu(archs, built):
    """What a machine without a driver says of it."""
    program = """
import mam_kernels as mam
from mam_kernels._core import extension
print(extension.cuda().build_info)
print(mam.backends()["cuda"])
"""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "MAM_CUDA_EXTENSION": str(built.module),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info, state = done.stdout.splitlines()
    assert all(f"sm_{arch}" in info for arch in archs)
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
