"""The value path by the C++ kernels on the CPU (csrc/cpu)."""

from torch import Tensor

from .. import native
from . import native as launcher


def moments(*args: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``native.moments``."""
    return launcher.moments(native.cpu(), *args)


def mask(*args: Tensor | int | float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(native.cpu(), *args)
