"""Selection by the C++ kernels on the CPU (csrc/cpu)."""

import torch
from torch import Tensor

from ..._core import extension
from . import native as launcher


def select(*args: Tensor | float | None) -> Tensor:
    """As ``native.select``."""
    return launcher.select(extension.cpu(), *args)


def draw_latents(
    num_latents: int, size: int, seed: Tensor, step: Tensor, device: torch.device
) -> Tensor:
    """As ``native.draw_latents``."""
    return launcher.draw_latents(extension.cpu(), num_latents, size, seed, step, device)
