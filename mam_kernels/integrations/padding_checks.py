"""Is the padding of a first batch what its mask says? Polarity, place and contents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .findings import Batch, Finding


def inverted_because(batch: Batch) -> str | None:
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


def _marked(batch: Batch) -> Tensor | None:
    """(B, L) bool, where the padding's id or value stands; None where neither is known."""
    if batch.ids is not None and batch.pad_id is not None:
        return batch.ids == batch.pad_id
    if batch.values is None or batch.pad_value is None:
        return None
    if batch.pad_value >= 0 and batch.ids is not None:
        return None  # zeros are genes too; the ids tell more
    return batch.values == batch.pad_value


def _telling(batch: Batch) -> Tensor:
    """(B, L) bool, where the padding's id or value is that of padding alone: a gene may hold the
    value 0, and a special token any value.
    """
    if batch.ids is not None and batch.pad_id is not None:
        return torch.ones_like(batch.padding)
    return ~batch.special & (batch.pad_value is not None and batch.pad_value < 0)


def _distinct(batch: Batch, where: Tensor) -> int:
    return len((batch.inputs if batch.ids is None else batch.ids)[where].unique())


def padding_findings(batch: Batch, inverted: str | None, true_means: str) -> Iterator[Finding]:
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


def _padding_contents(batch: Batch, marked: Tensor | None) -> Iterator[Finding]:
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
