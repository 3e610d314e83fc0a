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

# All of this is private to torch. Without it every call passes through the dispatcher.
try:
    _included_keys = torch._C._dispatch_tls_local_include_set
    _function_mode_is_on = torch._C._is_torch_function_mode_enabled
    _profiler_is_on = torch.autograd._profiler_enabled
    _keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in _WITHOUT_EFFECT)
    _OTHERS = ~functools.reduce(operator.or_, (key.raw_repr() for key in _keys))
    KNOWN = True
except AttributeError:
    KNOWN = False


def nobody_watches() -> bool:
    """Whether no mode, tracer or profiler of this thread would see a call."""
    if not KNOWN or _included_keys().raw_repr() & _OTHERS:
        return False
    return not (_function_mode_is_on() or _profiler_is_on())


def are_plain(parts: tuple) -> bool:
    """Whether the dispatcher would hand these to a kernel as they are: no tensor of a subclass or a
    transform among them, and none that is negated or zero lazily.
    """
    look = extension.looking()
    return look is not None and look.is_plain(parts)
