"""The format of each framework's batches, in the terms of ``MaskingStep``.

Adapters mask by it, and ``check_first_batch`` checks a batch by it.
"""

import importlib.metadata
import warnings
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core import checks
from .._core.describing import describe

MEANINGS = ("token", "padding")


class BatchFormat(NamedTuple):
    """Valid positions, maskable positions, and the values elsewhere, of a framework's batches."""

    framework: str  # a key of FRAMEWORKS
    inputs: str = "inputs"  # names in the framework, for messages
    padding_mask: str = "padding_mask"
    true_means: str = "token"  # what True, or 1, stands for in its padding mask
    special_ids: tuple[int, ...] = ()  # never hidden, and not attended to
    first_gene: int | None = None  # ids below are special; None: none are
    trailing: int = 0  # positions at the end of a row that are no genes
    negative_is_special: bool = False  # values below zero are special tokens, not genes
    hides_zeros: bool = True  # whether a gene of value or bin 0 may be hidden
    pad_id: int | None = None  # what stands in the padding
    pad_value: float | None = None

    def positions(
        self, inputs: Tensor, ids: Tensor | None, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Where there is a gene, and which of them may be hidden.

        Args:
            inputs: (B, L), what the model reads.
            ids: (B, L) integers, which gene or special token stands there; None: no ids.
            padding_mask: (B, L), bool or 0 and 1; None: no padding.

        Returns:
            ``valid`` (B, L) bool, and ``maskable`` (B, L) bool, or None for all valid ones.

        Raises:
            TypeError, ValueError: as ``real_tokens``.
        """
        valid = real_tokens(self.padding_mask, padding_mask, inputs, true_means=self.true_means)
        if ids is not None:
            valid = valid & self.genes(ids)
        if self.trailing:
            valid = valid & F.pad(
                torch.ones_like(inputs[:, self.trailing :], dtype=torch.bool), (0, self.trailing)
            )
        if self.negative_is_special:
            valid = valid & (inputs >= 0)
        return valid, None if self.hides_zeros else inputs > 0

    def genes(self, ids: Tensor) -> Tensor:
        """(B, L) bool, True where an id is that of a gene."""
        genes = not_among(ids, self.special_ids)
        return genes if self.first_gene is None else genes & (ids >= self.first_gene)


class Framework(NamedTuple):
    """A framework, and the versions of its package that the adapters were run with."""

    title: str
    package: str | None  # in the package registry; None: it is not there
    tried: tuple[str, ...]  # versions, or commits where there is no package


FRAMEWORKS = {
    "scgpt": Framework("scGPT", "scgpt", ("0.2.4",)),
    "hugging-face": Framework("transformers", "transformers", ("4.57.6", "5.24.0")),
    "scfoundation": Framework("scFoundation", None, ("d09626a",)),
    "scbert": Framework("scBERT", None, ("262fd4b",)),
    "nicheformer": Framework("Nicheformer", None, ("485cadb",)),
    "bmfm": Framework("BMFM-RNA", None, ("78d2ba1",)),
    "scvi-tools": Framework("scvi-tools", "scvi-tools", ("1.4.2",)),
    "cellplm": Framework("CellPLM", "cellplm", ("0.1.0.post2",)),
    "uce": Framework("UCE", "helical", ("2.2.0",)),
    "cellarium-ml": Framework("cellarium-ml", "cellarium-ml", ("0.0.15",)),
    "tahoe-x1": Framework("Tahoe-x1", "tahoe-x1", ("1.0.0",)),
    "scprint": Framework("scPRINT", "scprint", ("2.3.8",)),
    "state": Framework("State", "arc-state", ("0.11.1",)),
    "lightning": Framework("Lightning", "lightning", ("2.6.6",)),
}


@cache
def warn_of_untried(framework: str) -> None:
    """Warn, once in a process, where another version is installed than those that were tried."""
    title, package, tried = FRAMEWORKS.get(framework, (framework, None, ()))
    if package is None:
        return
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return
    if found not in tried:
        warnings.warn(
            f"mam_kernels.integrations was tried with {title} {' and '.join(tried)}; found "
            f"{found}: run `python -m mam_kernels.integrations check {framework}` before training",
            stacklevel=3,
        )


def real_tokens(name: str, mask: Tensor | None, inputs: Tensor, *, true_means: str) -> Tensor:
    """Where there is a token and no padding, from a framework's padding mask.

    Args:
        name: of the mask in the framework, for messages.
        mask: (B, L), bool or integers 0 and 1. None: no padding.
        inputs: (B, L), for shape and device.
        true_means: what True, or 1, stands for: "token" or "padding".

    Returns:
        (B, L) bool, True = token.

    Raises:
        TypeError, ValueError: a mask is not as above; or (on the CPU, and inside
            ``mam_kernels.check_values``) it holds other numbers, or a row that is all padding.
    """
    require_meaning(true_means)
    if mask is None:
        return torch.ones_like(inputs, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, *checks.INTEGERS):
        raise TypeError(
            f"{name}: expected a bool or integer tensor of shape {tuple(inputs.shape)}; "
            f"got {describe(mask)}"
        )
    checks.require_shape(name, mask, inputs.shape, "(B, L)")
    checks.require_device(name, mask, inputs.device, "the batch")
    if (
        values_are_looked_at(mask)
        and mask.dtype != torch.bool
        and bool(((mask != 0) & (mask != 1)).any())
    ):
        raise ValueError(f"{name}: expected 0 and 1; got values from {mask.min()} to {mask.max()}")
    valid = mask.bool() if true_means == "token" else ~mask.bool()
    require_any(name, valid, f"a token ({1 if true_means == 'token' else 0})")
    return valid


def require_meaning(true_means: str) -> None:
    """One of the two things that True stands for in padding masks."""
    if true_means not in MEANINGS:
        raise ValueError(f"true_means: expected token or padding; got {true_means!r}")


def require_ids(name: str, ids: Tensor, vocab_size: int, device: torch.device) -> None:
    """Integers (B, L) on the model's device and in [0, vocab_size); the range is looked at as in
    ``real_tokens``.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{name}: expected an int64 or int32 tensor of shape (B, L); got {describe(ids)}"
        )
    checks.require_shape(name, ids, (None, None), "(B, L)")
    checks.require_device(name, ids, device, "the model")
    if (
        values_are_looked_at(ids)
        and ids.numel()
        and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size)
    ):
        raise ValueError(
            f"{name}: expected ids in [0, {vocab_size}), the vocabulary; "
            f"got ids from {int(ids.min())} to {int(ids.max())}"
        )


def require_any(name: str, flags: Tensor, what: str) -> None:
    """At least one True in each row of ``flags`` (B, L); looked at as in ``real_tokens``."""
    if values_are_looked_at(flags) and not bool(flags.any(dim=1).all()):
        row = int((~flags.any(dim=1)).nonzero()[0])
        raise ValueError(f"{name}: expected {what} in each row; got none in row {row}")


def not_among(ids: Tensor, special_ids: Iterable[int]) -> Tensor:
    """(B, L) bool, True where an id is none of these."""
    other = torch.ones_like(ids, dtype=torch.bool)
    for special in special_ids:
        other = other & (ids != special)
    return other


def require_values(name: str, values: Tensor, device: torch.device) -> None:
    """Floating-point values (B, L) on the device of the module."""
    checks.require_floating(name, values, "(B, L)", 2)
    checks.require_device(name, values, device, "the module")


def values_are_looked_at(x: Tensor) -> bool:
    """Whether looking at values costs little: on the CPU, or where it was asked for."""
    return checks.values_are_checked() or (
        x.device.type == "cpu" and not torch.compiler.is_compiling()
    )
