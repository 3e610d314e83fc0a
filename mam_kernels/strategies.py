"""Masking strategies behind one interface: from the values of cells to what is hidden, and what the
latents say of the cells.

Every strategy draws by the engine: a mask is a function of (seed, step, cell id), whatever the
batch, the device or a restart.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .masking import MaskingOutput, MultinomialAttentionMasking
from .ops.selection.ops import sample_without_replacement
from .sequences import Sequences, gather

Embed = Callable[[Sequences], Tensor]
"""(B, T) sequences to (B, T, width) embeddings of gene and value."""


class Masking(NamedTuple):
    """What a strategy decides for a batch."""

    mask: Tensor  #: (B, G) bool, True = hidden
    importance: (
        Tensor | None
    )  #: (B, G) float32 >= 0: what positions are drawn in proportion to; None: uniform
    context: Tensor | None  #: (B, Dz), differentiable; None: no latents
    penalty: (
        Tensor | None
    )  #: scalar: mean over cells of the squared norm of the latents' output; None: no latents


class MaskingStrategy(nn.Module):
    """Base of the strategies; ``latents`` is the engine's module inside, or None."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: MultinomialAttentionMasking | None = None

    def weighting(self) -> tuple[float, float]:
        """(eps, temperature): positions are drawn in proportion to ``(importance + eps) ** (1 /
        temperature)``.
        """
        return 0.0, 1.0

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        """Decide what is hidden.

        Args:
            values: (B, G) float32, not negative; zeros take part.
            cell_ids: (B,) int64.
            seed, step: of the draw.
            embed: gene and value embeddings, for the strategies that attend to them.
            stored: the values as sparse CSR too, where they came so: attention to values then reads
                the non-zeros alone.
        """
        raise NotImplementedError


class Nothing(MaskingStrategy):
    """Nothing is hidden."""

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        return Masking(torch.zeros_like(values, dtype=torch.bool), None, None, None)


class Uniform(MaskingStrategy):
    """Every position alike.

    Args:
        ratio: share of the positions, or of the non-zeros where ``zero_ratio`` is given.
        zero_ratio: share of the zeros.
    """

    def __init__(self, ratio: float, zero_ratio: float | None = None) -> None:
        super().__init__()
        self.ratio, self.zero_ratio = ratio, zero_ratio

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        draw = {"seed": seed, "step": step, "sample_ids": cell_ids}
        if self.zero_ratio is None:
            mask = sample_without_replacement(
                torch.ones_like(values), math.floor(self.ratio * values.shape[1]), **draw
            )
        else:
            mask = _uniform(values != 0, self.ratio, draw) | _uniform(
                values == 0, self.zero_ratio, draw
            )
        return Masking(mask, None, None, None)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, zero_ratio={self.zero_ratio}"


class ExpressionSampling(MaskingStrategy):
    """In proportion to the value: what a learned masking would have to beat if all it learned were
    expression.

    Args:
        ratio: share of the non-zeros.
        zero_ratio: share of the zeros, drawn uniformly; None: none.
    """

    def __init__(self, ratio: float, zero_ratio: float | None = None) -> None:
        super().__init__()
        self.ratio, self.zero_ratio = ratio, zero_ratio or 0.0

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        draw = {"seed": seed, "step": step, "sample_ids": cell_ids}
        mask = sample_without_replacement(values, _share(values != 0, self.ratio), **draw)
        return Masking(mask | _uniform(values == 0, self.zero_ratio, draw), values, None, None)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, zero_ratio={self.zero_ratio}"


class MatchedFractions(MaskingStrategy):
    """Uniform within the zeros and within the non-zeros, at the shares that another run hid at the
    same step.

    What a learned masking gains beyond hiding more or fewer non-zeros is its lead over this one.

    Args:
        schedule: (steps, 2) hidden shares of zeros and of non-zeros; the last row serves all later
            steps.
    """

    def __init__(self, schedule: Tensor) -> None:
        super().__init__()
        if schedule.dim() != 2 or schedule.shape[1] != 2 or not len(schedule):
            raise ValueError(
                f"schedule: expected shape (steps, 2) with steps >= 1; got {tuple(schedule.shape)}"
            )
        if not bool(((schedule >= 0) & (schedule <= 1)).all()):
            raise ValueError(
                f"schedule: expected shares in [0, 1]; got values from {schedule.min():g} to {schedule.max():g}"
            )
        self.shares = schedule.tolist()

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        zeros, nonzeros = self.shares[min(step, len(self.shares) - 1)]
        draw = {"seed": seed, "step": step, "sample_ids": cell_ids}
        return Masking(
            _uniform(values != 0, nonzeros, draw) | _uniform(values == 0, zeros, draw),
            None,
            None,
            None,
        )


class ContextOnly(MaskingStrategy):
    """Another strategy's masks, with the latents' context beside them: what injection brings
    without learned masking.

    Args:
        selection: the strategy that decides what is hidden.
        latents: the module whose context is taken; its masks are not.
        visible: whether the context is computed without the hidden positions.
    """

    def __init__(
        self, selection: MaskingStrategy, latents: MultinomialAttentionMasking, visible: bool
    ) -> None:
        super().__init__()
        self.selection, self.latents, self.visible = selection, latents, visible

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        chosen = self.selection(values, cell_ids, seed=seed, step=step, embed=embed)
        out = _context(
            self.latents,
            values if stored is None else stored,
            ~chosen.mask if self.visible else None,
            seed,
            step,
        )
        return chosen._replace(context=out.context, penalty=out.penalty)


class ValueAttention(MaskingStrategy):
    """Multinomial Attention Masking on expression values, as published.

    Args:
        latents: the engine's module, for scalar values.
        ratio: share of the positions, or of the non-zeros where ``zero_ratio`` is given.
        zero_ratio: share of the zeros, drawn uniformly; None: zeros and non-zeros are drawn
            together.
    """

    def __init__(
        self, latents: MultinomialAttentionMasking, ratio: float, zero_ratio: float | None = None
    ) -> None:
        super().__init__()
        self.latents, self.ratio, self.zero_ratio = latents, ratio, zero_ratio

    def weighting(self) -> tuple[float, float]:
        return self.latents.eps, self.latents.temperature

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        return attend_to_values(
            self.latents,
            values,
            self.ratio,
            self.zero_ratio,
            cell_ids,
            seed=seed,
            step=step,
            stored=stored,
        )

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, zero_ratio={self.zero_ratio}"


def attend_to_values(
    latents: MultinomialAttentionMasking,
    values: Tensor,
    ratio: float,
    zero_ratio: float | None,
    cell_ids: Tensor,
    *,
    seed: int | Tensor,
    step: int | Tensor,
    stored: Tensor | None = None,
) -> Masking:
    """What ``ValueAttention`` hides; arguments as there."""
    draw = {"seed": seed, "step": step, "sample_ids": cell_ids}
    read = values if stored is None else stored
    if zero_ratio is None:
        return Masking(*latents(read, num_masked=math.floor(ratio * values.shape[1]), **draw))
    nonzero = values != 0
    out = latents(read, maskable=nonzero, num_masked=_share(nonzero, ratio), **draw)
    mask = out.mask | _uniform(~nonzero, zero_ratio, draw)
    if latents.context_from == "visible" and zero_ratio > 0:  # without the hidden zeros too
        seen = _context(latents, read, ~mask, seed, step)
        out = out._replace(context=seen.context, penalty=seen.penalty)
    return Masking(mask, out.importance * nonzero, out.context, out.penalty)


class EmbeddingAttention(MaskingStrategy):
    """Multinomial Attention Masking on the embeddings of the non-zero genes: the latents see which
    gene it is, not its value alone.

    This goes beyond the published code. Zeros are hidden uniformly.

    Args:
        latents: the engine's module, for embeddings.
        ratio: share of the non-zeros.
        zero_ratio: share of the zeros.
    """

    def __init__(
        self, latents: MultinomialAttentionMasking, ratio: float, zero_ratio: float
    ) -> None:
        super().__init__()
        self.latents, self.ratio, self.zero_ratio = latents, ratio, zero_ratio

    def weighting(self) -> tuple[float, float]:
        return self.latents.eps, self.latents.temperature

    def forward(
        self,
        values: Tensor,
        cell_ids: Tensor,
        *,
        seed: int,
        step: int,
        embed: Embed | None = None,
        stored: Tensor | None = None,
    ) -> Masking:
        if embed is None:
            raise ValueError("embed: expected a function from sequences to embeddings; got None")
        draw = {"seed": seed, "step": step, "sample_ids": cell_ids}
        nonzero = values != 0
        there = gather(values, nonzero)
        out = self.latents(
            embed(there), there.valid, num_masked=_share(there.valid, self.ratio), **draw
        )
        mask, importance = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values)
        mask[nonzero] = out.mask[there.valid]  # both in the order of rows, then genes
        importance[nonzero] = out.importance[there.valid]
        return Masking(
            mask | _uniform(~nonzero, self.zero_ratio, draw), importance, out.context, out.penalty
        )

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, zero_ratio={self.zero_ratio}"


def masking_entropy(masking: Masking, eps: float, temperature: float) -> Tensor:
    """Entropy of the distribution that positions are drawn from, over the logarithm of how many can
    be drawn; scalar, 1 = uniform.

    Mean over the cells with at least two drawable positions; positions of importance 0 cannot be
    drawn. NaN where there is no such cell.
    """
    if masking.importance is None:
        return torch.ones((), device=masking.mask.device)
    weight = masking.importance.double()
    drawable = weight > 0
    logits = (torch.log(weight + eps) / temperature).masked_fill(~drawable, -torch.inf)
    log_probability = torch.log_softmax(logits, dim=1)
    entropy = -(log_probability.exp() * log_probability.masked_fill(~drawable, 0.0)).sum(dim=1)
    count = drawable.sum(dim=1)
    some = count > 1
    return (
        torch.where(some, entropy / torch.log(count.double()), 0.0).sum() / some.sum()
    )  # an index would wait for a GPU


def _context(
    latents: MultinomialAttentionMasking,
    values: Tensor,
    valid: Tensor | None,
    seed: int | Tensor,
    step: int | Tensor,
) -> MaskingOutput:
    """Context and penalty of what is ``valid``; with nothing to hide, "visible" and "all" are the
    same.
    """
    return latents(values, valid, num_masked=0, seed=seed, step=step)


def _share(positions: Tensor, ratio: float) -> Tensor:
    """``floor(ratio * n)`` of the ``n`` True in each row; int64 (B,)."""
    return torch.floor(positions.sum(dim=1, dtype=torch.float64) * ratio).to(torch.int64)


def _uniform(positions: Tensor, ratio: float, draw: dict[str, Any]) -> Tensor:
    """The share ``ratio`` of the True of each row, each alike."""
    return sample_without_replacement(positions.float(), _share(positions, ratio), **draw)
