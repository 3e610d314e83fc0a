"""The masking step on scalar values, for backends without a whole step of their own: the products
of ``collapse.py`` around the backend's pass over the cells.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..._core.call import WITH_THE_REST, Cells, Choice, Draw, Parameters, Weighting
from ..._core.checks import count_masked
from ..._core.dispatch import implementation
from ..._core.precision import without_autocast
from ..selection.ops import completed
from . import collapse
from .arguments import State, state_parts
from .arguments import state_size as state_size
from .ops import empty_moments


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
    choice, zeros = _drawn_apart(cells, choice, draw, backend)
    with without_autocast(device):
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
            if zeros is not None:
                mask = mask | zeros
            left = ~mask if cells.valid is None else cells.valid & ~mask
            log_partition, mean, variance = _moments(cells._replace(valid=left), slope, backend)
        else:
            mask, importance, log_partition, mean, variance = _mask(
                cells, slope, choice, weighting, draw, backend
            )
        if zeros is not None:
            mask = mask | zeros
            importance = torch.where(cells.nonzero, importance, 0.0)
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


def step_and_zeros(
    whole: Callable[..., tuple[Tensor, ...]],
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """The step where zeros are drawn apart, by a backend whose own, ``whole``, does not."""
    choice, zeros = _drawn_apart(cells, choice, draw, backend)
    rest = (weighting, draw, False)
    mask, importance, *results = whole(cells, parameters, heads, choice, *rest)
    mask = mask if zeros is None else mask | zeros
    if visible:  # once more, without the hidden zeros too
        left = ~mask if cells.valid is None else cells.valid & ~mask
        nothing = choice._replace(
            maskable=None, num_masked=mask.new_zeros(cells.rows, dtype=torch.int32)
        )
        _, _, *results = whole(cells._replace(valid=left), parameters, heads, nothing, *rest)
    return mask, torch.where(cells.nonzero, importance, 0.0), *results


def _drawn_apart(
    cells: Cells, choice: Choice, draw: Draw, backend: str
) -> tuple[Choice, Tensor | None]:
    """The choice among the values that are not zero, and the zeros that are hidden, (B, L) bool; as
    it is, and None, where zeros are drawn with the rest.
    """
    if not choice.zeros_apart:
        return choice, None
    nonzero = cells.nonzero
    maskable = cells.valid if choice.maskable is None else choice.maskable
    zero = ~nonzero if maskable is None else maskable & ~nonzero
    others = nonzero if maskable is None else maskable & nonzero
    count = choice.num_zeros
    if count is None:
        count = count_masked(choice.zero_ratio, zero, cells.rows, cells.num_positions, zero.device)
    hidden = zero
    if zero.numel() > 0:
        run = implementation("sample_without_replacement", backend, cells.values)
        hidden = run(zero.to(cells.accumulated), count, None, draw)
    return choice._replace(maskable=others, num_zeros=None, zero_ratio=WITH_THE_REST), hidden


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
    kept = state_parts(state, rows, count, heads, width)
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
    with without_autocast(state.device):
        grad_slope, grad_directions, grad_constant, grad_out_bias = (
            x.to(exact) for x in collapse.context_backward(*(x.to(computed) for x in inputs))
        )
        gradients = collapse.project_backward(
            grad_slope,
            grad_directions,
            grad_constant,
            parameters,
            kept.folded.to(exact),
            kept.unit.to(exact),
        )
        return *gradients, grad_out_bias
