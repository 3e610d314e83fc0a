"""The token path by the kernels of an extension module: C++ on the CPU (csrc/cpu) or CUDA
(csrc/cuda).

Each function takes the module, ``lib``, first: ``extension.cpu()`` or ``extension.cuda()``. Its
arguments are checked and contiguous (_core/arguments.py), but for the strides of tokens, which are
dense in their width, and of flags.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension
from ..._core.call import Choice, Draw, Weighting


def _attend(
    lib: ModuleType,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    valid: Tensor | None,
    scale: float,
    output: Tensor | None,
) -> Tensor:
    """Runs the attention; writes ``output`` where there is a value, and returns the log-sum-exp."""
    device, shape = key.device, (key.shape[0], *query.shape[:2])
    logsumexp = torch.empty(shape, dtype=torch.float32, device=device)
    with extension.on(device):
        scratch = extension.workspace(lib.attention_workspace(query, key), device)
        where = extension.launch(lib, device)
        lib.latent_attention(query, key, value, valid, scale, output, logsumexp, scratch, where)
    return logsumexp


def forward(
    lib: ModuleType, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attended values (B, N, H, d) and the log-sum-exp of the scores (B, N, H)."""
    output = torch.empty((key.shape[0], *query.shape), dtype=query.dtype, device=query.device)
    return output, _attend(lib, query, key, value, valid, scale, output)


def logsumexp(
    lib: ModuleType, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
) -> Tensor:
    """The log-sum-exp of the scores alone; (B, N, H)."""
    return _attend(lib, query, key, None, valid, scale, None)


def backward(
    lib: ModuleType,
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
    device, dtype = key.device, query.dtype
    grads = [torch.empty(x.shape, dtype=torch.float32, device=device) for x in (query, key, value)]
    with extension.on(device):
        scratch = extension.workspace(lib.attention_backward_workspace(query, key), device)
        lib.latent_attention_backward(
            grad_output,
            grad_logsumexp,
            query,
            key,
            value,
            valid,
            output,
            logsumexp,
            scale,
            *grads,
            scratch,
            extension.launch(lib, device),
        )
    grad_query, grad_key, grad_value = (grad.to(dtype) for grad in grads)
    return grad_query, grad_key, grad_value


def importance(
    lib: ModuleType,
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
) -> Tensor:
    """The attention that the chosen latents pay to each token; (B, L) float32."""
    device = key.device
    out = torch.empty(key.shape[:2], dtype=torch.float32, device=device)
    with extension.on(device):
        where = extension.launch(lib, device)
        lib.attention_importance(query, key, logsumexp, latents, valid, scale, out, where)
    return out


def mask(
    lib: ModuleType,
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    valid: Tensor | None,
    scale: float,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
) -> tuple[Tensor, Tensor]:
    """The draw, and the importance of the chosen latents; (B, L) bool and (B, L) float32.

    ``choice`` gives num_masked and latents.
    """
    device = key.device
    hidden = torch.empty(key.shape[:2], dtype=torch.bool, device=device)
    out = torch.empty(key.shape[:2], dtype=torch.float32, device=device)
    with extension.on(device):
        scratch = extension.workspace(lib.attention_workspace(query, key), device)
        lib.token_mask(
            query,
            key,
            logsumexp,
            valid,
            scale,
            choice,
            draw,
            weighting,
            hidden,
            out,
            scratch,
            extension.launch(lib, device),
        )
    return hidden, out
