"""Loads the extension modules built from csrc, and turns tensors into the plain structures they
take.

Nothing is loaded when this module is imported. A module that was not built, or that does not load
here, raises an ``ImportError`` that says why.
"""

import functools
import importlib
import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from .call import Cells, Draw

PACKAGE = "mam_kernels"

_NO_DEVICE_CHANGE = nullcontext()
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
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


def address(x: Tensor | None) -> int:
    """Where a tensor's data begins; 0 for None."""
    return 0 if x is None else x.data_ptr()


def dtype(lib: ModuleType, x: Tensor) -> object:
    """The ``DType`` of a float32, float16 or bfloat16 tensor."""
    name = _DTYPES.get(x.dtype)
    if name is None:
        raise TypeError(f"expected float32, float16 or bfloat16; got {x.dtype}")
    return getattr(lib.DType, name)


def values(lib: ModuleType, cells: Cells) -> object:
    """A dense (B, L) tensor of any strides, or the contiguous parts of a CSR matrix, as
    ``Values``.
    """
    data, crow, col, _, num_positions = cells
    if crow is None or col is None:
        return lib.Values(
            data.data_ptr(), dtype(lib, data), *data.shape, *data.stride(), 0, 0, False, 0
        )
    return lib.Values(
        data.data_ptr(),
        dtype(lib, data),
        len(crow) - 1,
        num_positions,
        0,
        0,
        crow.data_ptr(),
        col.data_ptr(),
        crow.dtype == torch.int64,
        len(data),
    )


def dense(lib: ModuleType, data: Tensor) -> object:
    """A dense (B, L) tensor of any strides as ``Values``."""
    return values(lib, Cells(data, None, None, None, data.shape[1]))


def flags(lib: ModuleType, x: Tensor | None) -> object:
    """Booleans (B, L) of any strides, or None for "all true", as ``Flags``."""
    return lib.Flags(0, 0, 0) if x is None else lib.Flags(x.data_ptr(), *x.stride())


def draw(lib: ModuleType, source: Draw, stream: int) -> object:
    """The source of the random bits as ``Draw``.

    Words on the library's device are passed by address, others by value.
    """
    seed_word, seed_address = _word(lib, source.seed)
    step_word, step_address = _word(lib, source.step)
    return lib.Draw(
        seed_word & (2**64 - 1),
        step_word & (2**32 - 1),
        seed_address,
        step_address,
        address(source.sample_ids),
        stream,
    )


def _word(lib: ModuleType, x: Tensor | int) -> tuple[int, int]:
    """The word itself and 0, or 0 and its address."""
    if isinstance(x, Tensor) and x.device.type == lib.device:
        return 0, x.data_ptr()
    return int(x), 0


def launch(lib: ModuleType, device: torch.device) -> object:
    """Where to run, as ``Launch``: torch's current stream on the GPU, torch's number of threads on
    the CPU.
    """
    if lib.device == "cuda":
        return lib.Launch(torch.cuda.current_stream(device).cuda_stream, 0)
    return lib.Launch(0, torch.get_num_threads())


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
