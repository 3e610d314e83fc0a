"""The gradient of the expected reward of a mask, from the rewards of the hidden positions alone.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..._core import checks
from .ops import inclusion_probabilities


def reward_gradient(
    weights: Tensor,
    mask: Tensor,
    reward: Tensor,
    *,
    temperature: float = 1.0,
    num_samples: int | Tensor | None = None,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Which way to move the logarithms of the weights, so that positions of high reward are drawn
    more often: an estimate that needs rewards where the mask is True, and nowhere else.

    With ``pi`` of ``inclusion_probabilities``, ``u = -log(1 - pi)`` and ``g = u exp(-u)``,

        gradient_l = 1[l in mask] (g_l / pi_l) (reward_l / temperature - log u_l - b),

    with the ``b`` of each row for which the gradient sums to 0. Over the draws it is, to O(1/k),
    the gradient by ``log w`` of ``sum_l pi_l reward_l / temperature + h(pi_l)``, with the entropy
    ``h(pi) = -integral from 0 to pi of log(-log(1 - p)) dp``. This is concave in ``pi``, and
    largest at ``w = exp(reward / temperature)``, where the gradient is 0 whatever was drawn.

    A parameter behind the weights is trained by ``-(gradient * w.log()).sum()`` as a loss; for the
    latents of a module there is ``mam_kernels.reward.reward_loss``.

    Args:
        weights: (B, L), what the mask was drawn in proportion to, as in
            ``sample_without_replacement``. No gradient.
        mask: (B, L) bool, True where a position was drawn and its reward is known.
        reward: (B, L) floating point; read where ``mask`` is True.
        temperature: > 0; the smaller, the further the weights may move from uniform.
        num_samples: ``k``, how many positions of a row were drawn, an int or integers (B,). None:
            as many as its mask has.
        valid: (B, L) bool, True where a position could be drawn; None: everywhere.
        backend: as in ``inclusion_probabilities``.

    Returns:
        (B, L), float32 (float64 for float64 weights), 0 outside of the mask and in rows of which
        every position was drawn. No gradient.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    checks.require_floating("weights", weights, "(B, L)", 2)
    rows, positions = weights.shape
    drawn = checks.require_flags("mask", mask, rows, positions, weights.device)
    if drawn is None:
        raise TypeError("mask: expected bool (B, L); got None")
    checks.require_floating("reward", reward, "(B, L)", 2)
    checks.require_shape("reward", reward, (rows, positions), "(B, L)")
    checks.require_device("reward", reward, weights.device, "weights")
    checks.require_finite("reward", reward, drawn)
    temperature = checks.require_number("temperature", temperature, 0.0, 1e6, open_low=True)
    if num_samples is None:
        num_samples = drawn.sum(dim=1)
    probability = inclusion_probabilities(
        weights.detach(), num_samples, valid=valid, backend=backend
    )
    with torch.no_grad():
        return reward_ascent(probability, drawn, reward, temperature)


def reward_ascent(probability: Tensor, mask: Tensor, reward: Tensor, temperature: float) -> Tensor:
    """``1[l in mask] (g_l / pi_l) (r_l / tau - log u_l - b)`` with ``u = -log(1 - pi)``, ``g = u
    exp(-u)`` and the ``b`` for which a row sums to 0; (B, L).
    """
    counted = mask & (probability > 0) & (probability < 1)
    pi = torch.where(counted, probability, 0.5)
    u = -torch.log1p(-pi)
    share = torch.where(counted, u * (1 - pi) / pi, 0.0)
    gain = torch.where(counted, reward, 0.0).to(pi.dtype) / temperature - u.log()
    total = share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(pi.dtype).tiny)
    b = (share * gain).sum(dim=-1, keepdim=True) / total
    return share * (gain - b)
