"""The masking step on scalar values as one operation: from parameters and cells to mask, context
and penalty, and its gradient.

A step of a few cells takes less than a handful of operations cost their host, hence one operation,
and one node of autograd. A backend may offer the whole step:

    step(cells, parameters, heads, choice, weighting, draw, visible)
        -> mask, importance, context, penalty, state
    step_backward(grad_context, grad_penalty, parameters, heads, state, rows)
        -> the gradients by the parameters, in their order

for float32 parameters; ``state`` is float32 (S,), laid out as ``arguments.State``. On other
backends and types the step is made of its parts, see ``composed.py``.
"""

import torch
from torch import Tensor

from ..._core.call import Cells, Choice, Draw, Parameters, Weighting
from ..._core.dispatch import chosen, optional
from ..._core.registration import Operation, no_second_derivative
from . import arguments, composed

ZEROS_APART = ("cpu",)
"""Backends whose own step draws zeros apart; those of others are drawn beside it."""


def _has_steps(parameters: Parameters) -> bool:
    """Whether a backend may have a step of its own for these."""
    return parameters.latents.dtype == torch.float32


def _run(
    parameters: Parameters,
    cells: Cells,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    heads: int,
    visible: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    parts = (cells, parameters, heads, choice, weighting, draw, visible)
    runs = chosen("value_mask", backend, cells.values)
    step = optional("value_mask", "step", runs) if _has_steps(parameters) else None
    if step is None:
        return composed.step(*arguments.step(*parts), backend)
    if choice.zeros_apart and runs not in ZEROS_APART:
        return composed.step_and_zeros(step, *arguments.step(*parts), backend)
    return step(*parts)


def _fake(
    parameters: Parameters,
    cells: Cells,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    heads: int,
    visible: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    latents, exact = parameters.latents, cells.accumulated
    shape, (count, width) = (cells.rows, cells.num_positions), latents.shape
    size = arguments.state_size(cells.rows, count, heads, width)
    return (
        latents.new_empty(shape, dtype=torch.bool),
        latents.new_empty(shape, dtype=exact),
        latents.new_empty((cells.rows, width), dtype=exact),
        latents.new_empty((), dtype=exact),
        latents.new_empty(size, dtype=torch.promote_types(latents.dtype, exact)),
    )


def _run_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    state: Tensor,
    rows: int,
    heads: int,
    backend: str,
) -> tuple[Tensor, ...]:
    parts = (grad_context, grad_penalty, parameters, heads, state, rows)
    if _has_steps(parameters):
        runs = chosen("value_mask", backend, state)
        if backward := optional("value_mask", "step_backward", runs):
            return backward(*parts)
    return composed.step_backward(*arguments.step_backward(*parts))


def _fake_backward(
    grad_context: Tensor | None, grad_penalty: Tensor | None, parameters: Parameters, *_: object
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in parameters)


masking_backward = Operation(
    "scalar_masking_backward",
    {
        "grad_context": Tensor | None,
        "grad_penalty": Tensor | None,
        "parameters": Parameters,
        "state": Tensor,
        "rows": int,
        "heads": int,
        "backend": str,
    },
    {"grad": Parameters},
    _run_backward,
    _fake_backward,
    backward=no_second_derivative("scalar_masking"),
)


def _save(ctx, parts: list, results: tuple[Tensor, ...]) -> None:
    parameters, cells, *_, heads, _visible, backend = parts
    mask, importance, context, _, state = results
    ctx.mark_non_differentiable(mask, importance, state)
    ctx.save_for_backward(*parameters, state)
    # The backend of the forward pass runs the backward pass too.
    ctx.others = (context.shape[0], heads, chosen("value_mask", backend, cells.values))


def _backward(ctx, _mask, _importance, grad_context, grad_penalty, _state) -> dict:
    *parameters, state = ctx.saved_tensors
    gradients = masking_backward.in_backward(
        ctx, grad_context, grad_penalty, Parameters(*parameters), state, *ctx.others
    )
    return {"parameters": gradients}


masking = Operation(
    "scalar_masking",
    {
        "parameters": Parameters,
        "cells": Cells,
        "choice": Choice,
        "weighting": Weighting,
        "draw": Draw,
        "heads": int,
        "visible": bool,
        "backend": str,
    },
    {
        "mask": Tensor,
        "importance": Tensor,
        "context": Tensor,
        "penalty": Tensor,
        "state": Tensor,
    },
    _run,
    _fake,
    save=_save,
    backward=_backward,
    differentiable=("parameters",),
)
"""Mask, importance, context and penalty of a batch of cells, then the state of the gradient;
differentiable in the parameters, which are of one dtype.
"""
