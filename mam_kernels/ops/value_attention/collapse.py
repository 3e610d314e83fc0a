"""Closed form of attention over scalar tokens: slopes before the pass over the cells, context and
penalty after it.

The derivation is in README.md. Both are small, a few products of the size of the parameters, and
every call pays for them at any batch size; hence hand-written gradients, which touch each
parameter once. This is the version in products of torch, for any device and type;
``csrc/cpu/collapse.cpp`` is the one for float32 on the CPU, where the host cost of the products is
most of what they take.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._core.call import Parameters

SMALLEST_SQUARE = 1e-20
"""Added to the mean square of the slopes before they are divided by its root."""


class Projected(NamedTuple):
    """The parameters, collapsed for scalar tokens."""

    slope: Tensor  # (N, H)
    directions: Tensor  # (H, Dz)
    constant: Tensor  # (Dz,)
    folded: Tensor  # (H, Dz): u W_q, for the gradient
    unit: Tensor  # (3, Dz): u, g and e, for the gradient


def project(parameters: Parameters, heads: int) -> Projected:
    """Slopes, directions and constant of scalar tokens.

    With ``u = W_k w``, ``g = W_v w`` and ``e = W_v b + b_v``:

    - slope ``a[n, h] = q[n, h] . u[h] / sqrt(d)``, (N, H), where ``W_q`` meets ``u`` before the
      latents do: no (N, Dz) query is formed;
    - directions ``P[h] = W_o[:, h] g[h]``, (H, Dz), the attended output of a unit of the mean;
    - constant ``W_o e``, (Dz,), the attended output of every cell that has tokens.

    The parameters are of one dtype; out_proj's bias takes no part.
    """
    latents, in_weight, in_bias, token_weight, token_bias, out_weight, _ = parameters
    width = latents.shape[1]
    query_weight = in_weight[:width].view(heads, -1, width)  # (H, d, Dz)
    by_head = query_weight.shape[:2]
    unit = torch.mv(in_weight[width:], token_weight[:, 0])  # of keys and values: (2 Dz,)
    key, gain = unit.view(2, *by_head)  # u, g
    empty = torch.addmv(in_bias[2 * width :], in_weight[2 * width :], token_bias)  # e
    folded = torch.bmm(key[:, None], query_weight)[:, 0]  # (H, Dz)
    scale = by_head[1] ** -0.5
    bias = (key * in_bias[:width].view(by_head)).sum(dim=1)
    slope = torch.addmm(bias, latents, folded.t(), beta=scale, alpha=scale)
    by_output = out_weight.view(width, *by_head).permute(1, 0, 2)  # (H, Dz, d)
    directions = torch.bmm(by_output, gain[..., None])[..., 0]
    constant = torch.mv(out_weight, empty)
    kept = torch.cat([unit, empty]).view(3, width)
    return Projected(slope, directions, constant, folded, kept)


def with_slope_norm(parameters: Parameters, heads: int, norm: float) -> Parameters:
    """Parameters whose slopes have a root mean square of ``norm``; differentiable.

    A slope is linear in the weight and the bias of its query, so those are rescaled, and nothing
    that follows needs to know.
    """
    width = parameters.latents.shape[1]
    slope = project(parameters, heads).slope
    factor = norm * torch.rsqrt(slope.square().mean() + SMALLEST_SQUARE)
    in_weight, in_bias = (
        torch.cat([factor * x[:width], x[width:]])
        for x in (parameters.in_weight, parameters.in_bias)
    )
    return parameters._replace(in_weight=in_weight, in_bias=in_bias)


def project_backward(
    grad_slope: Tensor,
    grad_directions: Tensor,
    grad_constant: Tensor,
    parameters: Parameters,
    folded: Tensor,
    unit: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients by the parameters in their order, all but out_proj's bias."""
    latents, in_weight, in_bias, token_weight, token_bias, out_weight, _ = parameters
    width, heads = latents.shape[1], folded.shape[0]
    key, gain, empty = unit[0].view(heads, -1), unit[1].view(heads, -1), unit[2]
    head_dim = key.shape[1]
    grad_slope = grad_slope * head_dim**-0.5
    grad_folded = grad_slope.t() @ latents  # (H, Dz)
    grad_bias = grad_slope.sum(dim=0)[:, None]  # (H, 1)

    query_weight = in_weight[:width].view(heads, head_dim, width)
    query_bias = in_bias[:width].view(heads, head_dim)
    grad_key = torch.bmm(query_weight, grad_folded[..., None])[..., 0] + grad_bias * query_bias
    by_head = out_weight.view(width, heads, head_dim)
    grad_gain = torch.bmm(by_head.permute(1, 2, 0), grad_directions[..., None])[..., 0]
    grad_empty = torch.mv(out_weight.t(), grad_constant)
    grad_unit = torch.stack([grad_key, grad_gain]).flatten()  # (2 Dz,)
    grad_token_weight = torch.mv(in_weight[width:].t(), grad_unit)[:, None]
    grad_token_bias = torch.mv(in_weight[2 * width :].t(), grad_empty)

    grad_in_weight = torch.empty_like(in_weight)
    torch.mul(
        key[..., None],
        grad_folded[:, None],
        out=grad_in_weight[:width].view(heads, head_dim, width),
    )
    torch.outer(grad_unit, token_weight[:, 0], out=grad_in_weight[width:])
    grad_in_weight[2 * width :].addr_(grad_empty, token_bias)
    # The constant of a key cancels in the softmax, and its bias has no gradient.
    grad_in_bias = torch.cat(
        [(key * grad_bias).flatten(), torch.zeros_like(grad_empty), grad_empty]
    )

    grad_out_weight = torch.outer(grad_constant, empty)
    grad_out_weight.view(width, heads, head_dim).addcmul_(grad_directions.t()[..., None], gain)
    return (
        grad_slope @ folded,
        grad_in_weight,
        grad_in_bias,
        grad_token_weight,
        grad_token_bias,
        grad_out_weight,
    )


class Context(NamedTuple):
    """Context and penalty of the cells, and terms for their gradient."""

    context: Tensor  # (B, Dz)
    penalty: Tensor  # scalar
    average: Tensor  # (B, H): mean over the latents of the means, for the gradient
    second: Tensor  # (H, H): sum over cells and latents of m^T m, for the gradient
    gram: Tensor  # (H, H): P P^T, for the gradient


def context(
    mean: Tensor, occupied: Tensor, directions: Tensor, constant: Tensor, out_bias: Tensor
) -> Context:
    """Context and penalty.

    With the means ``m`` of ``value_attention``, ``O_n = sum_h m[n, h] P[h] + r``, where ``r`` is
    ``b_o`` and, in cells with tokens, the constant. The context is the mean of ``O`` over the
    latents; the penalty is the mean over cells of ``sum_n |O_n|^2``, a quadratic form in the
    means: ``sum_bn m P P^T m^T + 2 N sum_b mean_n(m) P r^T + N sum_b |r|^2``. No (B, N, Dz) tensor
    is formed.

    Takes means (B, N, H), whether cells have tokens, (B,) as 1 or 0, directions (H, Dz), constant
    (Dz,) and out_proj's bias (Dz,).
    """
    rows, latents, heads = mean.shape
    offset = torch.addcmul(out_bias, occupied[:, None], constant)  # r, (B, Dz)
    flat = mean.reshape(-1, heads)
    average = mean.mean(dim=1)
    second = flat.t() @ flat
    gram = directions @ directions.t()
    injected = torch.addmm(offset, average, directions)
    # |r|^2 + 2 mean_n(m) P r^T = 2 r . (context - r / 2)
    halves = torch.sub(injected, offset, alpha=0.5)
    squared_norm = torch.add(
        torch.dot(second.flatten(), gram.flatten()),
        torch.dot(offset.flatten(), halves.flatten()),
        alpha=2 * latents,
    )
    return Context(injected, squared_norm / max(rows, 1), average, second, gram)


def context_backward(
    grad_context: Tensor,
    grad_penalty: Tensor,
    mean: Tensor,
    variance: Tensor,
    occupied: Tensor,
    directions: Tensor,
    constant: Tensor,
    out_bias: Tensor,
    average: Tensor,
    second: Tensor,
    gram: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by the slopes, the directions, the constant and the bias.

    That by a slope is that of its mean times the variance.
    """
    rows, latents, _ = mean.shape
    offset = torch.addcmul(out_bias, occupied[:, None], constant)
    twice = grad_penalty * (2.0 / max(rows, 1))
    pulled = grad_context + (twice * latents) * offset  # (B, Dz)
    grad_mean = mean @ (twice * gram) + (pulled @ directions.t() / latents)[:, None]
    grad_directions = torch.addmm(average.t() @ pulled, twice * second, directions)
    grad_offset = torch.addmm(pulled, (twice * latents) * average, directions)
    return (
        (grad_mean * variance).sum(dim=0),
        grad_directions,
        (occupied[:, None] * grad_offset).sum(dim=0),
        grad_offset.sum(dim=0),
    )
