"""The value path by the CUDA C++ kernels (csrc/cuda)."""

from torch import Tensor

from ..._core import extension
from . import native as launcher


def moments(*args: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``native.moments``."""
    return launcher.moments(extension.cuda(), *args)


def mask(*args: Tensor | int | float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(extension.cuda(), *args)
