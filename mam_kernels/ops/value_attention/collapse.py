"""What scalar tokens leave of multi-head attention: slopes before the pass over the cells, context
and penalty after it.

The derivation is in README.md. Both are small, a few products of the size of the parameters, and
every call pays for them whatever the batch; hence hand-written gradients, which touch each
parameter once. This is the version in products of torch, for any device and type;
``csrc/cpu/collapse.cpp`` is the one for float32 on the CPU, where the host cost of the products is
most of what they take.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Projected(NamedTuple):
    """What the parameters come down to where tokens are scalars."""

    slope: Tensor  # (N, H)
    directions: Tensor  # (H, Dz)
    constant: Tensor  # (Dz,)
    folded: Tensor  # (H, Dz): u W_q, for the gradient
    unit: Tensor  # (3, Dz): u, g and e, for the gradient


def project(
    latents, in_weight, in_bias, token_weight, token_bias, out_weight, heads: int
) -> Projected:
    """Slopes, directions and constant of scalar tokens.

    With ``u = W_k w``, ``g = W_v w`` and ``e = W_v b + b_v``:

    - slope ``a[n, h] = q[n, h] . u[h] / sqrt(d)``, (N, H), where ``W_q`` meets ``u`` before the
      latents do: no (N, Dz) query is formed;
    - directions ``P[h] = W_o[:, h] g[h]``, (H, Dz), the attended output of a unit of the mean;
    - constant ``W_o e``, (Dz,), the attended output of every cell that has tokens.

    Takes latents (N, Dz), in_proj_weight (3 Dz, Dz), in_proj_bias (3 Dz,), input_proj's weight (Dz,
    1) and bias (Dz,), out_proj's weight (Dz, Dz), all of one dtype, and the number of heads.
    """
    width = latents.shape[1]
    query_weight = in_weight[:width].view(heads, -1, width)  # (H, d, Dz)
    by_head = query_weight.shape[:2]
    unit = torch.mv(in_weight[width:], token_weight[:, 0])  # of keys and values: (2 Dz,)
    key, gain = unit.view(2, *by_head)  # u, g
    nothing = torch.addmv(in_bias[2 * width :], in_weight[2 * width :], token_bias)  # e
    folded = torch.bmm(key[:, None], query_weight)[:, 0]  # (H, Dz)
    scale = by_head[1] ** -0.5
    bias = (key * in_bias[:width].view(by_head)).sum(dim=1)
    slope = torch.addmm(bias, latents, folded.t(), beta=scale, alpha=scale)
    directions = torch.bmm(out_weight.view(width, *by_head).permute(1, 0, 2), gain[..., None])[
        ..., 0
    ]
    return Projected(
        slope,
        directions,
        torch.mv(out_weight, nothing),
        folded,
        torch.cat([unit, nothing]).view(3, width),
    )


def project_backward(
    grad_slope,
    grad_directions,
    grad_constant,
    latents,
    in_weight,
    in_bias,
    token_weight,
    token_bias,
    out_weight,
    folded,
    unit,
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    width, heads = latents.shape[1], folded.shape[0]
    key, gain, nothing = unit[0].view(heads, -1), unit[1].view(heads, -1), unit[2]
    head_dim = key.shape[1]
    grad_slope = grad_slope * head_dim**-0.5
    grad_folded = grad_slope.t() @ latents  # (H, Dz)
    grad_bias = grad_slope.sum(dim=0)[:, None]  # (H, 1)

    query_weight = in_weight[:width].view(heads, head_dim, width)
    grad_key = torch.bmm(query_weight, grad_folded[..., None])[..., 0] + grad_bias * in_bias[
        :width
    ].view(heads, head_dim)
    by_head = out_weight.view(width, heads, head_dim)
    grad_gain = torch.bmm(by_head.permute(1, 2, 0), grad_directions[..., None])[..., 0]
    grad_nothing = torch.mv(out_weight.t(), grad_constant)
    grad_unit = torch.stack([grad_key, grad_gain]).flatten()  # (2 Dz,)
    grad_token_weight = torch.mv(in_weight[width:].t(), grad_unit)[:, None]
    grad_token_bias = torch.mv(in_weight[2 * width :].t(), grad_nothing)

    grad_in_weight = torch.empty_like(in_weight)
    torch.mul(
        key[..., None],
        grad_folded[:, None],
        out=grad_in_weight[:width].view(heads, head_dim, width),
    )
    torch.outer(grad_unit, token_weight[:, 0], out=grad_in_weight[width:])
    grad_in_weight[2 * width :].addr_(grad_nothing, token_bias)
    # The constant of a key cancels in the softmax, and its bias has no gradient.
    grad_in_bias = torch.cat(
        [(key * grad_bias).flatten(), torch.zeros_like(grad_nothing), grad_nothing]
    )

    grad_out_weight = torch.outer(grad_constant, nothing)
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
    """What a cell's means come down to."""

    context: Tensor  # (B, Dz)
    penalty: Tensor  # scalar
    average: Tensor  # (B, H): mean over the latents of the means, for the gradient
    second: Tensor  # (H, H): sum over cells and latents of m^T m, for the gradient
    gram: Tensor  # (H, H): P P^T, for the gradient


def context(mean, occupied, directions, constant, out_bias) -> Context:
    """Context and penalty.

    With the means ``m`` of ``value_attention``, ``O_n = sum_h m[n, h] P[h] + r``, where ``r`` is
    ``b_o`` and, in cells with tokens, the constant. The context is the mean of ``O`` over the
    latents; the penalty is the mean over cells of ``sum_n |O_n|^2``, a quadratic form
    in the means: ``sum_bn m P P^T m^T + 2 N sum_b mean_n(m) P r^T + N sum_b |r|^2``. No (B, N, Dz)
        tensor is formed.

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
    grad_context,
    grad_penalty,
    mean,
    variance,
    occupied,
    directions,
    constant,
    out_bias,
    average,
    second,
    gram,
) -> tuple[Tensor, ...]:
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
