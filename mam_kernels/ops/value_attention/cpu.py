"""The value path by the C++ kernels on the CPU (csrc/cpu)."""

from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension, philox
from . import native as launcher


def moments(*args: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``native.moments``."""
    return launcher.moments(extension.cpu(), *args)


def mask(*args: Tensor | int | float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(extension.cpu(), *args)


# The whole step, as the operations of step.py; float32


def project(*arguments: Tensor | int) -> tuple[Tensor, ...]:
    """As ``collapse.project``: slopes, directions and constant, then what the gradient needs."""
    *parameters, heads = arguments
    count, width = parameters[0].shape
    out = tuple(
        torch.empty(shape, dtype=torch.float32)
        for shape in ((count, heads), (heads, width), (width,), (heads, width), (3, width))
    )
    lib = extension.cpu()
    contiguous = [x.contiguous() for x in parameters]
    lib.project(_projection(lib, contiguous, heads), *_addresses(out))
    return out


def step(
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
) -> tuple[Tensor, ...]:
    """Mask, importance, context and penalty, then the state that the gradient needs."""
    lib = extension.cpu()
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    count, width = latents.shape
    mask = torch.empty((rows, num_positions), dtype=torch.bool)
    importance = torch.empty((rows, num_positions), dtype=torch.float32)
    context = torch.empty((rows, width), dtype=torch.float32)
    penalty = torch.empty((), dtype=torch.float32)
    state = torch.empty(lib.state_size(rows, count, heads, width), dtype=torch.float32)
    parameters = (latents, in_weight, in_bias, token_weight, token_bias, out_weight, out_bias)
    *parameters, out_bias = [x.contiguous() for x in parameters]
    lib.masking_step(
        _projection(lib, parameters, heads),
        out_bias.data_ptr(),
        extension.values(lib, values, crow, col, num_positions),
        extension.flags(lib, valid),
        extension.flags(lib, valid if maskable is None else maskable),
        extension.address(chosen),
        num_chosen if chosen is None else chosen.shape[0],
        extension.address(num_masked),
        mask_ratio,
        extension.draw(lib, seed, step, sample_ids, philox.STREAM_POSITIONS),
        lib.Weighting(eps, inverse_temperature),
        visible,
        mask.data_ptr(),
        importance.data_ptr(),
        context.data_ptr(),
        penalty.data_ptr(),
        state.data_ptr(),
        lib.Launch(0, torch.get_num_threads()),
    )
    return mask, importance, context, penalty, state


def step_backward(
    grad_context: Tensor | None, grad_penalty: Tensor | None, *tensors: Tensor | int
) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    lib = extension.cpu()
    *given, rows, heads = tensors
    *parameters, out_bias, state = [x.contiguous() for x in given]
    out = tuple(torch.empty(x.shape, dtype=torch.float32) for x in (*parameters, out_bias))
    incoming = [x if x is None else x.contiguous() for x in (grad_context, grad_penalty)]
    lib.masking_step_backward(
        _projection(lib, parameters, heads),
        out_bias.data_ptr(),
        rows,
        state.data_ptr(),
        *map(extension.address, incoming),
        *_addresses(out),
        lib.Launch(0, torch.get_num_threads()),
    )
    return out


def _projection(lib: ModuleType, parameters: list[Tensor], heads: int) -> object:
    """Contiguous parameters as ``Projection``."""
    count, width = parameters[0].shape
    return lib.Projection(*_addresses(parameters), count, heads, width)


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]
