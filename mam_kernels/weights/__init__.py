"""Trained weights: safetensors files that hold their configuration too, and checkpoints of the
published code::

    masker = mam.weights.from_published("model.ckpt", num_heads=8, mask_ratio=0.3)
    injection = mam.weights.injection_from_published("model.ckpt", scheme="decoder")
    mam.weights.save(masker, "masker.safetensors")
    masker = mam.weights.load("masker.safetensors")

A file that is damaged, cut short, of other sizes or something else is refused with a
`WeightsError`, which says in one line what was found. Safetensors files need the package
safetensors.
"""

from .files import WeightsError
from .modules import load, save
from .published import from_published, injection_from_published

__all__ = ["WeightsError", "from_published", "injection_from_published", "load", "save"]
