"""Calls that need not pass through torch's dispatcher.

For the masking step the way through the dispatcher and back into Python, with some thirty
arguments, takes longer than its kernels on a few cells. It may be left out where nothing on that
way would do anything: no transform, mode, subclass or tracer that sees the call, and no tensor that
is negated or zero lazily.
"""

import functools
import operator

import torch

from . import extension

# What the dispatcher does nothing for, in an operation of this package. Autograd is asked before.
_WITHOUT_EFFECT = (
    *("CPU", "CUDA", "BackendSelect", "ADInplaceOrView"),
    *("AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA"),
)


def _others() -> int | None:
    """The bits of all other keys; None where torch, whose names of them are private, differs."""
    try:
        sets = (
            torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in _WITHOUT_EFFECT
        )
        return ~functools.reduce(operator.or_, (keys.raw_repr() for keys in sets))
    except AttributeError:
        return None


_OTHERS = _others()


def nobody_watches() -> bool:
    """Whether no mode, tracer or profiler of this thread would see a call."""
    if _OTHERS is None or torch._C._dispatch_tls_local_include_set().raw_repr() & _OTHERS:
        return False
    return not (torch._C._is_torch_function_mode_enabled() or torch.autograd._profiler_enabled())


def are_plain(parts: tuple) -> bool:
    """Whether the dispatcher would hand these to a kernel as they are: no tensor of a subclass or a
    transform among them, and none that is negated or zero lazily.
    """
    look = extension.looking()
    return look is not None and look.is_plain(parts)
