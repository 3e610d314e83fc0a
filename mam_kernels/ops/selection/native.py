"""Selection by the kernels of an extension module: C++ on the CPU (csrc/cpu) or CUDA (csrc/cuda).

Each function takes the module, ``lib``, first: ``extension.cpu()`` or ``extension.cuda()``. Its
arguments are checked and contiguous (_core/arguments.py), but for the strides of weights and flags.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension
from ..._core.call import AS_GIVEN, Draw, Weighting


def select(
    lib: ModuleType,
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    draw: Draw,
    weighting: Weighting = AS_GIVEN,
) -> Tensor:
    """``num_samples[b]`` positions of each row, drawn in proportion to ``(weights + eps) **
    inverse_temperature``; (B, L) bool.
    """
    device = weights.device
    drawn = torch.empty(weights.shape, dtype=torch.bool, device=device)
    with extension.on(device):
        scratch = extension.workspace(lib.select_workspace(*weights.shape), device)
        where = extension.launch(lib, device)
        lib.select(weights, valid, num_samples, draw, weighting, drawn, scratch, where)
    return drawn


def draw_latents(
    lib: ModuleType, num_latents: int, size: int, draw: Draw, device: torch.device
) -> Tensor:
    """``size`` of ``num_latents`` indices, uniformly without replacement, ascending; int64
    (size,). The sample ids of ``draw`` play no part.
    """
    chosen = torch.empty(size, dtype=torch.int64, device=device)
    with extension.on(device):
        lib.draw_latents(num_latents, draw, chosen, extension.launch(lib, device))
    return chosen
