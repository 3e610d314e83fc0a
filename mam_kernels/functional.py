"""The masking step made of differentiable operations, for ``torch.func`` and ``torch.export``.

Neither can differentiate the autograd functions that the step is made of otherwise: the first
refuses their form, the second forgets that they have gradients. What is computed is the same, and
the mask is the same to the bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._core.registration import differentiable, transforming
from .ops.value_attention.collapse import context, project


def required() -> bool:
    """Whether the step is being transformed or exported."""
    return transforming() or torch.compiler.is_exporting()


def scalar_projections(*arguments: Tensor | int | str) -> tuple[Tensor, Tensor, Tensor]:
    """Slope (N, H), directions (H, Dz) and constant (Dz,) of ``collapse.project``'s parameters, the
    number of heads and the backend.
    """
    *parameters, heads, backend = arguments
    exact, *_ = torch.ops.mam_kernels.scalar_projections(
        *(x.detach() for x in parameters), heads, backend
    )
    slope, directions, constant, *_ = project(*parameters, heads)
    # The bits of the slopes decide the mask; what is added is 0, and carries the gradient.
    return exact + (slope - slope.detach()), directions, constant


def scalar_masking(
    slope: Tensor,
    directions: Tensor,
    constant: Tensor,
    out_bias: Tensor,
    visible: bool,
    *arguments: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``ScalarMasking`` returns, from what ``scalar_projections`` does, and the arguments of
    ``value_mask`` but for the slopes.
    """
    values, crow, col, valid, maskable, counts, chosen, *others = arguments
    positions, backend = arguments[-2:]
    if visible:
        every = torch.arange(chosen.shape[0], device=chosen.device)
        mask, importance, *_ = torch.ops.mam_kernels.value_mask(
            values, crow, col, slope.detach()[chosen], valid, maskable, counts, every, *others
        )
        left = ~mask if valid is None else valid & ~mask
        moments = differentiable("value_attention")(
            values, crow, col, slope, left, positions, backend
        )
    else:
        mask, importance, *moments = differentiable("value_mask")(
            values, crow, col, slope, valid, maskable, counts, chosen, *others
        )
    log_partition, mean, _ = moments
    occupied = (log_partition[:, 0, 0] != -torch.inf).to(mean.dtype)
    injected, penalty, *_ = context(mean, occupied, directions, constant, out_bias)
    return mask, importance.detach(), injected, penalty


def token_projection(tokens: Tensor, weight: Tensor, valid: Tensor | None) -> Tensor:
    """``tokens @ weight.T``, padding as zeros: its gradient is 0, and 0 * NaN is NaN."""
    return F.linear(tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0), weight)
