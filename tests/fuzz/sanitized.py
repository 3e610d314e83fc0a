"""The extension for the CPU built with AddressSanitizer, and the environment that runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-fsanitize=address -fno-omit-frame-pointer -O1 -g1"


def runtime() -> list[str]:
    """The libraries that have to be loaded first: the sanitizer's, and that of C++, whose throw it
    looks for when it starts. Empty if this compiler has no sanitizer.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return []
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [*compiler.split(), f"-print-file-name={name}"]
        answer = subprocess.run(command, capture_output=True, text=True)
        path = Path(answer.stdout.strip())
        if not path.is_absolute() or not path.exists():
            return []
        paths.append(str(path))
    return paths


def environment() -> dict[str, str]:
    """What makes a process use it; it is built first, into build/asan, where it is not there.

    Raises:
        SystemExit: there is no sanitizer here, or the build failed.
    """
    libraries = runtime()
    if not libraries:
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
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }
