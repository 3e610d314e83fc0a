"""The masking step of scalar values as one operation: from parameters and cells to mask, context
and penalty, and its gradient.

A step of a few cells takes less than what a handful of operations cost their host, hence one
operation, and one node of autograd. On the CPU it is one call of C++ (``csrc/cpu/step.cpp``);
elsewhere it is made of the products of ``collapse.py`` and the operation ``value_mask``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..._core import arguments, checks
from ..._core.call import Cells, Choice, Draw, Parameters, Weighting
from ..._core.dispatch import implementation, optional
from ..._core.registration import define, unobserved
from . import collapse
from .ops import run_mask, run_moments

PARAMETERS = "Tensor latents, Tensor in_weight, Tensor in_bias, Tensor token_weight, Tensor token_bias, Tensor out_weight"


def scalar_masking(*arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask, importance, context and penalty: ``mam_kernels::scalar_masking``, differentiable in the
    parameters.

    Takes the parameters of ``collapse.project`` and out_proj's bias, all of one dtype, and the
    other arguments of the operation:

    - the parts of ``Values``; valid and maskable (B, L), None: everywhere, and as ``valid``;
    - num_masked (B,) int32, or None for ``floor(mask_ratio n)`` of the maskable positions; chosen
      (|R|,) int64, or None to draw ``num_chosen`` latents; sample_ids, seed and step as
      ``checks.Draw``, ints too where nothing is compiled;
    - the number of heads, ``num_chosen``, ``mask_ratio``, eps, the inverse of the temperature,
      whether the context is to be of what the mask leaves, the number of positions, and the backend
      that is asked for.
    """
    return ScalarMasking.apply(*arguments) if torch.is_grad_enabled() else _forward(*arguments)[:4]


class ScalarMasking(torch.autograd.Function):
    """The node of autograd."""

    @staticmethod
    def forward(ctx, *arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mask, importance, context, penalty, state = _forward(*arguments)
        ctx.save_for_backward(*arguments[:7], state)
        ctx.others = context.shape[0], arguments[17], arguments[-1]  # rows, heads, backend
        ctx.mark_non_differentiable(mask, importance)
        ctx.set_materialize_grads(
            False
        )  # zeros of the size of mask and importance otherwise, whose gradients nobody looks at
        return mask, importance, context, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx, _grad_mask, _grad_importance, grad_context, grad_penalty) -> tuple:
        tensors = (grad_context, grad_penalty, *ctx.saved_tensors)
        run = (
            _run_step_backward
            if unobserved(tensors)
            else torch.ops.mam_kernels.scalar_masking_backward
        )
        return *run(*tensors, *ctx.others), *(None,) * 18


def _forward(*arguments: object) -> tuple[Tensor, ...]:
    tensors, (seed, step), others = arguments[:15], arguments[15:17], arguments[17:]
    if unobserved(tensors):
        return _run_step(*arguments)
    return torch.ops.mam_kernels.scalar_masking(
        *tensors, checks.as_tensor(seed), checks.as_tensor(step), *others
    )


def _whole(function: str, parameter: Tensor, values: Tensor, backend: str) -> Callable | None:
    """The function of the backend that computes the whole step, where it has one, and the
    parameters are float32 too.
    """
    if parameter.dtype != torch.float32:
        return None
    return optional("value_mask", function, backend, values)


# The projections alone


def _run_project(latents: Tensor, *others: Tensor | int | str) -> tuple[Tensor, ...]:
    *parameters, heads, backend = others
    named = Parameters(latents, *parameters, None)
    if project := _whole("project", latents, latents, backend):
        return project(named, heads)[:3]
    arguments.value_project(named, heads)
    return collapse.project(latents, *parameters, heads)[:3]


def _fake_project(latents: Tensor, *others: Tensor | int | str) -> tuple[Tensor, ...]:
    (count, width), heads = latents.shape, others[-2]
    return tuple(latents.new_empty(shape) for shape in ((count, heads), (heads, width), (width,)))


define(
    f"scalar_projections({PARAMETERS}, SymInt heads, str backend) -> (Tensor, Tensor, Tensor)",
    _run_project,
    _fake_project,
)


# The step


def _state_shapes(rows: int, latents: int, heads: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Of what is kept for the backward pass: mean, variance, occupied, average, directions,
    constant, folded, unit, second, gram.
    """
    moments, square = (rows, latents, heads), (heads, heads)
    return (
        moments,
        moments,
        (rows,),
        (rows, heads),
        (heads, width),
        (width,),
        (heads, width),
        (3, width),
        square,
        square,
    )


def _run_step(latents: Tensor, *others: object) -> tuple[Tensor, ...]:
    values, backend = others[6], others[-1]
    parts = _parts(latents, *others[:-1])
    if step := _whole("step", latents, values, backend):
        return step(*parts)
    arguments.value_step(*parts)
    return _composed(latents, *others)


def _parts(*given: object) -> tuple:
    """The arguments of the operation, but for the backend, as those of ``native.step``."""
    parameters, (values, crow, col, valid, maskable, num_masked) = given[:7], given[7:13]
    chosen, sample_ids, seed, step, heads, num_chosen, mask_ratio = given[13:20]
    eps, inverse_temperature, visible, num_positions = given[20:]
    return (
        Cells(values, crow, col, valid, num_positions),
        Parameters(*parameters),
        heads,
        Choice(maskable, num_masked, mask_ratio, chosen, num_chosen),
        Weighting(eps, inverse_temperature),
        Draw(seed, step, sample_ids),
        visible,
    )


def _composed(
    latents: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor | None,
    chosen: Tensor | None,
    sample_ids: Tensor | None,
    seed: Tensor | int,
    step: Tensor | int,
    heads: int,
    num_chosen: int,
    mask_ratio: float,
    eps: float,
    inverse_temperature: float,
    visible: bool,
    num_positions: int,
    backend: str,
) -> tuple[Tensor, ...]:
    device, dtype = values.device, torch.promote_types(values.dtype, torch.float32)
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    seed, step = checks.as_tensor(seed), checks.as_tensor(step)
    with torch.autocast(device_type=device.type, enabled=False):
        projected = collapse.project(
            latents, in_weight, in_bias, token_weight, token_bias, out_weight, heads
        )
        slope, directions, constant = (x.to(dtype) for x in projected[:3])
        if chosen is None:
            chosen = implementation("draw_latents", backend, values)(
                latents.shape[0], num_chosen, Draw(seed, step, None), device
            )
        if num_masked is None:
            there = valid if maskable is None else maskable
            num_masked = checks.count_masked(mask_ratio, there, rows, num_positions, device)
        if visible:  # only the slopes that decide are computed for the mask
            slope, chosen, every = (
                slope[chosen],
                torch.arange(chosen.shape[0], device=device),
                slope,
            )
        mask, importance, *moments = run_mask(
            values, crow, col, slope, valid, maskable, num_masked, chosen, sample_ids, seed, step, eps, inverse_temperature,
            num_positions, backend,
        )  # fmt: skip
        if visible:
            left = ~mask if valid is None else valid & ~mask
            moments = run_moments(values, crow, col, every, left, num_positions, backend)
        log_partition, mean, variance = moments
        occupied = (log_partition[:, 0, 0] != -torch.inf).to(dtype)
        context, penalty, *saved = collapse.context(
            mean, occupied, directions, constant, out_bias.to(dtype)
        )
        average, second, gram = saved
        state = (
            mean,
            variance,
            occupied,
            average,
            directions,
            constant,
            projected.folded,
            projected.unit,
            second,
            gram,
        )
        return mask, importance, context, penalty, torch.cat([x.flatten() for x in state])


def _fake_step(latents: Tensor, *others: object) -> tuple[Tensor, ...]:
    values, crow, (heads, *_), positions = others[6], others[7], others[16:], others[-2]
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    count, width = latents.shape
    new = {"dtype": torch.promote_types(values.dtype, torch.float32)}
    size = sum(map(math.prod, _state_shapes(rows, count, heads, width)))
    return (
        latents.new_empty((rows, positions), dtype=torch.bool),
        latents.new_empty((rows, positions), **new),
        latents.new_empty((rows, width), **new),
        latents.new_empty((), **new),
        latents.new_empty(size, dtype=torch.promote_types(latents.dtype, new["dtype"])),
    )


def _run_step_backward(
    grad_context: Tensor | None, grad_penalty: Tensor | None, latents: Tensor, *others: object
) -> tuple[Tensor, ...]:
    state, backend = others[6], others[-1]
    *parameters, state, rows, heads, _ = (latents, *others)
    parts = (grad_context, grad_penalty, Parameters(*parameters), heads, state, rows)
    if backward := _whole("step_backward", latents, state, backend):
        return backward(*parts)
    arguments.value_step_backward(*parts)
    return _composed_backward(grad_context, grad_penalty, latents, *others[:-1])


def _composed_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    latents: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    state: Tensor,
    rows: int,
    heads: int,
) -> tuple[Tensor, ...]:
    (count, width), exact = latents.shape, latents.dtype
    shapes = _state_shapes(rows, count, heads, width)
    parts = (
        part.view(shape)
        for part, shape in zip(
            state.split([math.prod(shape) for shape in shapes]), shapes, strict=True
        )
    )
    mean, variance, occupied, average, directions, constant, folded, unit, second, gram = parts
    computed = next((x.dtype for x in (grad_context, grad_penalty) if x is not None), exact)
    if grad_context is None:
        grad_context = state.new_zeros((rows, width))
    if grad_penalty is None:
        grad_penalty = state.new_zeros(())
    inputs = (
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
    )
    with torch.autocast(device_type=state.device.type, enabled=False):
        *incoming, grad_out_bias = (
            x.to(exact) for x in collapse.context_backward(*(x.to(computed) for x in inputs))
        )
        parameters = (latents, in_weight, in_bias, token_weight, token_bias, out_weight)
        return *collapse.project_backward(
            *incoming, *parameters, folded.to(exact), unit.to(exact)
        ), grad_out_bias


def _fake_step_backward(
    grad_context: Tensor | None, grad_penalty: Tensor | None, *others: object
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in others[:7])


define(
    f"scalar_masking({PARAMETERS}, Tensor out_bias, Tensor values, Tensor? crow, Tensor? col, Tensor? valid, Tensor? maskable, "
    "Tensor? num_masked, Tensor? chosen, Tensor? sample_ids, Tensor seed, Tensor step, SymInt heads, SymInt num_chosen, float mask_ratio, "
    "float eps, float inverse_temperature, bool visible, SymInt num_positions, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_step,
    _fake_step,
)
define(
    f"scalar_masking_backward(Tensor? grad_context, Tensor? grad_penalty, {PARAMETERS}, Tensor out_bias, Tensor state, "
    "SymInt rows, SymInt heads, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_step_backward,
    _fake_step_backward,
)
