"""The value path by Triton kernels: the functions that a backend offers."""

from .gradient import step_backward
from .rows import mask, moments
from .step import step

__all__ = ["mask", "moments", "step", "step_backward"]
