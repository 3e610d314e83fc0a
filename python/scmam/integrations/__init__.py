"""Multinomial Attention Masking inside frameworks that people already train with.

An adapter is an ``nn.Module``: called with a batch in a framework's own terms, it returns a ``MaskedBatch``: what the framework's model
reads, what it is to predict, and the context. All rest on one core, ``MaskingStep``.

Names are looked up when they are used: importing this needs neither transformers nor Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    ".bmfm": ("LatentMaskingStrategy",),
    ".checking": ("FirstBatch", "Finding", "check_first_batch"),
    ".core": ("MaskedBatch", "MaskingStep", "real_tokens"),
    ".hugging_face": ("MamConfig", "MamForMaskedLM", "PaddingCollator"),
    ".lightning": ("MaskedPretrainingMixin",),
    ".nicheformer": ("NicheformerMasking",),
    ".scbert": ("ScBertMasking",),
    ".scfoundation": ("ScFoundationMasking",),
    ".scgpt": ("ScGptMasking",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
