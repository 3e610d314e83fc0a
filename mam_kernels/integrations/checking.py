"""Is a first batch what it is taken for? Padding polarity, special tokens, mask value, vocabulary:
what goes wrong in silence.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core import checks
from .formats import not_among, require_meaning

if TYPE_CHECKING:
    from .core import MaskingStep

FEWEST_ROWS = 4
"""Rows that have to begin, or to end, with one token for it to be taken for a special one: genes
rank first in a few cells by chance.
"""


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


class _Batch(NamedTuple):
    """A batch and what is said of it, on the CPU."""

    ids: Tensor | None
    values: Tensor | None
    padding: Tensor  # (B, L) bool, what the mask calls padding; nowhere without a mask
    has_mask: bool
    special: Tensor  # (B, L) bool, among the special ids, or said to be
    pad_id: int | None
    pad_value: float | None

    @property
    def inputs(self) -> Tensor:
        """What the model reads."""
        inputs = self.ids if self.values is None else self.values
        if inputs is None:
            raise ValueError("ids, values: expected at least one of them; got None and None")
        return inputs

    @property
    def genes(self) -> Tensor:
        """(B, L) bool, neither padding nor special."""
        return ~self.padding & ~self.special


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
            f"{name}: expected shape (B, L) with at least one position; "
            f"got {checks.describe(first)}"
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
    batch = _Batch(ids, values, padding, padding_mask is not None, never, pad_id, pad_value)
    inverted = _inverted(batch)
    findings += _padding(batch, inverted, true_means)
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


def _inverted(batch: _Batch) -> str | None:
    """Why a padding mask looks inverted; None where it does not."""
    padding = batch.padding
    if not bool(padding.any()):
        return None
    marked = _marked(batch)
    if marked is not None:
        # special tokens may hold the padding's value, and genes may where it is 0
        wrong, right = int((padding != marked).sum()), int((padding == marked).sum())
        carrying = int((padding & ~marked).sum())
        if carrying and wrong > right:
            return f"{carrying} of {int(padding.sum())} positions it calls padding carry a token"
        return None
    different, tokens = _distinct(batch, padding), _distinct(batch, ~padding)
    if different > 1 and tokens <= different and (tokens == 1 or bool(padding[:, 0].all())):
        return f"what it calls padding holds {different} different tokens"
    return None


def _marked(batch: _Batch) -> Tensor | None:
    """(B, L) bool, where the padding's id or value stands; None where neither is known."""
    if batch.ids is not None and batch.pad_id is not None:
        return batch.ids == batch.pad_id
    if batch.values is None or batch.pad_value is None:
        return None
    if batch.pad_value >= 0 and batch.ids is not None:
        return None  # zeros are genes too; the ids tell more
    return batch.values == batch.pad_value


def _telling(batch: _Batch) -> Tensor:
    """(B, L) bool, where the padding's id or value is that of padding alone: a gene may hold the
    value 0, and a special token any value.
    """
    if batch.ids is not None and batch.pad_id is not None:
        return torch.ones_like(batch.padding)
    return ~batch.special & (batch.pad_value is not None and batch.pad_value < 0)


def _distinct(batch: _Batch, where: Tensor) -> int:
    return len((batch.inputs if batch.ids is None else batch.ids)[where].unique())


def _padding(batch: _Batch, inverted: str | None, true_means: str) -> Iterator[Finding]:
    padding, marked = batch.padding, _marked(batch)
    if not batch.has_mask:
        there = 0 if marked is None else int((marked & _telling(batch)).sum())
        if there:
            text = f"no padding mask, and {there} positions hold the padding's value"
            yield Finding(False, "padding", text)
        return
    if inverted is not None:
        text = f"looks inverted: {inverted}; is {true_means} what True stands for?"
        yield Finding(False, "padding", text)
    else:
        text = f"{int(padding.sum())} of {padding.numel()} positions"
        yield Finding(True, "padding", text)
    empty = int(padding.all(dim=1).sum())
    if empty:
        yield Finding(False, "padding", f"{empty} of {len(padding)} rows are padding alone")
    if inverted is not None:
        return
    yield from _padding_place(padding)
    yield from _padding_contents(batch, marked)


def _padding_place(padding: Tensor) -> Iterator[Finding]:
    """Padding stands behind the genes: a first token, and ranks, are read by their position."""
    some = ~padding.all(dim=1)
    left = int((padding[:, 0] & some).sum())
    if left:
        text = f"{left} of {len(padding)} rows begin with padding; pad at the right"
        yield Finding(False, "padding", text)
        return
    inside = int(((padding.int().diff(dim=1) < 0).any(dim=1) & some).sum())
    if inside:
        text = f"{inside} of {len(padding)} rows have a token behind padding"
        yield Finding(False, "padding", text)


def _padding_contents(batch: _Batch, marked: Tensor | None) -> Iterator[Finding]:
    padding = batch.padding
    padded = int(padding.sum())
    if not padded:
        return
    if marked is None:
        different = _distinct(batch, padding)
        if different > 1:
            text = f"padded positions hold {different} different tokens, where padding holds one"
            yield Finding(False, "padding", text)
        return
    astray = int((marked & ~padding & _telling(batch)).sum())
    if astray:
        text = f"{astray} positions hold the padding's value, and the mask calls them tokens"
        yield Finding(False, "padding", text)
    carrying = int((padding & ~marked).sum())
    if carrying:
        text = (
            f"{carrying} of {padded} padded positions hold something else than the padding's value"
        )
        yield Finding(False, "padding", text)


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


def _special_values(batch: _Batch) -> Tensor:
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


def _special(batch: _Batch, told: bool, *, looked_for: bool) -> Iterator[Finding]:
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


def _forgotten(batch: _Batch, ids: Tensor, real: Tensor, place: Tensor) -> int | None:
    """The id that stands at ``place`` (B,) of every row and nowhere else, and is not special; None
    where there is none.
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


def _mask_value(batch: _Batch, mask_value: float | None) -> Iterator[Finding]:
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
