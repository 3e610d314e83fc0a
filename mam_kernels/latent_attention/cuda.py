"""The token path by the CUDA C++ kernels (csrc/cuda)."""

import torch
from torch import Tensor

from .. import native
from . import native as launcher


def forward(*args: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """As ``native.forward``."""
    return launcher.forward(native.cuda(), *args)


def logsumexp(*args: Tensor | float | None) -> Tensor:
    """As ``native.logsumexp``."""
    return launcher.logsumexp(native.cuda(), *args)


def importance(*args: Tensor | float | None) -> Tensor:
    """As ``native.importance``."""
    return launcher.importance(native.cuda(), *args)


def mask(*args: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """As ``native.mask``."""
    return launcher.mask(native.cuda(), *args)


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
    lib, device = native.cuda(), key.device
    grads = [torch.empty(x.shape, dtype=torch.float32, device=device) for x in (query, key, value)]
    queries, keys = launcher.tokens(lib, query), launcher.tokens(lib, key)
    grad_output, output = grad_output.contiguous(), output.contiguous()
    grad_logsumexp = None if grad_logsumexp is None else grad_logsumexp.contiguous()
    with native.on(device):
        scratch = native.workspace(lib.attention_backward_workspace(queries, keys), device)
        lib.latent_attention_backward(
            grad_output.data_ptr(),
            native.address(grad_logsumexp),
            queries,
            keys,
            launcher.tokens(lib, value),
            native.flags(lib, valid),
            output.data_ptr(),
            logsumexp.data_ptr(),
            scale,
            *map(native.address, grads),
            native.address(scratch),
            native.launch(lib, device),
        )
    grad_query, grad_key, grad_value = (grad.to(query.dtype) for grad in grads)
    return grad_query, grad_key, grad_value
