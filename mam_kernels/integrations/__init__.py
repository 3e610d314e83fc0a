"""Multinomial Attention Masking inside frameworks that people already train with.

An adapter is an ``nn.Module``: called with a batch in a framework's own terms, it returns a
``MaskedBatch``: what the framework's model reads, what it is to predict, and the context. All rest
on one core, ``MaskingStep``.

Names are looked up when they are used: importing this needs neither transformers nor Lightning.
"""

import importlib
from typing import Any

_MODULES = {
    "bmfm": ("LatentMaskingStrategy",),
    "checking": ("check_first_batch",),
    "collator": ("PaddingCollator",),
    "core": ("MaskingStep",),
    "findings": ("Finding", "FirstBatch"),
    "formats": ("BatchFormat", "real_tokens"),
    "hugging_face": ("MamConfig", "MamForMaskedLM"),
    "masked_batch": ("MaskedBatch",),
    "lightning": ("MaskedPretrainingMixin",),
    "nicheformer": ("NicheformerMasking", "nicheformer_with_masking"),
    "places": ("Place",),
    "reading": ("NotReadError",),
    "scbert": ("ScBertMasking",),
    "scfoundation": ("ScFoundationMasking",),
    "scgpt": ("ScGptMasking",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
