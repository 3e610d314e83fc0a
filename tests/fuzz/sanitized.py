"""The extension for the CPU built with AddressSanitizer, and the environment that runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-fsanitize=address -fno-omit-frame-pointer -O1 -g1"


def runtime() -> str | None:
    """The sanitizer's library, which has to be loaded first; None if this compiler has none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    answer = subprocess.run(
        [*compiler.split(), "-print-file-name=libasan.so"], capture_output=True, text=True
    )
    path = Path(answer.stdout.strip())
    return str(path) if path.is_absolute() and path.exists() else None


def environment() -> dict[str, str]:
    """What makes a process use it; it is built first, into build/asan, where it is not there.

    Raises:
        SystemExit: there is no sanitizer here, or the build failed.
    """
    library = runtime()
    if library is None:
        raise SystemExit("error: the C++ compiler here has no AddressSanitizer")
    folder = ROOT / "build" / "asan"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    subprocess.run(
        [*command, "--build-temp", str(folder / "temp")],
        cwd=ROOT,
        env={**os.environ, "MAM_WITH_CUDA": "0", "MAM_COMPILE_ARGS": FLAGS},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    built = next((folder / "lib").rglob("_cpu*.so"), None)
    if built is None:
        raise SystemExit("error: the extension was not built; see the warnings above")
    return {
        "MAM_CPU_EXTENSION": str(built),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }
