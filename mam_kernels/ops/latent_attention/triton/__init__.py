"""Attention of latents over tokens by Triton kernels: the operations, and the whole step. No tensor
of latents by positions exists, and no atomics are used.
"""

from .attention import forward, logsumexp
from .gradient import ALTERNATIVES, LAUNCHES, backward
from .importance import importance, mask
from .step import step, step_backward

__all__ = [
    "ALTERNATIVES",
    "LAUNCHES",
    "backward",
    "forward",
    "importance",
    "logsumexp",
    "mask",
    "step",
    "step_backward",
]
