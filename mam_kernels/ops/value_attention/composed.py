"""The masking step on scalar values, for backends without a whole step of their own: the products
of ``collapse.py`` around the backend's pass over the cells.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._core.call import Cells, Choice, Draw, Parameters, Weighting
from ..._core.dispatch import implementation
from ..selection.ops import completed
from . import collapse
from .ops import empty_moments


class State(NamedTuple):
    """What is kept for the gradient, as one flat tensor."""

    mean: Tensor  # (B, N, H)
    variance: Tensor  # (B, N, H)
    occupied: Tensor  # (B,): 1 where a cell has tokens, else 0
    average: Tensor  # (B, H): the rest as in collapse.py
    directions: Tensor  # (H, Dz)
    constant: Tensor  # (Dz,)
    folded: Tensor  # (H, Dz)
    unit: Tensor  # (3, Dz)
    second: Tensor  # (H, H)
    gram: Tensor  # (H, H)


def state_shapes(rows: int, latents: int, heads: int, width: int) -> State:
    """The shapes of the state's parts."""
    moments, square = (rows, latents, heads), (heads, heads)
    return State(
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


def state_size(rows: int, latents: int, heads: int, width: int) -> int:
    """How many numbers the state holds."""
    return sum(math.prod(shape) for shape in state_shapes(rows, latents, heads, width))


def _parts_of(state: Tensor, rows: int, latents: int, heads: int, width: int) -> State:
    shapes = state_shapes(rows, latents, heads, width)
    parts = state.split([math.prod(shape) for shape in shapes])
    return State(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def step(
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mask, importance, context, penalty, and the state."""
    dtype, device = cells.accumulated, cells.values.device
    with torch.autocast(device_type=device.type, enabled=False):
        projected = collapse.project(parameters, heads)
        slope, directions, constant = (x.to(dtype) for x in projected[:3])
        choice = completed(
            choice,
            cells.valid,
            slope.shape[0],
            (cells.rows, cells.num_positions),
            draw,
            backend,
            cells.values,
        )
        if visible:  # only the slopes that decide are computed for the mask
            deciding = slope[choice.latents]
            every = torch.arange(deciding.shape[0], device=device)
            mask, importance, *_ = _mask(
                cells, deciding, choice._replace(latents=every), weighting, draw, backend
            )
            left = ~mask if cells.valid is None else cells.valid & ~mask
            moments = _moments(cells._replace(valid=left), slope, backend)
        else:
            mask, importance, *moments = _mask(cells, slope, choice, weighting, draw, backend)
        log_partition, mean, variance = moments
        occupied = (log_partition[:, 0, 0] != -torch.inf).to(dtype)
        context = collapse.context(
            mean, occupied, directions, constant, parameters.out_bias.to(dtype)
        )
        state = State(
            mean,
            variance,
            occupied,
            context.average,
            directions,
            constant,
            projected.folded,
            projected.unit,
            context.second,
            context.gram,
        )
        flat = torch.cat([x.flatten() for x in state])
        return mask, importance, context.context, context.penalty, flat


def _mask(
    cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw, backend: str
) -> tuple[Tensor, ...]:
    run = implementation("value_mask", backend, cells.values)
    if cells.rows * cells.num_positions == 0:
        mask = slope.new_zeros((cells.rows, cells.num_positions), dtype=torch.bool)
        return mask, mask.to(cells.accumulated), *empty_moments(cells, slope)
    return run(cells, slope, choice, weighting, draw)


def _moments(cells: Cells, slope: Tensor, backend: str) -> tuple[Tensor, ...]:
    run = implementation("value_attention", backend, cells.values)
    if cells.rows * cells.num_positions == 0:
        return empty_moments(cells, slope)
    return run(cells, slope)


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: Tensor,
    rows: int,
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    (count, width), exact = parameters.latents.shape, parameters.latents.dtype
    computed = next((x.dtype for x in (grad_context, grad_penalty) if x is not None), exact)
    if grad_context is None:
        grad_context = state.new_zeros((rows, width))
    if grad_penalty is None:
        grad_penalty = state.new_zeros(())
    kept = _parts_of(state, rows, count, heads, width)
    inputs = (
        grad_context,
        grad_penalty,
        kept.mean,
        kept.variance,
        kept.occupied,
        kept.directions,
        kept.constant,
        parameters.out_bias,
        kept.average,
        kept.second,
        kept.gram,
    )
    with torch.autocast(device_type=state.device.type, enabled=False):
        *incoming, grad_out_bias = (
            x.to(exact) for x in collapse.context_backward(*(x.to(computed) for x in inputs))
        )
        gradients = collapse.project_backward(
            *incoming, parameters, kept.folded.to(exact), kept.unit.to(exact)
        )
        return *gradients, grad_out_bias
