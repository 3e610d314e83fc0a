"""The token path by the CUDA C++ kernels (csrc/cuda)."""

import torch
from torch import Tensor

from ..._core import extension
from . import native as launcher


def forward(*args: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """As ``native.forward``."""
    return launcher.forward(extension.cuda(), *args)


def logsumexp(*args: Tensor | float | None) -> Tensor:
    """As ``native.logsumexp``."""
    return launcher.logsumexp(extension.cuda(), *args)


def importance(*args: Tensor | float | None) -> Tensor:
    """As ``native.importance``."""
    return launcher.importance(extension.cuda(), *args)


def mask(*args: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(extension.cuda(), *args)


def backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the query (N, H, d), the key and the value (B, L, H, d), in their dtype."""
    lib, device = extension.cuda(), key.device
    grads = [torch.empty(x.shape, dtype=torch.float32, device=device) for x in (query, key, value)]
    queries, keys = launcher.tokens(lib, query), launcher.tokens(lib, key)
    grad_output, output = grad_output.contiguous(), output.contiguous()
    grad_logsumexp = None if grad_logsumexp is None else grad_logsumexp.contiguous()
    with extension.on(device):
        scratch = extension.workspace(lib.attention_backward_workspace(queries, keys), device)
        lib.latent_attention_backward(
            grad_output.data_ptr(),
            extension.address(grad_logsumexp),
            queries,
            keys,
            launcher.tokens(lib, value),
            extension.flags(lib, valid),
            output.data_ptr(),
            logsumexp.data_ptr(),
            scale,
            *map(extension.address, grads),
            extension.address(scratch),
            extension.launch(lib, device),
        )
    grad_query, grad_key, grad_value = (grad.to(query.dtype) for grad in grads)
    return grad_query, grad_key, grad_value
