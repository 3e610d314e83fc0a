"""The type of a computation under autocast."""

import contextlib

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type that autocast, where it is on, has products of ``x`` computed in; else its own."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, products keep the type of their arguments."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)
