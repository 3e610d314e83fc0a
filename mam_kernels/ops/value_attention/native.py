"""The value path by the kernels of an extension module: C++ on the CPU (csrc/cpu) or CUDA
(csrc/cuda).

Each function takes the module, ``lib``, first: ``extension.cpu()`` or ``extension.cuda()``. Its
arguments are checked and contiguous (_core/arguments.py), but for the strides of dense values and
of flags.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension
from ..._core.call import Cells, Choice, Draw, Parameters, Weighting

LOOKS = {"step": "step_fits", "step_backward": "step_backward_fits"}
"""Function -> that of the module which says whether its arguments are as they must be."""


def _empty_moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = (cells.rows, *slope.shape), cells.values.device
    log_partition = torch.empty(shape, dtype=torch.float32, device=device)
    return log_partition, torch.empty_like(log_partition), torch.empty_like(log_partition)


def moments(lib: ModuleType, cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell and slope; each (B, N, H) float32."""
    device, out = cells.values.device, _empty_moments(cells, slope)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(cells, slope.numel()), device)
        where = extension.launch(lib, device)
        lib.value_attention(cells, cells.valid, slope, out, scratch, where)
    return out


def mask(
    lib: ModuleType,
    cells: Cells,
    slope: Tensor,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The masking step in one call: (mask, importance), each (B, L), then the moments, each
    (B, N, H). ``choice`` gives num_masked and latents.
    """
    device, out = cells.values.device, _empty_moments(cells, slope)
    hidden = torch.empty((cells.rows, cells.num_positions), dtype=torch.bool, device=device)
    importance = torch.empty(hidden.shape, dtype=torch.float32, device=device)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(cells, slope.numel()), device)
        lib.value_mask(
            cells,
            cells.valid,
            slope,
            *slope.shape,
            choice,
            draw,
            weighting,
            hidden,
            importance,
            out,
            scratch,
            extension.launch(lib, device),
        )
    return hidden, importance, *out


# The whole step, for parameters of float32


def step(
    lib: ModuleType,
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
) -> tuple[Tensor, ...]:
    """Mask, importance, context and penalty, then the state that the gradient needs."""
    rows, positions, (count, width) = cells.rows, cells.num_positions, parameters.latents.shape
    device = cells.values.device
    mask = torch.empty((rows, positions), dtype=torch.bool, device=device)
    num_chosen = choice.num_drawn if choice.latents is None else len(choice.latents)
    state_size, num_bytes = lib.step_memory(rows, count, heads, width, num_chosen)
    shapes = ((rows, positions), (rows, width), (), (state_size,))
    floats = [torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes]
    with extension.on(device):
        scratch = extension.workspace(num_bytes, device)
        lib.masking_step(
            parameters,
            heads,
            cells,
            cells.valid,
            choice,
            draw,
            weighting,
            visible,
            mask,
            *floats,
            scratch,
            extension.launch(lib, device),
        )
    return mask, *floats


def step_backward(
    lib: ModuleType,
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: Tensor,
    rows: int,
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    device, (count, width) = state.device, parameters.latents.shape
    out = tuple(map(torch.empty_like, parameters))
    with extension.on(device):
        scratch = extension.workspace(
            lib.step_backward_workspace(rows, count, heads, width), device
        )
        lib.masking_step_backward(
            parameters,
            heads,
            rows,
            state,
            grad_context,
            grad_penalty,
            out,
            scratch,
            extension.launch(lib, device),
        )
    return out
