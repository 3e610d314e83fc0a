"""Multinomial Attention Masking for single-cell pretraining: from a cell's genes to its mask in one
call.

``MultinomialAttentionMasking`` is the masking step, ``ContextInjection`` gives its context to a
model, and the functions are the operations they are made of. ``backends()`` says what this machine
runs, ``explain()`` why, and ``testing.check()`` proves it against ``reference``.
"""

import importlib

from ._core.checks import check_values
from ._core.dispatch import (
    Available,
    BackendUnavailableError,
    Unavailable,
    backends,
    explain,
    use_backend,
)
from .injection import ContextInjection
from .masking import MaskingOutput, MultinomialAttentionMasking
from .ops.inclusion.ops import inclusion_probabilities
from .ops.inclusion.reward import reward_gradient
from .ops.latent_attention.ops import attention_importance, latent_attention
from .ops.selection.ops import sample_without_replacement
from .ops.value_attention.ops import ValueMoments, value_attention

__all__ = [
    "Available",
    "BackendUnavailableError",
    "ContextInjection",
    "MaskingOutput",
    "MultinomialAttentionMasking",
    "Unavailable",
    "ValueMoments",
    "attention_importance",
    "backends",
    "check_values",
    "explain",
    "inclusion_probabilities",
    "integrations",
    "latent_attention",
    "reference",
    "reward_gradient",
    "sample_without_replacement",
    "testing",
    "use_backend",
    "value_attention",
    "weights",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    # The specification, the validation and the files are loaded when they are asked for: a training
    # step needs none of them.
    if name in ("integrations", "reference", "testing", "weights"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    """Of the installed package; pyproject.toml says it of a checkout that is not installed."""
    from importlib import metadata
    from pathlib import Path

    try:
        return metadata.version("mam-kernels")
    except metadata.PackageNotFoundError:
        import tomllib

        text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
        return tomllib.loads(text)["project"]["version"]
