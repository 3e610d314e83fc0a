"""Launches the token path of an extension module: the C++ kernels on the CPU, or the CUDA ones."""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension, philox


def tokens(lib: ModuleType, x: Tensor) -> object:
    """Queries (N, H, d), which the batch shares, or tokens (B, L, H, d), as ``Tokens``.

    The innermost stride must be 1.
    """
    batch, stride = (1, 0) if x.dim() == 3 else (x.shape[0], x.stride(0))
    positions, heads, width = x.shape[-3:]
    return lib.Tokens(
        x.data_ptr(),
        extension.dtype(lib, x),
        batch,
        positions,
        heads,
        width,
        stride,
        x.stride(-3),
        x.stride(-2),
    )


def _no_tokens(lib: ModuleType) -> object:
    return lib.Tokens(0, lib.DType.float32, 0, 0, 0, 0, 0, 0, 0)


def _empty_logsumexp(query: Tensor, key: Tensor) -> Tensor:
    return torch.empty((key.shape[0], *query.shape[:2]), dtype=torch.float32, device=key.device)


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
    device = key.device
    logsumexp = _empty_logsumexp(query, key)
    queries, keys = tokens(lib, query), tokens(lib, key)
    with extension.on(device):
        scratch = extension.workspace(lib.attention_workspace(queries, keys), device)
        lib.latent_attention(
            queries,
            keys,
            _no_tokens(lib) if value is None else tokens(lib, value),
            extension.flags(lib, valid),
            scale,
            extension.address(output),
            logsumexp.data_ptr(),
            extension.address(scratch),
            extension.launch(lib, device),
        )
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
        lib.attention_importance(
            tokens(lib, query),
            tokens(lib, key),
            logsumexp.data_ptr(),
            latents.data_ptr(),
            latents.numel(),
            extension.flags(lib, valid),
            scale,
            out.data_ptr(),
            extension.launch(lib, device),
        )
    return out


def mask(
    lib: ModuleType,
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
    device = key.device
    hidden = torch.empty(key.shape[:2], dtype=torch.bool, device=device)
    out = torch.empty(key.shape[:2], dtype=torch.float32, device=device)
    queries, keys = tokens(lib, query), tokens(lib, key)
    with extension.on(device):
        scratch = extension.workspace(lib.attention_workspace(queries, keys), device)
        lib.token_mask(
            queries,
            keys,
            logsumexp.data_ptr(),
            latents.data_ptr(),
            latents.numel(),
            extension.flags(lib, valid),
            extension.flags(lib, valid if maskable is None else maskable),
            scale,
            num_masked.data_ptr(),
            extension.draw(lib, seed, step, sample_ids, philox.STREAM_POSITIONS),
            lib.Weighting(eps, inverse_temperature),
            hidden.data_ptr(),
            out.data_ptr(),
            extension.address(scratch),
            extension.launch(lib, device),
        )
    return hidden, out
