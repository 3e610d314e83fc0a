"""The value path by the C++ kernels on the CPU (csrc/cpu)."""

import torch
from torch import Tensor

from .. import native
from . import native as launcher


def moments(*args: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``native.moments``."""
    return launcher.moments(native.cpu(), *args)


def mask(*args: Tensor | int | float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(native.cpu(), *args)


# What is computed before and after, as the functions of the same names in collapse.py; float32


def project(*arguments: Tensor | int) -> tuple[Tensor, ...]:
    """Slopes, directions and constant, then what the gradient needs."""
    *given, heads = arguments
    parameters = [x.contiguous() for x in given]
    count, width = parameters[0].shape
    out = _empty((count, heads), (heads, width), (width,), (heads, width), (3, width))
    lib = native.cpu()
    lib.project(lib.Projection(*_addresses(parameters), count, heads, width), *_addresses(out), torch.get_num_threads())
    return out


def project_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients by the parameters, in their order."""
    contiguous = [x.contiguous() for x in tensors]
    incoming, parameters, (folded, unit) = contiguous[:3], contiguous[3:9], contiguous[9:]
    count, width = parameters[0].shape
    out = tuple(torch.empty_like(x) for x in parameters)
    lib = native.cpu()
    lib.project_backward(
        lib.Projection(*_addresses(parameters), count, folded.shape[0], width),
        *_addresses((folded, unit, *incoming, *out)),
        torch.get_num_threads(),
    )
    return out


def context(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Context and penalty, then what the gradient needs."""
    inputs = [x.contiguous() for x in tensors]
    (rows, _, heads), width = inputs[0].shape, inputs[3].shape[1]
    out = _empty((rows, width), (), (rows, heads), (heads, heads), (heads, heads))
    lib = native.cpu()
    lib.context(_context_input(lib, inputs), *_addresses(out), torch.get_num_threads())
    return out


def context_backward(grad_context: Tensor, grad_penalty: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients by the slopes, the directions, the constant and the bias."""
    inputs = [x.contiguous() for x in tensors[:6]]
    saved, grad_context = [x.contiguous() for x in tensors[6:]], grad_context.contiguous()
    out = _empty(inputs[0].shape[1:], *(x.shape for x in inputs[3:]))
    lib = native.cpu()
    lib.context_backward(
        _context_input(lib, inputs), *_addresses((*saved, grad_context)), grad_penalty.item(), *_addresses(out), torch.get_num_threads()
    )
    return out


def _empty(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.empty(shape, dtype=torch.float32) for shape in shapes)


def _addresses(tensors: tuple[Tensor, ...] | list[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _context_input(lib: object, inputs: list[Tensor]) -> object:
    rows, latents, heads = inputs[0].shape
    return lib.ContextInput(*_addresses(inputs), rows, latents, heads, inputs[3].shape[1])
