"""The type of a computation under autocast."""

import contextlib

import torch
from torch import Tensor

META = "meta"
"""The one device without autocast. (torch 2.11 cannot compile ``is_autocast_available``.)"""


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type of products of ``x`` under autocast where that is on; else the type of ``x``."""
    device = x.device.type
    if device != META and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, products keep the type of their arguments."""
    if device.type == META:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)
