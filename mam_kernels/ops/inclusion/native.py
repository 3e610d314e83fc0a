"""Inclusion probabilities by the kernels of an extension module: C++ on the CPU (csrc/cpu) or CUDA
(csrc/cuda).

Each function takes the module, ``lib``, first: ``extension.cpu()`` or ``extension.cuda()``. Its
arguments are checked (_core/arguments.py).
"""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension


def probabilities(
    lib: ModuleType, weights: Tensor, num_samples: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pi_l = 1 - exp(-w_l t)`` with ``sum_l pi_l = k``, (B, L) float32, and ``t``, (B,) float64;
    infinite where every position is drawn.
    """
    device = weights.device
    probability = torch.empty(weights.shape, dtype=torch.float32, device=device)
    time = torch.empty(weights.shape[:1], dtype=torch.float64, device=device)
    with extension.on(device):
        where = extension.launch(lib, device)
        lib.inclusion_probabilities(weights, valid, num_samples, probability, time, where)
    return probability, time


def backward(
    lib: ModuleType, grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor
) -> Tensor:
    """``t exp(-u) (G - sum G g / sum g)`` with ``u = w t`` and ``g = u exp(-u)``; (B, L), 0 where a
    position is never drawn, and in rows that are drawn whole.
    """
    device = weights.device
    grad, probability = grad.float().contiguous(), probability.float().contiguous()
    time = time.contiguous()
    found = torch.empty(weights.shape, dtype=torch.float32, device=device)
    with extension.on(device):
        where = extension.launch(lib, device)
        lib.inclusion_probabilities_backward(grad, weights, probability, time, found, where)
    return found.to(weights.dtype)
