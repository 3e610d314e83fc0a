"""Multinomial Attention Masking inside frameworks that people already train with.

An adapter is an ``nn.Module``: called with a batch in a framework's own terms, it returns a
``MaskedBatch``: what the framework's model reads, what it is to predict, and the context. All rest
on one core, ``MaskingStep``.

Names are looked up when they are used: importing this needs neither transformers nor Lightning.
"""

from .._core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".bmfm": ("LatentMaskingStrategy",),
        ".checking": ("FirstBatch", "Finding", "check_first_batch"),
        ".core": ("MaskedBatch", "MaskingStep"),
        ".formats": ("BatchFormat", "real_tokens"),
        ".hugging_face": ("MamConfig", "MamForMaskedLM", "PaddingCollator"),
        ".lightning": ("MaskedPretrainingMixin",),
        ".nicheformer": ("NicheformerMasking", "nicheformer_with_masking"),
        ".places": ("Place",),
        ".reading": ("NotReadError",),
        ".scbert": ("ScBertMasking",),
        ".scfoundation": ("ScFoundationMasking",),
        ".scgpt": ("ScGptMasking",),
    },
)
