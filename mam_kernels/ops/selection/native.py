"""Launches the selection of an extension module: the C++ kernels on the CPU, or the CUDA ones."""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension, philox


def select(
    lib: ModuleType,
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    sample_ids: Tensor | None,
    seed: Tensor | int,
    step: Tensor | int,
    eps: float,
    inverse_temperature: float,
) -> Tensor:
    """``num_samples[b]`` positions of each row, drawn in proportion to ``(weights + eps) **
    inverse_temperature``; (B, L) bool.
    """
    device = weights.device
    drawn = torch.empty(weights.shape, dtype=torch.bool, device=device)
    with extension.on(device):
        scratch = extension.workspace(lib.select_workspace(*weights.shape), device)
        lib.select(
            extension.values(lib, weights, None, None, weights.shape[1]),
            extension.flags(lib, valid),
            num_samples.data_ptr(),
            extension.draw(lib, seed, step, sample_ids, philox.STREAM_POSITIONS),
            lib.Weighting(eps, inverse_temperature),
            drawn.data_ptr(),
            extension.address(scratch),
            extension.launch(lib, device),
        )
    return drawn


def draw_latents(
    lib: ModuleType, num_latents: int, size: int, seed: Tensor, step: Tensor, device: torch.device
) -> Tensor:
    """``size`` of ``num_latents`` indices, uniformly without replacement, ascending; int64 (size,)."""
    chosen = torch.empty(size, dtype=torch.int64, device=device)
    draw = extension.draw(lib, seed, step, None, philox.STREAM_LATENTS)
    with extension.on(device):
        lib.draw_latents(num_latents, size, draw, chosen.data_ptr(), extension.launch(lib, device))
    return chosen
