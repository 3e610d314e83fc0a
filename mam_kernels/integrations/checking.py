"""Is a first batch what it is taken for? Padding polarity, special tokens, mask value, vocabulary:
what goes wrong in silence.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._core import checks
from . import core


class Finding(NamedTuple):
    """One thing that was looked at."""

    right: bool
    subject: str  # "padding", "special tokens", "mask value", "vocabulary", "values", "device"
    text: str  # one line

    def __str__(self) -> str:
        return f"{'ok   ' if self.right else 'WRONG'} {self.subject}: {self.text}"


class FirstBatch(NamedTuple):
    """What was found in a batch; printed, a line for each."""

    findings: tuple[Finding, ...]

    @property
    def right(self) -> bool:
        """Whether nothing looks wrong."""
        return all(finding.right for finding in self.findings)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What looks wrong."""
        return tuple(finding for finding in self.findings if not finding.right)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def check_first_batch(
    *,
    ids: Tensor | None = None,
    values: Tensor | None = None,
    padding_mask: Tensor | None = None,
    true_means: str = "token",
    pad_id: int | None = None,
    pad_value: float | None = None,
    special_ids: Iterable[int] = (),
    mask_value: float | None = None,
    vocab_size: int | None = None,
    module: nn.Module | None = None,
) -> FirstBatch:
    """Look at a batch before anything is hidden in it, and say what seems to be misunderstood.

    Everything is read back to the CPU: for the first batch, not for every one.

    Args:
        ids: (B, L) integers, token ids; None where there are values alone.
        values: (B, L) floats; None where there are ids alone.
        padding_mask: (B, L), bool or 0 and 1. None: no padding.
        true_means: what True, or 1, stands for in it: "token" or "padding".
        pad_id, pad_value: what stands in the padding, if it is known.
        special_ids: ids that are never to be hidden.
        mask_value: what a hidden position will hold: an id of the vocabulary where there are no
            values, else a value.
        vocab_size: number of ids that the model knows.
        module: whose device the batch has to be on.

    Returns:
        Findings, right and wrong; ``print`` shows them.

    Raises:
        ValueError: ``ids`` and ``values`` are both None; a tensor is not (B, L), with B and L at
            least 1; ``true_means`` is neither.
    """
    batch = {
        name: x
        for name, x in (("ids", ids), ("values", values), ("padding_mask", padding_mask))
        if x is not None
    }
    if ids is None and values is None:
        raise ValueError("ids, values: expected at least one of them; got None and None")
    core.require_meaning(true_means)
    name, first = next(iter(batch.items()))
    if first.dim() != 2 or not first.numel():
        raise ValueError(
            f"{name}: expected shape (B, L) with at least one position; got {checks.describe(first)}"
        )
    for name, x in batch.items():
        checks.require_shape(name, x, first.shape, "(B, L)")
    special_ids = set(special_ids)
    findings = list(_device(batch, module))
    ids, values, padding_mask = (
        None if x is None else x.detach().cpu() for x in (ids, values, padding_mask)
    )
    inputs = ids if values is None else values
    findings += _padding(ids, values, padding_mask, true_means, pad_id, pad_value)
    real = (
        torch.ones_like(inputs, dtype=torch.bool)
        if padding_mask is None
        else padding_mask.bool() == (true_means == "token")
    )
    if ids is not None:
        findings += _vocabulary(
            ids, vocab_size, special_ids, mask_value if values is None else None
        )
        findings += _special(ids, real, special_ids)
        real = real & core.not_among(ids, special_ids)
    findings += _mask_value(inputs, real, mask_value, values is None)
    if values is not None:
        findings += _values(values, real)
    return FirstBatch(tuple(findings))


def _device(batch: dict[str, Tensor], module: nn.Module | None) -> Iterator[Finding]:
    parameter = None if module is None else next(module.parameters(), None)
    if parameter is None:
        return
    elsewhere = [
        f"{name} on {x.device}" for name, x in batch.items() if x.device != parameter.device
    ]
    text = f"the module is on {parameter.device}" + (
        f", and {', '.join(elsewhere)}" if elsewhere else ", as the batch is"
    )
    yield Finding(not elsewhere, "device", text)


def _padding(
    ids: Tensor | None,
    values: Tensor | None,
    mask: Tensor | None,
    true_means: str,
    pad_id: int | None,
    pad_value: float | None,
) -> Iterator[Finding]:
    marks = [
        x == pad
        for x, pad in ((ids, pad_id), (values, pad_value))
        if x is not None and pad is not None
    ]
    marked = torch.stack(marks).any(dim=0) if marks else None
    if mask is None:
        if marked is not None and bool(marked.any()):
            yield Finding(
                False,
                "padding",
                f"no padding mask, and {int(marked.sum())} positions hold the padding's value",
            )
        return
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        yield Finding(
            False,
            "padding",
            f"the mask holds values from {mask.min()} to {mask.max()}, not 0 and 1",
        )
        return
    padding = mask.bool() == (true_means == "padding")
    inverted = _looks_inverted(padding, marked)
    if inverted is not None:
        yield Finding(
            False, "padding", f"looks inverted: {inverted}; is {true_means} what True stands for?"
        )
    else:
        yield Finding(True, "padding", f"{int(padding.sum())} of {padding.numel()} positions")
    empty = int((~(~padding).any(dim=1)).sum())
    if empty:
        yield Finding(False, "padding", f"{empty} of {len(padding)} rows are padding alone")
    if marked is not None and inverted is None:
        astray = int((marked & ~padding).sum())
        if astray:
            yield Finding(
                False,
                "padding",
                f"{astray} positions hold the padding's value, and the mask calls them tokens",
            )
        carrying = int((padding & ~marked).sum())
        if carrying:
            yield Finding(
                False,
                "padding",
                f"{carrying} of {int(padding.sum())} padded positions hold something else than the padding's value",
            )


def _looks_inverted(padding: Tensor, marked: Tensor | None) -> str | None:
    """Why a padding mask looks inverted; None where it does not."""
    if not bool(padding.any()):
        return None
    if marked is not None:
        wrong, right = int((padding != marked).sum()), int((padding == marked).sum())
        carrying = int((padding & ~marked).sum())
        if wrong > right:
            return f"{carrying} of {int(padding.sum())} positions it calls padding carry a token"
        return None
    if bool(padding[:, 0].all()) and bool((padding.int().diff(dim=1) <= 0).all()):
        return "every row begins with what it calls padding (if it does, say pad_id or pad_value)"
    return None


def _vocabulary(
    ids: Tensor, vocab_size: int | None, special_ids: set[int], mask_id: float | None
) -> Iterator[Finding]:
    low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if vocab_size is not None:
        right = low >= 0 and high < vocab_size
        yield Finding(
            right, "vocabulary", f"ids from {low} to {high}, of {vocab_size} in the vocabulary"
        )
        outside = sorted(i for i in special_ids if not 0 <= i < vocab_size)
        if outside:
            yield Finding(
                False,
                "special tokens",
                f"{outside[0]} is not an id of the vocabulary, which has {vocab_size}",
            )
        if mask_id is not None and not 0 <= mask_id < vocab_size:
            yield Finding(
                False,
                "vocabulary",
                f"the mask token {mask_id} is missing: there are {vocab_size} ids",
            )
    elif low < 0:
        yield Finding(False, "vocabulary", f"ids from {low} to {high}, where none may be negative")


def _special(ids: Tensor, real: Tensor, special_ids: set[int]) -> Iterator[Finding]:
    special = ~core.not_among(ids, special_ids) & real
    if special_ids:
        yield Finding(
            True,
            "special tokens",
            f"{int(special.sum())} of {int(real.sum())} tokens, never hidden",
        )
    alone = int((real.any(dim=1) & ~(real & ~special).any(dim=1)).sum())
    if alone:
        yield Finding(
            False, "special tokens", f"{alone} of {len(ids)} rows have no token that may be hidden"
        )
    first = ids[:, 0]
    if (
        len(ids) > 1
        and bool((first == first[0]).all())
        and bool(real[:, 0].all())
        and int(first[0]) not in special_ids
    ):
        elsewhere = bool((ids[:, 1:] == first[0]).any())
        same_everywhere = bool((ids == ids[:1]).all())  # one order of genes for all cells
        if not elsewhere and not same_everywhere:
            text = f"every row begins with id {int(first[0])}, which is not among them, so it would be hidden like a gene"
            yield Finding(False, "special tokens", text)


def _mask_value(
    inputs: Tensor, real: Tensor, mask_value: float | None, is_id: bool
) -> Iterator[Finding]:
    if mask_value is None:
        if is_id:
            yield Finding(False, "mask value", "there is no mask token; add one to the vocabulary")
        return
    there = int(((inputs == mask_value) & real).sum())
    what = "mask token" if is_id else "mask value"
    if there:
        yield Finding(
            False,
            "mask value",
            f"{there} of {int(real.sum())} genes hold the {what} {mask_value} already: masked before, or a real value?",
        )
    else:
        yield Finding(True, "mask value", f"no gene holds the {what} {mask_value}")


def _values(values: Tensor, real: Tensor) -> Iterator[Finding]:
    there = values[real]
    bad = int((~torch.isfinite(there)).sum())
    if bad:
        yield Finding(False, "values", f"{bad} of {there.numel()} genes are NaN or infinite")
    elif there.numel():
        low = float(there.min())
        text = f"genes hold {low:g} to {float(there.max()):g}"
        yield Finding(
            low >= 0, "values", text + ("" if low >= 0 else ", and expression is not negative")
        )
