"""Builds the CUDA sources for the host: the kernels of csrc/cuda run on the CPU, as fibers, with
the header files beside this one.

The module takes CPU tensors (``device == "cpu"``). ``MAM_CUDA_EXTENSION=<path>`` makes
``mam_kernels`` use it as its CUDA backend; with ``MAM_SANITIZE=1`` it is built with the address and
undefined-behaviour sanitizers, whose runtime then has to be preloaded into Python. With
``MAM_SHIM_RACES=1`` a launch fails where threads read what others wrote without a barrier between
(races.cpp).

    python tests/cuda_shim/build.py [folder]        prints the path
"""

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

SHIM = Path(__file__).resolve().parent
ROOT = SHIM.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_shim"
MODULE = "_cuda"
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
]
MACROS = {
    "MAM_CUDA_SHIM": "1",
    "MAM_BACKEND": "cuda",
    "MAM_MODULE": MODULE,
    "MAM_DEVICE": '"cpu"',
    "MAM_TARGETS": '"host shim"',
    "MAM_VERSION": '"tests"',
}


def sources() -> list[Path]:
    """What is compiled."""
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    return [*kernels, CSRC / "bindings.cpp", SHIM / "scheduler.cpp", SHIM / "races.cpp"]


def instrumented(source: Path) -> list[str]:
    """The flags by which the accesses of a kernel's source are told to the detector of races."""
    if os.environ.get("MAM_SHIM_RACES") != "1" or source.suffix != ".cu":
        return []
    return ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-Wno-tsan"]


def headers() -> list[Path]:
    """What the sources include."""
    return sorted(
        path
        for pattern in ("*.h", "cuda/*.h", "cuda/*.cuh", "include/mam/*.h")
        for path in CSRC.glob(pattern)
    ) + sorted(SHIM.glob("*.h"))


def command() -> list[str]:
    """The compiler and its flags, for one source."""
    import pybind11

    sanitizers = SANITIZERS if os.environ.get("MAM_SANITIZE") == "1" else []
    include = [f"-I{SHIM}", f"-I{CSRC / 'include'}", f"-I{CSRC}"]
    include += [
        f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])
    ]
    macros = [f"-D{name}={value}" for name, value in MACROS.items()]
    return [
        *shlex.split(os.environ.get("CXX", "g++")),
        *FLAGS,
        *WARNINGS,
        *sanitizers,
        *macros,
        *include,
    ]


def build(cache_dir: str | os.PathLike = CACHE) -> Path:
    """Compile what is not in ``cache_dir`` already; the path of the extension module."""
    key = hashlib.sha256(shlex.join(command()).encode() + sys.version.encode())
    key.update(" ".join(flag for source in sources() for flag in instrumented(source)).encode())
    for path in (*sources(), *headers()):
        key.update(path.read_bytes())
    folder = Path(cache_dir) / key.hexdigest()[:16]
    library = folder / f"{MODULE}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _compile(source, folder), sources()))
        unfinished = folder / f"{os.getpid()}.so"
        flags = SANITIZERS if os.environ.get("MAM_SANITIZE") == "1" else []
        _run([*command()[:1], "-shared", *flags, *map(str, objects), "-o", str(unfinished)])
        unfinished.replace(library)
    return library


def load(cache_dir: str | os.PathLike = CACHE) -> ModuleType:
    """The module, built if necessary."""
    spec = importlib.util.spec_from_file_location(MODULE, build(cache_dir))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.{os.getpid()}.o"
    flags = instrumented(source)
    _run([*command(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(line)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


if __name__ == "__main__":
    print(build(*sys.argv[1:2]))
