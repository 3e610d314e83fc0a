"""The arguments of the value path's functions: each is checked by its namesake here, before a
backend's (see _core/arguments.py), and returned ready for use. And the state that a masking step
keeps for its gradient.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._core import arguments
from ..._core.arguments import accumulation, flat
from ..._core.call import Cells, Choice, Draw, Parameters, Weighting


def state_size(rows: int, latents: int, heads: int, width: int) -> int:
    """Elements of what a masking step keeps for its backward pass."""
    by_row = 2 * latents * heads + 1 + heads
    return rows * by_row + 2 * heads * width + 4 * width + 2 * heads * heads


class State(NamedTuple):
    """What a masking step keeps for the gradient, as one flat tensor."""

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


def state_shapes(rows: int, latents: int, heads: int, width: int) -> list[tuple[int, ...]]:
    """The shapes of the parts of ``State``, in their order."""
    moments, square = (rows, latents, heads), (heads, heads)
    by_head = (heads, width)
    return [
        moments,
        moments,
        (rows,),
        (rows, heads),
        by_head,
        (width,),
        by_head,
        (3, width),
        square,
        square,
    ]


def state_parts(state: Tensor, rows: int, latents: int, heads: int, width: int) -> State:
    """The parts of a flat state."""
    shapes = state_shapes(rows, latents, heads, width)
    parts = state.split([math.prod(shape) for shape in shapes])
    return State(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def _slope(slope: Tensor, cells: Cells) -> Tensor:
    return flat("slope", slope, accumulation(cells.values), (None, None), cells.values.device)


def moments(cells: Cells, slope: Tensor) -> tuple:
    """Arguments of ``moments``."""
    cells = arguments.checked_cells(cells)
    return cells, _slope(slope, cells)


def mask(cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw) -> tuple:
    """Arguments of ``mask``."""
    cells = arguments.checked_cells(cells)
    slope, device = _slope(slope, cells), cells.values.device
    arguments.require_given(choice)
    choice = arguments.checked_choice(choice, cells.rows, cells.num_positions, len(slope), device)
    draw = arguments.checked_draw(draw, cells.rows, device)
    return cells, slope, choice, arguments.checked_weighting(weighting), draw


def step(
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
) -> tuple[Cells, Parameters, int, Choice, Weighting, Draw, bool]:
    """Arguments of ``step``."""
    cells, device = arguments.checked_cells(cells), cells.values.device
    parameters = arguments.checked_parameters(parameters, heads, device)
    num_latents = len(parameters.latents)
    shape = (cells.rows, cells.num_positions)
    choice = arguments.checked_choice(choice, *shape, num_latents, device, zeros=True)
    if choice.latents is not None:
        choice = choice._replace(latents=arguments.existing(choice.latents, num_latents))
    draw = arguments.checked_draw(draw, cells.rows, device)
    return cells, parameters, heads, choice, arguments.checked_weighting(weighting), draw, visible


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: Tensor,
    rows: int,
) -> tuple:
    """Arguments of ``step_backward``."""
    device = state.device
    parameters = arguments.checked_parameters(parameters, heads, device)
    arguments.integer("rows", rows, 0)
    count, width = parameters.latents.shape
    size, kinds = state_size(rows, count, heads, width), (torch.float32, torch.float64)
    state = flat("state", state, kinds, (size,), device)
    allowed = kinds[:1] if state.dtype == torch.float32 else kinds
    incoming = arguments.incoming(grad_context, grad_penalty, allowed, (rows, width), device)
    return *incoming, parameters, heads, state, rows
