"""Launches the value path of an extension module: the C++ kernels on the CPU, or the CUDA ones."""

from types import ModuleType

import torch
from torch import Tensor

from ..._core import extension, philox


def _empty_moments(
    values: Tensor, crow: Tensor | None, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    shape, device = (rows, *slope.shape), values.device
    return tuple(torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3))


def moments(
    lib: ModuleType,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    slope: Tensor,
    valid: Tensor | None,
    num_positions: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """log M, mean and variance of every cell and slope; each (B, N, H) float32."""
    device = values.device
    out = _empty_moments(values, crow, slope)
    cells = extension.values(lib, values, crow, col, num_positions)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(cells, slope.numel()), device)
        lib.value_attention(
            cells,
            extension.flags(lib, valid),
            slope.data_ptr(),
            slope.numel(),
            lib.Moments(*map(extension.address, out)),
            extension.address(scratch),
            extension.launch(lib, device),
        )
    return out


def mask(
    lib: ModuleType,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    slope: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    latents: Tensor,
    sample_ids: Tensor | None,
    seed: Tensor,
    step: Tensor,
    eps: float,
    inverse_temperature: float,
    num_positions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The masking step in one call: (mask, importance), each (B, L), then the moments, each (B, N,
    H).
    """
    device = values.device
    out = _empty_moments(values, crow, slope)
    hidden = torch.empty((out[0].shape[0], num_positions), dtype=torch.bool, device=device)
    importance = torch.empty(hidden.shape, dtype=torch.float32, device=device)
    cells = extension.values(lib, values, crow, col, num_positions)
    with extension.on(device):
        scratch = extension.workspace(lib.value_workspace(cells, slope.numel()), device)
        lib.value_mask(
            cells,
            extension.flags(lib, valid),
            extension.flags(lib, valid if maskable is None else maskable),
            slope.data_ptr(),
            slope.shape[0],
            slope.shape[1],
            latents.data_ptr(),
            latents.numel(),
            num_masked.data_ptr(),
            extension.draw(lib, seed, step, sample_ids, philox.STREAM_POSITIONS),
            lib.Weighting(eps, inverse_temperature),
            hidden.data_ptr(),
            importance.data_ptr(),
            lib.Moments(*map(extension.address, out)),
            extension.address(scratch),
            extension.launch(lib, device),
        )
    return hidden, importance, *out
