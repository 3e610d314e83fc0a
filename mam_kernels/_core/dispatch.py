"""Which backend runs an operation on this machine, and why each other one would not.

One predicate, ``obstacle``, serves the choice, the error and the explanation. A backend that the
caller names runs or raises; only ``backend=None`` chooses, on a GPU by what is known of the speed
(``evidence.py``), and says in the log, once for each operation, device and type, what it chose.
"""

import contextlib
import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from . import evidence
from .checks import values_are_checked
from .describing import shortened

logger = logging.getLogger("mam_kernels")

BACKENDS = ("triton", "cuda", "cpu", "reference")
"""Every backend."""

CHOICES = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}
"""Backends that ``backend=None`` chooses from, by device; those of unknown speed in this order.

Triton's interpreter runs on the CPU too, but only when it is named.
"""

IMPLEMENTATIONS = {
    "value_attention": ("value_attention", "moments"),
    "value_mask": ("value_attention", "mask"),
    "latent_attention": ("latent_attention", "forward"),
    "latent_attention_backward": ("latent_attention", "backward"),
    "attention_logsumexp": ("latent_attention", "logsumexp"),
    "attention_importance": ("latent_attention", "importance"),
    "token_mask": ("latent_attention", "mask"),
    "sample_without_replacement": ("selection", "select"),
    "draw_latents": ("selection", "draw_latents"),
    "inclusion_probabilities": ("inclusion", "probabilities"),
    "inclusion_probabilities_backward": ("inclusion", "backward"),
}
"""Operation -> the folder and the function that implement it in each backend's file."""

AUTOMATIC = ""
"""The backend string of an operation whose caller named none."""


class BackendUnavailableError(ValueError, RuntimeError):
    """A backend was named that cannot run this call here. The message says why."""


@dataclass(frozen=True)
class Available:
    """A backend that runs on this machine."""

    detail: str

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Unavailable:
    """A backend that does not run on this machine, and why."""

    reason: str

    def __bool__(self) -> bool:
        return False


def _checked_name(backend: object, source: str) -> str:
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(
            f"{source}: expected one of {', '.join(BACKENDS)}, or None to choose; "
            f"got {shortened(backend)}"
        )
    return backend


_environment = os.environ.get("MAM_BACKEND", "")
_in_use: ContextVar[str | None] = ContextVar("mam_kernels_backend", default=None)
"""The backend set by ``use_backend`` in this context; None: not inside one."""


def named(backend: object) -> str:
    """The backend that a call names, or ``AUTOMATIC``.

    Raises:
        ValueError: the name is unknown.
    """
    return AUTOMATIC if backend is None else _checked_name(backend, "backend")


def requested(backend: str = AUTOMATIC) -> str:
    """The backend that a call asks for: the one it names, else that of ``use_backend``, else that
    of ``MAM_BACKEND``, else ``AUTOMATIC``.

    Operations ask when they run, not when they are traced: a compiled function follows
    ``use_backend`` too.
    """
    if backend != AUTOMATIC:
        return backend
    in_use = _in_use.get()
    if in_use is not None:
        return in_use
    return _checked_name(_environment, "MAM_BACKEND") if _environment else AUTOMATIC


@contextlib.contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Calls inside that name no backend use this one; None lets them choose. It holds for the
    current context: this thread, or this task of asyncio.

    Raises:
        ValueError: the name is unknown.
    """
    token = _in_use.set(named(backend))
    try:
        yield
    finally:
        _in_use.reset(token)


@functools.cache
def _missing(backend: str) -> str | None:
    """Why a backend does not run on this machine at all, or None."""
    from . import extension

    if backend == "triton":
        try:
            importlib.import_module("triton")
        except ModuleNotFoundError:
            return "the package triton is not installed"
        except Exception as error:  # any error of a broken installation is the reason
            return f"the package triton does not import: {error}"
        if not interpreting() and not torch.cuda.is_available():
            return (
                "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU, "
                "slowly, for tests)"
            )
    if backend in ("cpu", "cuda"):
        try:
            module = getattr(extension, backend)()
        except ImportError as error:
            return str(error)
        if module.device == "cuda":
            return _missing_gpu(module.build_info["targets"])
    return None


def _missing_gpu(targets: str) -> str | None:
    """Why no GPU here runs CUDA code built for ``targets``, such as "sm_80 sm_90", or None.

    Newer GPUs take the newest one's PTX.
    """
    if not torch.cuda.is_available() or torch.version.hip:
        return "no NVIDIA GPU that torch can use"
    oldest = min(int(arch) for arch in re.findall(r"sm_(\d+)", targets))
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < oldest:
        return f"built for {targets} (MAM_CUDA_ARCHS); the GPU is sm_{major}{minor}"
    return None


def interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter; it decides that when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def _device_of(backend: str) -> str:
    """The type of device whose tensors a backend takes."""
    from . import extension

    if backend == "triton":
        return "cpu" if interpreting() else "cuda"
    return "cpu" if backend == "cpu" else extension.cuda().device


@functools.cache
def obstacle(backend: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    """Why ``backend`` cannot run ``op`` on tensors of this device type and dtype, or None if it
    can.
    """
    if backend == "reference":
        return None
    missing = _missing(backend)
    if missing:
        return missing
    if device != _device_of(backend):
        return f"it takes tensors on {_device_of(backend)}; these are on {device}"
    if dtype == torch.float64:
        return "float64 is computed by the reference alone"
    return None


def candidates(op: str, device: str) -> list[str]:
    """Backends that ``backend=None`` chooses from for an operation, in the order of preference."""
    names = list(CHOICES.get(device, ("reference",)))
    return evidence.fastest_first(op, names) if device == "cuda" else names


@functools.cache
def resolve(backend: str, op: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs ``op``: the one named, or the fastest of ``CHOICES`` that can.

    Raises:
        BackendUnavailableError: the one named cannot.
    """
    if backend != AUTOMATIC:
        _checked_name(backend, "backend")  # an operation may be called past the public functions
        why_not = obstacle(backend, op, device, dtype)
        if why_not:
            raise BackendUnavailableError(f"backend: {backend!r} cannot run {op}: {why_not}")
        return backend
    chosen = next(
        name for name in candidates(op, device) if obstacle(name, op, device, dtype) is None
    )
    logger.info("%s on %s, %s: backend %s", op, device, dtype, chosen)
    return chosen


@functools.cache
def _found(folder: str, function: str, backend: str) -> Callable | None:
    """A backend's function for an operation, whose arguments its namesake in ``arguments.py``
    checks first; None where it has none.

    Both backends of extension modules are served by ``native.py``, whose functions take the
    module first. The modules themselves say of some functions, by ``LOOKS``, whether arguments need
    no check.
    """
    from . import extension

    native = backend in ("cpu", "cuda")
    module = importlib.import_module(f"mam_kernels.ops.{folder}.{'native' if native else backend}")
    run = getattr(module, function, None)
    if run is None:
        return None
    check = getattr(importlib.import_module(f"mam_kernels.ops.{folder}.arguments"), function)
    if not native:
        return functools.partial(_run_checked, check, run)
    lib = getattr(extension, backend)()
    run = functools.partial(run, lib)
    look = getattr(module, "LOOKS", {}).get(function)
    if look is None:
        return functools.partial(_run_checked, check, run)
    return functools.partial(_run_looked_at, getattr(lib, look), check, run)


def _run_checked(check: Callable[..., tuple], run: Callable, *arguments: object) -> object:
    return run(*check(*arguments))


def _run_looked_at(
    fits: Callable[..., bool], check: Callable[..., tuple], run: Callable, *arguments: object
) -> object:
    if not values_are_checked() and fits(*arguments):
        return run(*arguments)
    return run(*check(*arguments))


@functools.cache
def _implementation(op: str, backend: str) -> Callable:
    run = _found(*IMPLEMENTATIONS[op], backend)
    if run is None:
        raise NotImplementedError(f"{op}: the backend {backend!r} has no such function")
    return run


def chosen(op: str, backend: str, data: Tensor) -> str:
    """The backend that runs ``op`` for tensors like ``data``, here and now."""
    device = "cpu" if data.is_cpu else data.device.type  # whose name torch makes each time
    return resolve(requested(backend), op, device, data.dtype)


def implementation(op: str, backend: str, data: Tensor) -> Callable:
    """The function that runs ``op`` for tensors like ``data``."""
    return _implementation(op, chosen(op, backend, data))


@functools.cache
def optional(op: str, function: str, backend: str) -> Callable | None:
    """Another function in the file of the ``chosen`` backend of ``op``, such as the whole step
    beside the mask; None where that backend does without.
    """
    folder, _ = IMPLEMENTATIONS[op]
    return _found(folder, function, backend)


def forget() -> None:
    """Forget every cached choice: after the environment, the extension modules or the backends'
    functions were changed.
    """
    global _environment
    _environment = os.environ.get("MAM_BACKEND", "")
    for cached in (_missing, obstacle, resolve, _found, _implementation, optional):
        cached.cache_clear()


def backends() -> dict[str, Available | Unavailable]:
    """Every backend by name: ``Available(detail)`` or ``Unavailable(reason)`` on this machine.

    Each is true or false as it is available.
    """
    return {
        name: Unavailable(reason) if (reason := _missing(name)) else Available(_detail(name))
        for name in BACKENDS
    }


def _detail(backend: str) -> str:
    from . import extension

    if backend == "reference":
        return f"torch {torch.__version__}"
    if backend == "triton":
        version = importlib.import_module("triton").__version__
        return f"triton {version}, " + (
            "interpreter" if interpreting() else torch.cuda.get_device_name()
        )
    return ", ".join(
        f"{key} {value}" for key, value in getattr(extension, backend)().build_info.items()
    )


@dataclass(frozen=True)
class Explanation:
    """The result of ``explain``: the backend that would run, and why each other one would not.

    Printing it shows a table.
    """

    op: str
    device: str
    dtype: torch.dtype
    chosen: str | None  # None: the backend that the call names cannot run
    reasons: dict[str, str]  # backend -> why it runs or does not

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}, {self.dtype}"]
        lines += [
            f"  {'->' if name == self.chosen else '  '} {name:<10}{why}"
            for name, why in self.reasons.items()
        ]
        return "\n".join(lines)


def explain(op: Callable | str, *args: object, **kwargs: object) -> Explanation:
    """Which backend would run this call, and why each other one would not. Nothing is computed.

    Args:
        op: a public function, a ``MultinomialAttentionMasking`` module, or an operation's name.
        args, kwargs: what the call would be given; the first tensor decides the device and the
            type, ``backend`` the request.

    Raises:
        ValueError: unknown operation or backend. TypeError: no tensor among the arguments.
    """
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if not tensors:
        raise TypeError(
            "explain: expected the arguments of the call, a tensor among them; got none"
        )
    data = tensors[0]
    name = op if isinstance(op, str) else getattr(op, "__name__", None)
    if isinstance(op, torch.nn.Module):
        name = "value_mask" if getattr(op, "input_dim", None) is None else "token_mask"
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"op: expected one of {', '.join(IMPLEMENTATIONS)}, their function or a masking "
            f"module; got {shortened(op)}"
        )
    backend = requested(named(kwargs.get("backend", getattr(op, "backend", None))))
    device, dtype = data.device.type, data.dtype
    obstacles = {candidate: obstacle(candidate, name, device, dtype) for candidate in BACKENDS}
    runs = backend == AUTOMATIC or obstacles[backend] is None
    chosen = resolve(backend, name, device, dtype) if runs else None
    reasons = {
        candidate: _reason(name, candidate, chosen, backend, why, device)
        for candidate, why in obstacles.items()
    }
    return Explanation(name, device, dtype, chosen, reasons)


def _reason(
    op: str, candidate: str, chosen: str | None, backend: str, why_not: str | None, device: str
) -> str:
    figure = evidence.figures(op).get(candidate) if device == "cuda" else None
    if candidate == chosen:
        if backend:
            return "runs: it was named"
        return f"runs, the fastest that can: {figure}" if figure else "runs: the first that can"
    if why_not:
        return why_not
    if backend:
        return f"could run, but {backend} was named"
    if candidate not in CHOICES.get(device, ("reference",)):
        return "could run, but only when it is named"
    if figure:
        return f"could run, but {chosen} is faster: {figure}"
    return f"could run, but {chosen} comes first"
