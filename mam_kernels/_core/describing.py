"""How errors describe what came: tensors, arrays and values, in one line."""

from typing import Protocol, TypeGuard

import torch
from torch import Tensor
from torch.masked import MaskedTensor


def describe(x: object) -> str:
    """A tensor by type, shape and device, an array by type and shape, anything else by its type
    and value; one line.
    """
    if isinstance(x, Tensor):
        if x.is_nested:
            return f"a nested tensor of {x.dtype} on {x.device}"
        if isinstance(x, MaskedTensor):
            return f"a MaskedTensor of {x.dtype} on {x.device}"
        layout = "" if x.layout is torch.strided else f"{x.layout} of "
        return f"{layout}{x.dtype} of shape {tuple(x.shape)} on {x.device}"
    if _is_array(x):
        return f"{type(x).__name__} of {x.dtype} and shape {tuple(x.shape)}"
    return f"{type(x).__name__} {shortened(x)}"


class _Array(Protocol):
    """What the messages need of an array."""

    @property
    def dtype(self) -> object: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def _is_array(x: object) -> TypeGuard[_Array]:
    return hasattr(x, "dtype") and bool(getattr(x, "shape", ()))


def shortened(x: object, width: int = 200) -> str:
    """The ``repr`` of something in one line; arrays and tensors as ``describe`` has them."""
    if isinstance(x, Tensor) or _is_array(x):
        return describe(x)
    line = " ".join(repr(x).split())
    return line if len(line) <= width else f"{line[:width]}..."
