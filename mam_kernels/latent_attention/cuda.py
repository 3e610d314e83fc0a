"""The token path by the CUDA C++ kernels (csrc/cuda)."""

from types import ModuleType

import torch
from torch import Tensor

from .. import native, philox


def _tokens(lib: ModuleType, x: Tensor) -> object:
    """Queries (N, H, d), which the batch shares, or tokens (B, L, H, d), as ``Tokens``. The innermost stride must be 1."""
    batch, stride = (1, 0) if x.dim() == 3 else (x.shape[0], x.stride(0))
    positions, heads, width = x.shape[-3:]
    return lib.Tokens(x.data_ptr(), native.dtype(lib, x), batch, positions, heads, width, stride, x.stride(-3), x.stride(-2))


def _no_tokens(lib: ModuleType) -> object:
    return lib.Tokens(0, lib.DType.float32, 0, 0, 0, 0, 0, 0, 0)


def _empty_logsumexp(query: Tensor, key: Tensor) -> Tensor:
    return torch.empty((key.shape[0], *query.shape[:2]), dtype=torch.float32, device=key.device)


def _attend(query: Tensor, key: Tensor, value: Tensor | None, valid: Tensor | None, scale: float, output: Tensor | None) -> Tensor:
    """Runs the attention; writes ``output`` where there is a value, and returns the log-sum-exp."""
    lib, device = native.cuda(), key.device
    logsumexp = _empty_logsumexp(query, key)
    queries, keys = _tokens(lib, query), _tokens(lib, key)
    with native.on(device):
        scratch = native.workspace(lib.attention_workspace(queries, keys), device)
        lib.latent_attention(
            queries,
            keys,
            _no_tokens(lib) if value is None else _tokens(lib, value),
            native.flags(lib, valid),
            scale,
            native.address(output),
            logsumexp.data_ptr(),
            native.address(scratch),
            native.launch(lib, device),
        )
    return logsumexp


def forward(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attended values (B, N, H, d) and the log-sum-exp of the scores (B, N, H)."""
    output = torch.empty((key.shape[0], *query.shape), dtype=query.dtype, device=query.device)
    return output, _attend(query, key, value, valid, scale, output)


def logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """The log-sum-exp of the scores alone; (B, N, H)."""
    return _attend(query, key, None, valid, scale, None)


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
    queries, keys = _tokens(lib, query), _tokens(lib, key)
    grad_output, output = grad_output.contiguous(), output.contiguous()
    grad_logsumexp = None if grad_logsumexp is None else grad_logsumexp.contiguous()
    with native.on(device):
        scratch = native.workspace(lib.attention_backward_workspace(queries, keys), device)
        lib.latent_attention_backward(
            grad_output.data_ptr(),
            native.address(grad_logsumexp),
            queries,
            keys,
            _tokens(lib, value),
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


def importance(query: Tensor, key: Tensor, logsumexp: Tensor, latents: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """The attention that the chosen latents pay to each token; (B, L) float32."""
    lib, device = native.cuda(), key.device
    out = torch.empty(key.shape[:2], dtype=torch.float32, device=device)
    with native.on(device):
        lib.attention_importance(
            _tokens(lib, query),
            _tokens(lib, key),
            logsumexp.data_ptr(),
            latents.data_ptr(),
            latents.numel(),
            native.flags(lib, valid),
            scale,
            out.data_ptr(),
            native.launch(lib, device),
        )
    return out


def mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    sample_ids: Tensor | None,
    seed: Tensor,
    step: Tensor,
    eps: float,
    inverse_temperature: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Importance of the chosen latents, and the draw; (B, L) bool and (B, L)."""
    lib, device = native.cuda(), key.device
    hidden = torch.empty(key.shape[:2], dtype=torch.bool, device=device)
    out = torch.empty(key.shape[:2], dtype=torch.float32, device=device)
    queries, keys = _tokens(lib, query), _tokens(lib, key)
    with native.on(device):
        scratch = native.workspace(lib.attention_workspace(queries, keys), device)
        lib.token_mask(
            queries,
            keys,
            logsumexp.data_ptr(),
            latents.data_ptr(),
            latents.numel(),
            native.flags(lib, valid),
            native.flags(lib, valid if maskable is None else maskable),
            scale,
            num_masked.data_ptr(),
            native.draw(lib, seed, step, sample_ids, philox.STREAM_POSITIONS),
            lib.Weighting(eps, inverse_temperature),
            hidden.data_ptr(),
            out.data_ptr(),
            native.address(scratch),
            native.launch(lib, device),
        )
    return hidden, out
