"""Is a first batch what it is taken for? Padding polarity, special tokens, mask value, vocabulary:
what goes wrong in silence.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core import checks
from .._core.describing import describe
from .findings import Batch, Finding, FirstBatch
from .formats import not_among, require_meaning
from .padding_checks import inverted_because, padding_findings

if TYPE_CHECKING:
    from .core import MaskingStep

FEWEST_ROWS = 4
"""Rows that have to begin, or to end, with one token for it to be taken for a special one: genes
rank first in a few cells by chance.
"""


def check_first_batch(
    *,
    ids: Tensor | None = None,
    values: Tensor | None = None,
    padding_mask: Tensor | None = None,
    true_means: str = "token",
    pad_id: int | None = None,
    pad_value: float | None = None,
    special_ids: Iterable[int] = (),
    special: Tensor | None = None,
    mask_value: float | None = None,
    vocab_size: int | None = None,
    module: nn.Module | None = None,
) -> FirstBatch:
    """Look at a batch before anything is hidden in it, and say what seems to be misunderstood.

    Padding holds one id, or one value, and stands behind the genes: what is called padding and
    does not is not padding. Everything is read back to the CPU: for the first batch, not for every
    one.

    Args:
        ids: (B, L) integers, token ids; None where there are values alone.
        values: (B, L) floats; None where there are ids alone.
        padding_mask: (B, L), bool or 0 and 1. None: no padding.
        true_means: what True, or 1, stands for in it: "token" or "padding".
        pad_id, pad_value: what stands in the padding, if it is known.
        special_ids: ids that are never to be hidden.
        special: (B, L), bool or 0 and 1, further positions that are never to be hidden. None:
            whole negative values at the ends of rows are, as special tokens of a field of values.
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
    tensors = {
        name: x
        for name, x in (
            ("ids", ids), ("values", values), ("padding_mask", padding_mask), ("special", special)
        )
        if x is not None
    }  # fmt: skip
    if ids is None and values is None:
        raise ValueError("ids, values: expected at least one of them; got None and None")
    require_meaning(true_means)
    name, first = next(iter(tensors.items()))
    if first.dim() != 2 or not first.numel():
        raise ValueError(
            f"{name}: expected shape (B, L) with at least one position; got {describe(first)}"
        )
    for name, x in tensors.items():
        checks.require_shape(name, x, first.shape, "(B, L)")
    special_ids = set(special_ids)
    findings = list(_device(tensors, module))
    ids, values, padding_mask, special = (
        None if x is None else x.detach().cpu() for x in (ids, values, padding_mask, special)
    )
    if padding_mask is not None and padding_mask.dtype != torch.bool:
        low, high = padding_mask.min(), padding_mask.max()
        if bool(((padding_mask != 0) & (padding_mask != 1)).any()):
            text = f"the mask holds values from {low} to {high}, not 0 and 1"
            return FirstBatch((*findings, Finding(False, "padding", text)))
    padding = (
        torch.zeros(first.shape, dtype=torch.bool)
        if padding_mask is None
        else padding_mask.bool() == (true_means == "padding")
    )
    never = torch.zeros_like(padding) if ids is None else ~not_among(ids, special_ids)
    batch = Batch(ids, values, padding, padding_mask is not None, never, pad_id, pad_value)
    inverted = inverted_because(batch)
    findings += padding_findings(batch, inverted, true_means)
    if ids is not None:
        findings += _vocabulary(
            ids, vocab_size, special_ids, mask_value if values is None else None
        )
    said = _special_values(batch) if special is None else special.bool()
    batch = batch._replace(special=never | said)
    findings += _special(batch, bool(special_ids), looked_for=inverted is None)
    findings += _mask_value(batch, mask_value)
    if values is not None:
        findings += _values(values[batch.genes])
    return FirstBatch(tuple(findings))


def check_batch(
    masking: "MaskingStep",
    *,
    ids: Tensor | None = None,
    values: Tensor | None = None,
    padding_mask: Tensor | None = None,
    special: Tensor | None = None,
    **facts: Any,
) -> FirstBatch:
    """``check_first_batch`` with what an adapter says of its batches."""
    batches = masking.batches
    if ids is not None and batches.first_gene is not None:
        below = ids < batches.first_gene
        special = below if special is None else special.bool() | below
    return check_first_batch(
        ids=ids, values=values, padding_mask=padding_mask, special=special, module=masking,
        true_means=batches.true_means, special_ids=batches.special_ids,
        **{
            "pad_id": batches.pad_id, "pad_value": batches.pad_value,
            "mask_value": masking.mask_value,
        } | facts,
    )  # fmt: skip


def _device(batch: dict[str, Tensor], module: nn.Module | None) -> Iterator[Finding]:
    tensor = None
    if module is not None:
        tensor = next(iter([*module.parameters(), *module.buffers()]), None)
    if tensor is None:
        return
    elsewhere = [f"{name} on {x.device}" for name, x in batch.items() if x.device != tensor.device]
    text = f"the module is on {tensor.device}" + (
        f", and {', '.join(elsewhere)}" if elsewhere else ", as the batch is"
    )
    yield Finding(not elsewhere, "device", text)


def _vocabulary(
    ids: Tensor, vocab_size: int | None, special_ids: set[int], mask_id: float | None
) -> Iterator[Finding]:
    low, high = int(ids.min()), int(ids.max())
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


def _special_values(batch: Batch) -> Tensor:
    """(B, L) bool, whole negative values that stand first or last among the tokens of a row, the
    same in every row: special tokens of a field of values.
    """
    if batch.values is None:
        return torch.zeros_like(batch.padding)
    real = ~batch.padding
    whole = (batch.values < 0) & (batch.values == batch.values.round()) & real
    ends = torch.zeros_like(real)
    for order in (False, True):
        flip = (lambda x: x.flip(1)) if order else (lambda x: x)
        # the run of negative values at this end: no gene stands before it
        genes_before = flip(real & ~whole).cumsum(dim=1) > 0
        run = flip(whole) & ~genes_before
        ends |= flip(run)
    lengths = ends.sum(dim=1)
    same = bool((lengths == lengths[0]).all()) and len(batch.values[ends].unique()) <= max(
        1, int(lengths[0])
    )
    return ends if same else torch.zeros_like(ends)


def _special(batch: Batch, told: bool, *, looked_for: bool) -> Iterator[Finding]:
    real = ~batch.padding
    special = batch.special & real
    if told or bool(special.any()):
        text = f"{int(special.sum())} of {int(real.sum())} tokens, never hidden"
        yield Finding(True, "special tokens", text)
    alone = int((real.any(dim=1) & ~batch.genes.any(dim=1)).sum())
    if alone:
        text = f"{alone} of {len(real)} rows have no token that may be hidden"
        yield Finding(False, "special tokens", text)
    if batch.ids is None or not looked_for:
        return
    for where, place in (("begins", _first(real)), ("ends", _first(real.flip(1)))):
        if where == "ends":
            place = real.shape[1] - 1 - place
        token = _forgotten(batch, batch.ids, real, place)
        if token is not None:
            text = (
                f"every row {where} with id {token}, which is not among them, so it would be "
                "hidden like a gene"
            )
            yield Finding(False, "special tokens", text)


def _first(real: Tensor) -> Tensor:
    """(B,) where the first True of each row is."""
    return real.int().argmax(dim=1)


def _forgotten(batch: Batch, ids: Tensor, real: Tensor, place: Tensor) -> int | None:
    """The id at ``place`` (B,) of every row, where it occurs nowhere else and is not special; else
    None.
    """
    rows = torch.arange(len(real))
    tokens = ids[rows, place]
    token = tokens[0]
    if len(real) < FEWEST_ROWS or not bool((tokens == token).all() & real.any(dim=1).all()):
        return None
    if bool(batch.special[rows, place].any()) or int((ids[real] == token).sum()) > len(real):
        return None
    if bool((torch.where(real, ids, -1) == torch.where(real[:1], ids[:1], -1)).all()):
        return None  # one order of genes for all cells
    if batch.values is not None and len(batch.values[rows, place].unique()) > 1:
        return None  # which a gene may have, a special token has not
    return int(token)


def _mask_value(batch: Batch, mask_value: float | None) -> Iterator[Finding]:
    is_id = batch.values is None
    if mask_value is None:
        if is_id:
            yield Finding(False, "mask value", "there is no mask token; add one to the vocabulary")
        return
    what, where = ("mask token", ~batch.padding) if is_id else ("mask value", batch.genes)
    there = int(((batch.inputs == mask_value) & where).sum())
    if there:
        yield Finding(
            False,
            "mask value",
            f"{there} of {int(batch.genes.sum())} genes hold the {what} {mask_value} already: "
            "masked before, or a real value?",
        )
    else:
        yield Finding(True, "mask value", f"no gene holds the {what} {mask_value}")


def _values(there: Tensor) -> Iterator[Finding]:
    """Of the values of the genes."""
    bad = int((~torch.isfinite(there)).sum())
    if bad:
        yield Finding(False, "values", f"{bad} of {there.numel()} genes are NaN or infinite")
    elif there.numel():
        low = float(there.min())
        text = f"genes hold {low:g} to {float(there.max()):g}"
        yield Finding(
            low >= 0, "values", text + ("" if low >= 0 else ", and expression is not negative")
        )
