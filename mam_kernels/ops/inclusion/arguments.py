"""The arguments of the function of inclusion probabilities: checked by its namesake here, before a
backend's (see _core/arguments.py), and returned ready for use.
"""

import torch
from torch import Tensor

from ..._core.arguments import flags, flat, one
from ..._core.checks import FLOATING


def probabilities(weights: Tensor, num_samples: Tensor, valid: Tensor | None) -> tuple:
    """weights (B, L), num_samples int32 (B,), valid (B, L)."""
    one("weights", weights, FLOATING, (None, None), None)
    (rows, positions), device = weights.shape, weights.device
    num_samples = flat("num_samples", num_samples, (torch.int32,), (rows,), device)
    return weights, num_samples, flags("valid", valid, rows, positions, device)


def backward(grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor) -> tuple:
    """grad and probability as weights (B, L), time float64 (B,)."""
    one("weights", weights, FLOATING, (None, None), None)
    shape, device, kinds = weights.shape, weights.device, (torch.float32, torch.float64)
    one("grad", grad, kinds, shape, device)
    one("probability", probability, kinds, shape, device)
    one("time", time, (torch.float64,), shape[:1], device)
    return grad, weights, probability, time
