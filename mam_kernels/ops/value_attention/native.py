"""The value path by the kernels of an extension module: C++ on the CPU (csrc/cpu) or CUDA
(csrc/cuda).

Each function takes the module, ``lib``, first: ``extension.cpu()`` or ``extension.cuda()``. Its
arguments are checked and contiguous (_core/arguments.py), but for the strides of dense values and
of flags.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension, philox
from ..._core.call import Cells, Choice, Draw, Parameters, Weighting


def _empty_moments(cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = (cells.rows, *slope.shape), cells.values.device
    log_partition = torch.empty(shape, dtype=torch.float32, device=device)
    return log_partition, torch.empty_like(log_partition), torch.empty_like(log_partition)


def moments(lib: ModuleType, cells: Cells, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell and slope; each (B, N, H) float32."""
    device, out = cells.values.device, _empty_moments(cells, slope)
    values = extension.values(lib, cells)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(values, slope.numel()), device)
        lib.value_attention(
            values,
            extension.flags(lib, cells.valid),
            slope.data_ptr(),
            slope.numel(),
            lib.Moments(*map(extension.address, out)),
            extension.address(scratch),
            extension.launch(lib, device),
        )
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
    num_masked, latents = choice.given()
    values = extension.values(lib, cells)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(values, slope.numel()), device)
        lib.value_mask(
            values,
            extension.flags(lib, cells.valid),
            extension.flags(lib, cells.valid if choice.maskable is None else choice.maskable),
            slope.data_ptr(),
            *slope.shape,
            latents.data_ptr(),
            latents.numel(),
            num_masked.data_ptr(),
            extension.draw(lib, draw, philox.STREAM_POSITIONS),
            lib.Weighting(*weighting),
            hidden.data_ptr(),
            importance.data_ptr(),
            lib.Moments(*map(extension.address, out)),
            extension.address(scratch),
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
    shapes = ((rows, positions), (rows, width), (), (lib.state_size(rows, count, heads, width),))
    floats = [torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes]
    maskable, num_masked, mask_ratio, latents, num_drawn, num_zeros, zero_ratio = choice
    num_chosen = num_drawn if latents is None else len(latents)
    valid = extension.flags(lib, cells.valid)
    with extension.on(device):
        scratch = extension.workspace(
            lib.step_workspace(rows, count, heads, width, num_chosen), device
        )
        lib.masking_step(
            _projection(lib, parameters, heads),
            parameters.out_bias.data_ptr(),
            extension.values(lib, cells),
            valid,
            valid if maskable is None else extension.flags(lib, maskable),
            extension.address(latents),
            num_chosen,
            extension.address(num_masked),
            mask_ratio,
            extension.address(num_zeros),
            zero_ratio,
            extension.draw(lib, draw, philox.STREAM_POSITIONS),
            lib.Weighting(*weighting),
            visible,
            mask.data_ptr(),
            *[x.data_ptr() for x in floats],
            extension.address(scratch),
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
            _projection(lib, parameters, heads),
            parameters.out_bias.data_ptr(),
            rows,
            state.data_ptr(),
            extension.address(grad_context),
            extension.address(grad_penalty),
            *[x.data_ptr() for x in out],
            extension.address(scratch),
            extension.launch(lib, device),
        )
    return out


def _projection(lib: ModuleType, parameters: Parameters, heads: int) -> object:
    """The parameters, all but out_proj's bias, as ``Projection``."""
    addresses = [x.data_ptr() for x in parameters[:-1]]
    count, width = parameters.latents.shape
    return lib.Projection(*addresses, count, heads, width)
