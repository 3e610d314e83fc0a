"""Attention of latents over tokens by Triton kernels: the operations, and the whole step."""

from .triton_attention import (
    backward,
    forward,
    importance,
    logsumexp,
    mask,
)
from .triton_step import step, step_backward

__all__ = [
    "backward",
    "forward",
    "importance",
    "logsumexp",
    "mask",
    "step",
    "step_backward",
]
