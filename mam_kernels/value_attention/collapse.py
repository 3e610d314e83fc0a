"""What scalar tokens leave of multi-head attention: slopes before the pass over the cells, context and penalty after it.

The derivation is in README.md. Both are small, a few products of the size of the parameters, and every call pays for them whatever the
batch; hence hand-written gradients, which touch each parameter once. There are two versions: a few products of torch, for any device and
type, and one call of C++ (``csrc/cpu/collapse.cpp``) for float32 on the CPU, where the host cost of the products is most of what they take.
The operations are registered, so that both can be compiled and exported.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch import resolve
from ..registration import define


class ScalarProjections(torch.autograd.Function):
    """Slopes, directions and constant of scalar tokens.

    With ``u = W_k w``, ``g = W_v w`` and ``e = W_v b + b_v``:

    - slope ``a[n, h] = q[n, h] . u[h] / sqrt(d)``, (N, H), where ``W_q`` meets ``u`` before the latents do: no (N, Dz) query is formed;
    - directions ``P[h] = W_o[:, h] g[h]``, (H, Dz), the attended output of a unit of the mean;
    - constant ``W_o e``, (Dz,), the attended output of every cell that has tokens.

    Takes latents (N, Dz), in_proj_weight (3 Dz, Dz), in_proj_bias (3 Dz,), input_proj's weight (Dz, 1) and bias (Dz,), out_proj's weight
    (Dz, Dz), all of one dtype, the number of heads, and the backend that is asked for.
    """

    @staticmethod
    def forward(ctx, latents, in_weight, in_bias, token_weight, token_bias, out_weight, heads: int, backend: str = "") -> tuple:
        parameters = (latents, in_weight, in_bias, token_weight, token_bias, out_weight)
        slope, directions, constant, folded, unit = torch.ops.mam_kernels.scalar_projections(*parameters, heads, backend)
        ctx.save_for_backward(*parameters, folded, unit)
        ctx.backend = backend
        return slope, directions, constant

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_slope, grad_directions, grad_constant) -> tuple:
        gradients = torch.ops.mam_kernels.scalar_projections_backward(
            grad_slope, grad_directions, grad_constant, *ctx.saved_tensors, ctx.backend
        )
        return *gradients, None, None


class ScalarMasking(torch.autograd.Function):
    """From slopes to mask, importance, context and penalty: everything of a masking step that comes after ``ScalarProjections``.

    With the means ``m`` of ``value_attention``, ``O_n = sum_h m[n, h] P[h] + r``, where ``r`` is ``b_o`` and, in cells with tokens, the
    constant. The context is the mean of ``O`` over the latents, (B, Dz); the penalty is the mean over cells of ``sum_n |O_n|^2``, a
    quadratic form in the means: ``sum_bn m P P^T m^T + 2 N sum_b mean_n(m) P r^T + N sum_b |r|^2``. No (B, N, Dz) tensor is formed. The
    gradient by a slope is that of its mean times the variance.

    Takes slopes (N, H), directions (H, Dz), constant (Dz,), out_proj's bias (Dz,), whether the context is to be of what the mask leaves,
    and the arguments of the operation ``value_mask`` but for the slopes.
    """

    @staticmethod
    def forward(ctx, slope, directions, constant, out_bias, visible: bool, *arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, crow, col, valid, maskable, counts, chosen, *others = arguments
        positions, backend = arguments[-2:]
        if visible:
            every = torch.arange(chosen.shape[0], device=chosen.device)  # only the slopes that decide are computed for the mask
            mask, importance, *_ = torch.ops.mam_kernels.value_mask(
                values, crow, col, slope[chosen], valid, maskable, counts, every, *others
            )
            left = ~mask if valid is None else valid & ~mask
            moments = torch.ops.mam_kernels.value_attention(values, crow, col, slope, left, positions, backend)
        else:
            mask, importance, *moments = torch.ops.mam_kernels.value_mask(
                values, crow, col, slope, valid, maskable, counts, chosen, *others
            )  # fmt: skip
        log_partition, mean, variance = moments
        inputs = (mean, variance, log_partition, directions, constant, out_bias)
        context, penalty, *saved = torch.ops.mam_kernels.scalar_context(*inputs, backend)
        ctx.save_for_backward(*inputs, *saved)
        ctx.backend = backend
        ctx.mark_non_differentiable(mask, importance)
        ctx.set_materialize_grads(False)  # zeros of the size of mask and importance otherwise, whose gradients nobody looks at
        return mask, importance, context, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx, _grad_mask, _grad_importance, grad_context, grad_penalty) -> tuple:
        saved = ctx.saved_tensors  # once: a checkpoint computes them again each time
        mean, out_bias = saved[0], saved[5]
        if grad_context is None:
            grad_context = mean.new_zeros((mean.shape[0], out_bias.shape[0]))
        if grad_penalty is None:
            grad_penalty = mean.new_zeros(())
        gradients = torch.ops.mam_kernels.scalar_context_backward(grad_context, grad_penalty, *saved, ctx.backend)
        return *gradients, *(None,) * 16


# The same in products of torch


def project(latents, in_weight, in_bias, token_weight, token_bias, out_weight, heads: int) -> tuple[Tensor, ...]:
    """What ``ScalarProjections`` returns, then folded ``u W_q`` (H, Dz), and unit (3, Dz): ``u``, ``g`` and ``e``."""
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
    directions = torch.bmm(out_weight.view(width, *by_head).permute(1, 0, 2), gain[..., None])[..., 0]
    return slope, directions, torch.mv(out_weight, nothing), folded, torch.cat([unit, nothing]).view(3, width)


def project_backward(
    grad_slope, grad_directions, grad_constant, latents, in_weight, in_bias, token_weight, token_bias, out_weight, folded, unit
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    width, heads = latents.shape[1], folded.shape[0]
    key, gain, nothing = unit[0].view(heads, -1), unit[1].view(heads, -1), unit[2]
    head_dim = key.shape[1]
    grad_slope = grad_slope * head_dim**-0.5
    grad_folded = grad_slope.t() @ latents  # (H, Dz)
    grad_bias = grad_slope.sum(dim=0)[:, None]  # (H, 1)

    query_weight = in_weight[:width].view(heads, head_dim, width)
    grad_key = torch.bmm(query_weight, grad_folded[..., None])[..., 0] + grad_bias * in_bias[:width].view(heads, head_dim)
    by_head = out_weight.view(width, heads, head_dim)
    grad_gain = torch.bmm(by_head.permute(1, 2, 0), grad_directions[..., None])[..., 0]
    grad_nothing = torch.mv(out_weight.t(), grad_constant)
    grad_unit = torch.stack([grad_key, grad_gain]).flatten()  # (2 Dz,)
    grad_token_weight = torch.mv(in_weight[width:].t(), grad_unit)[:, None]
    grad_token_bias = torch.mv(in_weight[2 * width :].t(), grad_nothing)

    grad_in_weight = torch.empty_like(in_weight)
    torch.mul(key[..., None], grad_folded[:, None], out=grad_in_weight[:width].view(heads, head_dim, width))
    torch.outer(grad_unit, token_weight[:, 0], out=grad_in_weight[width:])
    grad_in_weight[2 * width :].addr_(grad_nothing, token_bias)
    # The constant of a key cancels in the softmax, and its bias has no gradient.
    grad_in_bias = torch.cat([(key * grad_bias).flatten(), torch.zeros_like(grad_nothing), grad_nothing])

    grad_out_weight = torch.outer(grad_constant, nothing)
    grad_out_weight.view(width, heads, head_dim).addcmul_(grad_directions.t()[..., None], gain)
    return grad_slope @ folded, grad_in_weight, grad_in_bias, grad_token_weight, grad_token_bias, grad_out_weight


def _offset(log_partition: Tensor, constant: Tensor, out_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells have tokens, (B, 1) as 0 or 1, and ``r`` (B, Dz)."""
    occupied = (log_partition[:, :1, 0] > -torch.inf).to(constant.dtype)
    return occupied, torch.addcmul(out_bias, occupied, constant)


def context(mean, variance, log_partition, directions, constant, out_bias) -> tuple[Tensor, ...]:
    """Context (B, Dz) and penalty, then average ``mean_n(m)`` (B, H), second ``sum_bn m^T m`` (H, H) and gram ``P P^T`` (H, H)."""
    rows, latents, heads = mean.shape
    _, offset = _offset(log_partition, constant, out_bias)
    flat = mean.reshape(-1, heads)
    average = mean.mean(dim=1)  # (B, H)
    second = flat.t() @ flat
    gram = directions @ directions.t()
    context = torch.addmm(offset, average, directions)
    # |r|^2 + 2 mean_n(m) P r^T = 2 r . (context - r / 2)
    halves = torch.sub(context, offset, alpha=0.5)
    squared_norm = torch.add(torch.dot(second.flatten(), gram.flatten()), torch.dot(offset.flatten(), halves.flatten()), alpha=2 * latents)
    return context, squared_norm / max(rows, 1), average, second, gram


def context_backward(
    grad_context, grad_penalty, mean, variance, log_partition, directions, constant, out_bias, average, second, gram
) -> tuple[Tensor, ...]:
    """Gradients by the slopes, the directions, the constant and the bias."""
    rows, latents, _ = mean.shape
    occupied, offset = _offset(log_partition, constant, out_bias)
    twice = grad_penalty * (2.0 / max(rows, 1))
    pulled = grad_context + (twice * latents) * offset  # (B, Dz)
    grad_mean = mean @ (twice * gram) + (pulled @ directions.t() / latents)[:, None]
    grad_directions = torch.addmm(average.t() @ pulled, twice * second, directions)
    grad_offset = torch.addmm(pulled, (twice * latents) * average, directions)
    return (grad_mean * variance).sum(dim=0), grad_directions, (occupied * grad_offset).sum(dim=0), grad_offset.sum(dim=0)


# Registration


def _in_cpp(x: Tensor, backend: str) -> bool:
    """Whether the C++ version computes what starts from ``x``: where it would run the pass over the cells too."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and resolve(backend, "value_mask", "cpu", x.dtype) == "cpu"


@functools.cache
def _cpp() -> ModuleType:
    """The C++ version; loaded when it is needed first, not when the package is imported."""
    return importlib.import_module(f"{__package__}.cpu")


def _run_project(latents: Tensor, *others: Tensor | int | str) -> tuple[Tensor, ...]:
    *arguments, backend = others
    return (_cpp().project if _in_cpp(latents, backend) else project)(latents, *arguments)


def _fake_project(latents: Tensor, *others: Tensor | int | str) -> tuple[Tensor, ...]:
    (count, width), heads = latents.shape, others[-2]
    shapes = ((count, heads), (heads, width), (width,), (heads, width), (3, width))
    return tuple(latents.new_empty(shape) for shape in shapes)


def _run_project_backward(*arguments: Tensor | str) -> tuple[Tensor, ...]:
    *tensors, backend = arguments
    return (_cpp().project_backward if _in_cpp(tensors[0], backend) else project_backward)(*tensors)


def _fake_project_backward(*arguments: Tensor | str) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in arguments[3:9])


def _run_context(*arguments: Tensor | str) -> tuple[Tensor, ...]:
    *tensors, backend = arguments
    return (_cpp().context if _in_cpp(tensors[0], backend) else context)(*tensors)


def _fake_context(mean: Tensor, *others: Tensor | str) -> tuple[Tensor, ...]:
    (rows, _, heads), width = mean.shape, others[2].shape[1]
    return tuple(mean.new_empty(shape) for shape in ((rows, width), (), (rows, heads), (heads, heads), (heads, heads)))


def _run_context_backward(*arguments: Tensor | str) -> tuple[Tensor, ...]:
    *tensors, backend = arguments
    return (_cpp().context_backward if _in_cpp(tensors[0], backend) else context_backward)(*tensors)


def _fake_context_backward(grad_context: Tensor, grad_penalty: Tensor, mean: Tensor, *others: Tensor | str) -> tuple[Tensor, ...]:
    shapes = (mean.shape[1:], *(x.shape for x in others[2:5]))
    return tuple(mean.new_empty(shape) for shape in shapes)


_PARAMETERS = "Tensor latents, Tensor in_weight, Tensor in_bias, Tensor token_weight, Tensor token_bias, Tensor out_weight"
_CONTEXT = "Tensor mean, Tensor variance, Tensor log_partition, Tensor directions, Tensor constant, Tensor out_bias"

define(
    f"scalar_projections({_PARAMETERS}, SymInt heads, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_project,
    _fake_project,
)
define(
    f"scalar_projections_backward(Tensor grad_slope, Tensor grad_directions, Tensor grad_constant, {_PARAMETERS}, Tensor folded, "
    "Tensor unit, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_project_backward,
    _fake_project_backward,
)
define(f"scalar_context({_CONTEXT}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _run_context, _fake_context)
define(
    f"scalar_context_backward(Tensor grad_context, Tensor grad_penalty, {_CONTEXT}, Tensor average, Tensor second, Tensor gram, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_context_backward,
    _fake_context_backward,
)
