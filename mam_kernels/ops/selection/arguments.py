"""The arguments of the selection's functions: each is checked by its namesake here, before a
backend's (see _core/arguments.py), and returned ready for use.
"""

import torch
from torch import Tensor

from ..._core import arguments
from ..._core.arguments import flags, flat, one
from ..._core.call import AS_GIVEN, Draw, Weighting
from ..._core.checks import FLOATING


def select(
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    draw: Draw,
    weighting: Weighting = AS_GIVEN,
) -> tuple:
    """Arguments of ``select``."""
    one("weights", weights, FLOATING, (None, None), None)
    (rows, positions), device = weights.shape, weights.device
    num_samples = flat("num_samples", num_samples, (torch.int32,), (rows,), device)
    valid = flags("valid", valid, rows, positions, device)
    return (
        weights,
        num_samples,
        valid,
        arguments.checked_draw(draw, rows, device),
        arguments.checked_weighting(weighting),
    )


def draw_latents(num_latents: int, size: int, draw: Draw, device: torch.device) -> tuple:
    """Arguments of ``draw_latents``."""
    arguments.integer("num_latents", num_latents, 0)
    arguments.integer("size", size, 0, num_latents)
    return num_latents, size, arguments.checked_draw(draw, None, device), device
