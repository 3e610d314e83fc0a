"""What scalar tokens leave of multi-head attention: slopes before the pass over the cells, context and penalty after it.

The derivation is in README.md. Both are small, a few products of the size of the parameters, and every call pays for them whatever the
batch; hence hand-written gradients, which touch each parameter once.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class ScalarProjections(torch.autograd.Function):
    """Slopes, directions and constant of scalar tokens.

    With ``u = W_k w``, ``g = W_v w`` and ``e = W_v b + b_v``:

    - slope ``a[n, h] = q[n, h] . u[h] / sqrt(d)``, (N, H), where ``W_q`` meets ``u`` before the latents do: no (N, Dz) query is formed;
    - directions ``P[h] = W_o[:, h] g[h]``, (H, Dz), the attended output of a unit of the mean;
    - constant ``W_o e``, (Dz,), the attended output of every cell that has tokens.

    Takes latents (N, Dz), in_proj_weight (3 Dz, Dz), in_proj_bias (3 Dz,), input_proj's weight (Dz, 1) and bias (Dz,), out_proj's weight
    (Dz, Dz), all of one dtype, and the number of heads.
    """

    @staticmethod
    def forward(ctx, latents, in_weight, in_bias, token_weight, token_bias, out_weight, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        width = latents.shape[1]
        query_weight = in_weight[:width].view(heads, -1, width)  # (H, d, Dz)
        by_head = query_weight.shape[:2]
        unit = torch.mv(in_weight[width:], token_weight[:, 0])  # of keys and values: (2 Dz,)
        key, gain = unit.view(2, *by_head)  # u, g
        constant = torch.addmv(in_bias[2 * width :], in_weight[2 * width :], token_bias)  # e
        folded = torch.bmm(key[:, None], query_weight)[:, 0]  # (H, Dz)
        scale = by_head[1] ** -0.5
        bias = (key * in_bias[:width].view(by_head)).sum(dim=1)
        slope = torch.addmm(bias, latents, folded.t(), beta=scale, alpha=scale)
        directions = torch.bmm(out_weight.view(width, *by_head).permute(1, 0, 2), gain[..., None])[..., 0]
        parameters = (latents, in_weight, in_bias, token_weight, token_bias, out_weight)
        ctx.save_for_backward(*parameters, folded, key, gain, constant)
        return slope, directions, torch.mv(out_weight, constant)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_slope, grad_directions, grad_offset) -> tuple:
        latents, in_weight, in_bias, token_weight, token_bias, out_weight, folded, key, gain, constant = ctx.saved_tensors
        width, (heads, head_dim) = latents.shape[1], key.shape
        grad_slope = grad_slope * head_dim**-0.5
        grad_folded = grad_slope.t() @ latents  # (H, Dz)
        grad_bias = grad_slope.sum(dim=0)[:, None]  # (H, 1)

        query_weight = in_weight[:width].view(heads, head_dim, width)
        grad_key = torch.bmm(query_weight, grad_folded[..., None])[..., 0] + grad_bias * in_bias[:width].view(heads, head_dim)
        by_head = out_weight.view(width, heads, head_dim)
        grad_gain = torch.bmm(by_head.permute(1, 2, 0), grad_directions[..., None])[..., 0]
        grad_constant = torch.mv(out_weight.t(), grad_offset)
        grad_unit = torch.stack([grad_key, grad_gain]).flatten()  # (2 Dz,)
        grad_token_weight = torch.mv(in_weight[width:].t(), grad_unit)[:, None]
        grad_token_bias = torch.mv(in_weight[2 * width :].t(), grad_constant)

        grad_in_weight = torch.empty_like(in_weight)
        torch.mul(key[..., None], grad_folded[:, None], out=grad_in_weight[:width].view(heads, head_dim, width))
        torch.outer(grad_unit, token_weight[:, 0], out=grad_in_weight[width:])
        grad_in_weight[2 * width :].addr_(grad_constant, token_bias)
        # The constant of a key cancels in the softmax, and its bias has no gradient.
        grad_in_bias = torch.cat([(key * grad_bias).flatten(), torch.zeros_like(grad_constant), grad_constant])

        grad_out_weight = torch.outer(grad_offset, constant)
        grad_out_weight.view(width, heads, head_dim).addcmul_(grad_directions.t()[..., None], gain)
        grad_latents = grad_slope @ folded
        return grad_latents, grad_in_weight, grad_in_bias, grad_token_weight, grad_token_bias, grad_out_weight, None


class ScalarContext(torch.autograd.Function):
    """Context and penalty of scalar tokens from the means of their values alone.

    ``O_n = sum_h m[n, h] P[h] + r`` with ``r`` the constant, where a cell has tokens, plus ``b_o``. The context is the mean of ``O`` over
    the latents, (B, Dz); the penalty is the mean over cells of ``sum_n |O_n|^2``, a quadratic form in the means:
    ``sum_bn m P P^T m^T + 2 N sum_b mean_n(m) P r^T + N sum_b |r|^2``. No (B, N, Dz) tensor is formed.

    Takes the means (B, N, H), which cells have tokens (B, 1), directions (H, Dz), constant (Dz,) and out_proj's bias (Dz,).
    """

    @staticmethod
    def forward(ctx, mean, occupied, directions, constant, out_bias) -> tuple[Tensor, Tensor]:
        rows, latents, heads = mean.shape
        flat = mean.reshape(-1, heads)
        average = mean.mean(dim=1)  # (B, H)
        offset = torch.addcmul(out_bias, occupied, constant)  # r: (B, Dz)
        second = flat.t() @ flat  # sum_bn m^T m: (H, H)
        gram = directions @ directions.t()  # (H, H)
        context = torch.addmm(offset, average, directions)
        # |r|^2 + 2 mean_n(m) P r^T = 2 r . (context - r / 2)
        halves = torch.sub(context, offset, alpha=0.5)
        squared_norm = torch.add(
            torch.dot(second.flatten(), gram.flatten()), torch.dot(offset.flatten(), halves.flatten()), alpha=2 * latents
        )
        ctx.save_for_backward(mean, occupied, directions, average, offset, second, gram)
        return context, squared_norm / max(rows, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_context, grad_penalty) -> tuple:
        mean, occupied, directions, average, offset, second, gram = ctx.saved_tensors
        rows, latents, _ = mean.shape
        twice = grad_penalty * (2.0 / max(rows, 1))
        pulled = grad_context + (twice * latents) * offset  # (B, Dz)
        grad_mean = mean @ (twice * gram) + (pulled @ directions.t() / latents)[:, None]
        grad_directions = torch.addmm(average.t() @ pulled, twice * second, directions)
        grad_offset = torch.addmm(pulled, (twice * latents) * average, directions)
        return grad_mean, None, grad_directions, (occupied * grad_offset).sum(dim=0), grad_offset.sum(dim=0)
