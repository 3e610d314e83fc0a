"""Loads the extension modules built from csrc, and says where they run.

Their functions take tensors and the tuples of ``call.py`` as they are (csrc/arguments.h).

Nothing is loaded when this module is imported. A module that was not built, or that does not load
here, raises an ``ImportError`` that says why.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

PACKAGE = "mam_kernels"

_NO_DEVICE_CHANGE = nullcontext()
_other_cuda: ModuleType | None = None


@functools.cache
def cpu() -> ModuleType:
    """The C++ kernels for the CPU.

    Raises:
        ImportError: they were not built, or do not load.
    """
    return _load("_cpu", "MAM_CPU_EXTENSION")


@functools.cache
def cuda() -> ModuleType:
    """The CUDA kernels; loading them needs no GPU. Their ``device`` says whose tensors they take.

    Raises:
        ImportError: they were not built, or do not load.
    """
    return _other_cuda or _load("_cuda", "MAM_CUDA_EXTENSION")


def use_cuda_module(module: ModuleType) -> None:
    """Put another build of the CUDA kernels in the place of the installed one, such as the build
    for the host that the tests run.
    """
    global _other_cuda
    _other_cuda = module
    cuda.cache_clear()


def build_info() -> dict[str, dict[str, object]]:
    """Version, compiler and targets of each extension module that loads here."""
    info = {}
    for name, load in (("cpu", cpu), ("cuda", cuda)):
        try:
            info[name] = dict(load().build_info)
        except ImportError as error:
            info[name] = {"missing": str(error)}
    return info


def _load(name: str, variable: str) -> ModuleType:
    """``mam_kernels.<name>``, or the file that the environment variable names: another build of the
    same sources.
    """
    path = os.environ.get(variable)
    if path:
        return _load_file(f"{PACKAGE}.{name}", path)
    if importlib.util.find_spec(f"{PACKAGE}.{name}") is None:
        needed = "C++ compiler" if name == "_cpu" else "nvcc"
        raise ImportError(
            f"the extension module {PACKAGE}.{name} was not built: the installation found no "
            f"{needed}, or compiling failed (pip install -v shows it)"
        )
    return importlib.import_module(f"{PACKAGE}.{name}")


def _load_file(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise ImportError(f"{path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def looking() -> ModuleType | None:
    """A module whose ``is_plain`` looks at tensors on whatever device; None where none loads."""
    for load in (cpu, cuda):
        with contextlib.suppress(ImportError):
            return load()
    return None


def launch(lib: ModuleType, device: torch.device) -> tuple[int, int]:
    """Where to run: torch's current stream on the GPU, torch's number of threads on the CPU."""
    if lib.device == "cuda":
        return torch.cuda.current_stream(device).cuda_stream, 0
    return 0, torch.get_num_threads()


def on(device: torch.device) -> AbstractContextManager:
    """Makes a GPU the current one while its kernels are launched; nothing to do when it is already,
    or on the CPU.
    """
    if device.type != "cuda" or device.index is None or device.index == torch.cuda.current_device():
        return _NO_DEVICE_CHANGE
    return torch.cuda.device(device)


def workspace(num_bytes: int, device: torch.device) -> Tensor | None:
    """Scratch memory, or None where none is needed."""
    return torch.empty(num_bytes, dtype=torch.uint8, device=device) if num_bytes else None
