"""Which genes are hidden (`strategies`), and what stands in their place (`corruption`)."""

from .corruption import CORRUPTIONS, Corrupted, Outcomes, corrupt, corruption_shares, draw_outcomes
from .strategies import (
    ContextOnly,
    EmbeddingAttention,
    ExpressionSampling,
    Masking,
    MaskingStrategy,
    MatchedFractions,
    Nothing,
    Uniform,
    ValueAttention,
    attend_to_values,
    build_strategy,
    masking_entropy,
)

__all__ = [
    "CORRUPTIONS",
    "ContextOnly",
    "Corrupted",
    "EmbeddingAttention",
    "ExpressionSampling",
    "Masking",
    "MaskingStrategy",
    "MatchedFractions",
    "Nothing",
    "Outcomes",
    "Uniform",
    "ValueAttention",
    "attend_to_values",
    "build_strategy",
    "corrupt",
    "corruption_shares",
    "draw_outcomes",
    "masking_entropy",
]
