"""The value path by the CUDA C++ kernels (csrc/cuda)."""

from torch import Tensor

from .. import native
from . import native as launcher


def moments(*args: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``native.moments``."""
    return launcher.moments(native.cuda(), *args)


def mask(*args: Tensor | int | float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(native.cuda(), *args)
