"""The operations of torch around the kernels of a step: recorded, each bounded by its products and
its bytes. They count as one launch each, though torch takes two for some.
"""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from .launches import recording
from .table import Library


def operations(call: Callable[[], None]) -> list[Library]:
    """What torch would launch in a call on tensors of the device "meta"; nothing runs.

    Equal operations, on tensors of the same shapes and types, are one entry.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    from mam_kernels._core import dispatch, extension

    found: Counter[Library] = Counter()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            results = function(*args, **(kwargs or {}))
            if entry := _entry(function, args, kwargs or {}, results):
                found[entry] += 1
            return results

    with mock.patch.object(extension, "cuda", _NoKernels), recording():
        dispatch.forget()
        with Recorder():
            call()
    dispatch.forget()
    return [entry._replace(launches=count) for entry, count in found.items()]


class _NoKernels:
    """In the place of the CUDA kernels: it takes tensors without content, and nothing runs."""

    device = "meta"
    DType = SimpleNamespace(float32=0, float16=1, bfloat16=2)

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 0


# What no schema says: allocations, and views that are called otherwise.
WITHOUT_LAUNCH = {
    "empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "squeeze_",
}  # fmt: skip


def _entry(function: Any, args: tuple, kwargs: dict, results: object) -> Library | None:
    """An operation that launches a kernel; None for a view, an allocation, or a read of the
    host.
    """
    import torch
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    name = function.overloadpacket.__name__
    written = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
    on_device = any(x.device.type == "meta" and x.numel() for x in written)
    if function.is_view or name in WITHOUT_LAUNCH or not on_device:
        return None
    read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    count = flop_registry.get(function.overloadpacket)
    products = count(*args, **kwargs, out_val=results) if count else 0
    half = written[0].element_size() == 2
    shapes = " x ".join(str(list(x.shape)) for x in read or written)
    return Library(
        f"torch {name} {shapes} {str(written[0].dtype).removeprefix('torch.')}",
        operations=products if half else 0,
        operations32=0 if half else products,
        bytes=sum(x.numel() * x.element_size() for x in (*read, *written)),
    )
