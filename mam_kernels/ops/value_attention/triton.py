"""The value path by Triton kernels: the functions that a backend offers."""

from .triton_gradient import step_backward
from .triton_rows import mask, moments
from .triton_step import step

__all__ = ["mask", "moments", "step", "step_backward"]
