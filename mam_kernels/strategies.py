"""Masking strategies behind one interface, ``strategy(cells, draw)``.

Every strategy draws by the engine: a mask is a function of (seed, step, cell id), whatever the
batch, the device or a restart.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .entropy import drawing_entropy
from .masking import MaskingOutput, MultinomialAttentionMasking
from .ops.selection.ops import sample_without_replacement
from .sequences import Sequences, gather
from .shares import Draw, Share, share_of

Embed = Callable[[Sequences], Tensor]
"""(B, T) sequences to (B, T, width) embeddings of gene and value."""


class CellValues(NamedTuple):
    """A batch of ``B`` cells over ``G`` positions, as the strategies read it."""

    values: Tensor  #: (B, G) dense: values or token ids; zeros take part
    stored: Tensor | None = None  #: the same as sparse CSR; None: they came dense
    valid: Tensor | None = None  #: (B, G) bool, attended to; None: everywhere
    maskable: Tensor | None = None  #: (B, G) bool, may be hidden; None: as valid
    #: what latents for embeddings attend to: (B, G, D) of every position, or a function that makes
    #: them of the non-zero genes
    embed: Embed | Tensor | None = None

    @classmethod
    def of(
        cls,
        values: Tensor,
        *,
        valid: Tensor | None = None,
        maskable: Tensor | None = None,
        embed: Embed | Tensor | None = None,
    ) -> "CellValues":
        """Of values (B, G) that are dense or sparse CSR, whose missing entries are zeros."""
        stored = values if values.layout == torch.sparse_csr else None
        dense = values if stored is None else stored.to_dense()
        return cls(dense, stored, valid, maskable, embed)

    @property
    def read(self) -> Tensor:
        """The values as attention reads them: sparse where they came so."""
        return self.values if self.stored is None else self.stored

    @property
    def drawable(self) -> Tensor | None:
        """(B, G) bool, True where a position may be hidden; None: everywhere."""
        if self.valid is None or self.maskable is None:
            return self.valid if self.maskable is None else self.maskable
        return self.valid & self.maskable

    def among(self, positions: Tensor) -> Tensor:
        """The drawable ones of ``positions`` (B, G) bool."""
        drawable = self.drawable
        return positions if drawable is None else positions & drawable


class Attended(NamedTuple):
    """The non-zero genes that latents for embeddings attended to."""

    sequences: Sequences  #: (B, T)
    tokens: Tensor  #: (B, T, D), their embeddings, with their gradient


class Masking(NamedTuple):
    """The decision of a strategy for a batch."""

    mask: Tensor  #: (B, G) bool, True = hidden
    #: (B, G) float32 >= 0: positions are drawn in proportion to it; None: uniform
    importance: Tensor | None
    context: Tensor | None  #: (B, Dz), differentiable; None: no latents
    #: scalar: mean over cells of the squared norm of the latents' output; None: no latents
    penalty: Tensor | None
    #: what was gathered and embedded for it, so that a reward need not; None: nothing
    attended: Attended | None = None


class MaskingStrategy(nn.Module):
    """Base of the strategies.

    Args:
        ratio: share of the positions that is hidden, a number or a ``Share``.
        zero_ratio: share of the zeros, where zeros and non-zeros are drawn apart.

    Attributes:
        share, zero_share: the same, as ``Share``; None: not given.
        latents: the engine's module inside, or None.
    """

    share: Share | None
    zero_share: Share | None

    def __init__(
        self, ratio: float | Share | None = None, zero_ratio: float | Share | None = None
    ) -> None:
        super().__init__()
        self.latents: MultinomialAttentionMasking | None = None
        self.share = None if ratio is None else share_of("ratio", ratio)
        self.zero_share = None if zero_ratio is None else share_of("zero_ratio", zero_ratio)

    def extra_repr(self) -> str:
        shares = {"ratio": self.share, "zero_ratio": self.zero_share}
        return ", ".join(f"{name}={x}" for name, x in shares.items() if x is not None)

    def weighting(self) -> tuple[float, float]:
        """(eps, temperature): positions are drawn in proportion to ``(importance + eps) ** (1 /
        temperature)``.
        """
        return 0.0, 1.0

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        """Decide what is hidden.

        Args:
            cells: the batch; ``CellValues.of(values)`` makes one of dense or CSR values.
            draw: seed and step, ints or int64 of 0 dims, and the cell ids (B,) int64, or None for
                the index of the row.
        """
        raise NotImplementedError


class Nothing(MaskingStrategy):
    """Nothing is hidden."""

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        return Masking(torch.zeros_like(cells.values, dtype=torch.bool), None, None, None)


class Uniform(MaskingStrategy):
    """Every position alike.

    Args:
        ratio: share of the positions, or of the non-zeros where ``zero_ratio`` is given; a number,
            or a ``Share``.
        zero_ratio: share of the zeros; 0 hides non-zeros alone. None: zeros and non-zeros are drawn
            together.
    """

    share: Share

    def __init__(self, ratio: float | Share, zero_ratio: float | Share | None = None) -> None:
        super().__init__(ratio, zero_ratio)

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        if self.zero_share is None:
            everywhere = torch.ones_like(cells.values, dtype=torch.bool)
            counts = self.share.count(cells.values, cells.drawable, draw)
            mask = _drawn(cells.among(everywhere), counts, draw)
        else:
            nonzero = cells.values != 0
            mask = _uniform(cells.among(nonzero), self.share, draw)
            mask = mask | _uniform(cells.among(~nonzero), self.zero_share, draw)
        return Masking(mask, None, None, None)


class ExpressionSampling(MaskingStrategy):
    """In proportion to the value: a control for learned masks that follow expression alone.

    Args:
        ratio: share of the non-zeros.
        zero_ratio: share of the zeros, drawn uniformly; None: none.
    """

    share: Share
    zero_share: Share

    def __init__(self, ratio: float | Share, zero_ratio: float | Share | None = None) -> None:
        super().__init__(ratio, 0.0 if zero_ratio is None else zero_ratio)

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        nonzero = cells.among(cells.values != 0)
        weights = cells.values.float() * nonzero
        counts = self.share.count(cells.values, nonzero, draw)
        mask = sample_without_replacement(weights, counts, **draw._asdict())
        mask = mask | _uniform(cells.among(cells.values == 0), self.zero_share, draw)
        return Masking(mask, weights, None, None)


class MatchedFractions(MaskingStrategy):
    """Uniform within the zeros and within the non-zeros, at the shares that another run hid at the
    same step: a control for how many zeros and non-zeros a learned mask hides.

    Args:
        schedule: (steps, 2) hidden shares of zeros and of non-zeros; the last row serves all later
            steps.
    """

    shares: Tensor  # (steps, 2) float64

    def __init__(self, schedule: Tensor) -> None:
        super().__init__()
        if schedule.dim() != 2 or schedule.shape[1] != 2 or not len(schedule):
            raise ValueError(
                f"schedule: expected shape (steps, 2) with steps >= 1; got {tuple(schedule.shape)}"
            )
        if not bool(((schedule >= 0) & (schedule <= 1)).all()):
            raise ValueError(
                "schedule: expected shares in [0, 1];"
                f" got values from {schedule.min():g} to {schedule.max():g}"
            )
        self.register_buffer("shares", schedule.double(), persistent=False)

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        last = len(self.shares) - 1
        if isinstance(draw.step, Tensor):
            zeros, nonzeros = self.shares[draw.step.clamp(max=last).to(self.shares.device)]
        else:
            zeros, nonzeros = self.shares[min(draw.step, last)]
        there = cells.values != 0
        mask = torch.zeros_like(there)
        for positions, ratio in ((cells.among(there), nonzeros), (cells.among(~there), zeros)):
            counts = torch.floor(positions.sum(dim=1, dtype=torch.float64) * ratio)
            mask = mask | _drawn(positions, counts.to(torch.int64), draw)
        return Masking(mask, None, None, None)


class ContextOnly(MaskingStrategy):
    """Another strategy's masks, with the latents' context beside them: injection without learned
    masking.

    Args:
        selection: the strategy that decides what is hidden.
        latents: the module whose context is taken; its masks are not.
        visible: whether the context is computed without the hidden positions.
    """

    latents: MultinomialAttentionMasking

    def __init__(
        self, selection: MaskingStrategy, latents: MultinomialAttentionMasking, visible: bool
    ) -> None:
        super().__init__()
        self.selection, self.latents, self.visible = selection, latents, visible

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        chosen = self.selection(cells, draw)
        valid = _without(cells.valid, chosen.mask) if self.visible else cells.valid
        out = _context(self.latents, cells, valid, draw)
        return chosen._replace(context=out.context, penalty=out.penalty)


class _Attention(MaskingStrategy):
    """Base of the strategies that draw by the latents' attention."""

    latents: MultinomialAttentionMasking
    reads_values: bool

    def __init__(
        self,
        latents: MultinomialAttentionMasking,
        ratio: float | Share | None = None,
        zero_ratio: float | Share | None = None,
    ) -> None:
        super().__init__(ratio, zero_ratio)
        if (latents.input_dim is None) != self.reads_values:
            wanted = "input_dim, the width of the embeddings"
            if self.reads_values:
                wanted = "input_dim=None, since they attend to values"
            raise ValueError(f"latents: expected {wanted}; got input_dim={latents.input_dim}")
        self.latents = latents

    def weighting(self) -> tuple[float, float]:
        return self.latents.eps, self.latents.temperature


class ValueAttention(_Attention):
    """Multinomial Attention Masking on expression values, as published.

    Args:
        latents: the engine's module, for scalar values.
        ratio: share of the positions, or of the non-zeros where ``zero_ratio`` is given; None:
            ``mask_ratio`` of the latents.
        zero_ratio: share of the zeros, drawn uniformly; None: zeros and non-zeros are drawn
            together.
    """

    reads_values = True

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        drawable, shares = cells.drawable, (self.share, self.zero_share)
        return Masking(*_attend(self.latents, cells.read, cells, drawable, shares, draw))


class EmbeddingAttention(_Attention):
    """Multinomial Attention Masking on embeddings: the latents see the gene, not its value alone.

    Where ``cells.embed`` holds the embeddings of every position, the valid ones are attended to.
    Where it is a function, the non-zero genes are gathered and embedded.

    Args:
        latents: the engine's module, for embeddings.
        ratio: share of the positions, or of the non-zeros where ``zero_ratio`` is given or the
            non-zeros are gathered; None: ``mask_ratio`` of the latents.
        zero_ratio: share of the zeros, drawn uniformly; None: they are not drawn apart.
    """

    reads_values = False

    def forward(self, cells: CellValues, draw: Draw) -> Masking:
        if cells.embed is None:
            raise ValueError("embed: expected a function from sequences to embeddings; got None")
        nonzero = cells.values != 0
        if isinstance(cells.embed, Tensor):
            drawable = cells.drawable if self.zero_share is None else cells.among(nonzero)
            shares = (self.share, None)
            out = Masking(*_attend(self.latents, cells.embed, cells, drawable, shares, draw))
        else:
            out = self._gathered(cells, cells.embed, nonzero, draw)
        if self.zero_share is None:
            return out
        zeros = _uniform(cells.among(~nonzero), self.zero_share, draw)
        return out._replace(mask=out.mask | zeros)

    def _gathered(self, cells: CellValues, embed: Embed, nonzero: Tensor, draw: Draw) -> Masking:
        there = nonzero_sequences(cells)
        taken, maskable = there.valid, there.valid
        if cells.maskable is not None:
            maskable = taken & cells.maskable.gather(1, there.gene_ids)
        sequences = CellValues(there.values, valid=taken, maskable=maskable)
        tokens = embed(there)
        out = _attend(self.latents, tokens, sequences, maskable, (self.share, None), draw)
        valid = nonzero if cells.valid is None else nonzero & cells.valid
        slots = (valid.cumsum(dim=1) - 1).clamp(min=0)  # of each gene in its sequence
        mask = out.mask.gather(1, slots) & valid
        importance = out.importance.gather(1, slots).masked_fill(~valid, 0.0)
        return Masking(mask, importance, out.context, out.penalty, Attended(there, tokens))


def nonzero_sequences(cells: CellValues) -> Sequences:
    """The valid non-zero genes of each cell, side by side."""
    nonzero = cells.values != 0
    return gather(cells.values, nonzero if cells.valid is None else nonzero & cells.valid)


def attention(
    latents: MultinomialAttentionMasking,
    ratio: float | Share | None = None,
    zero_ratio: float | Share | None = None,
) -> MaskingStrategy:
    """``ValueAttention`` or ``EmbeddingAttention``, as ``input_dim`` of the latents says."""
    kind = ValueAttention if latents.input_dim is None else EmbeddingAttention
    return kind(latents, ratio, zero_ratio)


def masking_entropy(masking: Masking, eps: float, temperature: float) -> Tensor:
    """Entropy of the distribution that positions are drawn from, over the largest possible; scalar.

    Mean over the cells with at least two positions of importance above 0; NaN if there are none.
    """
    if masking.importance is None:
        return torch.ones((), device=masking.mask.device)
    entropy, drawable = drawing_entropy(masking.importance, eps, temperature)
    known = drawable > 1
    shares = torch.where(known, entropy / drawable.log(), 0.0)
    return shares.sum() / known.sum()  # an index would wait for a GPU


def _attend(
    latents: MultinomialAttentionMasking,
    tokens: Tensor,
    cells: CellValues,
    drawable: Tensor | None,
    shares: tuple[Share | None, Share | None],
    draw: Draw,
) -> MaskingOutput:
    """The masks of the latents among the ``drawable``; the importance is 0 elsewhere. The shares
    are of the non-zeros and of the zeros; the first is of all positions where the second is None.
    """
    share, zero_share = shares
    of_all = None if zero_share is None else False
    ratio, number = _amount(share, cells, drawable, of_all, draw)
    zero_ratio, num_zeros = _amount(zero_share, cells, drawable, True, draw)
    maskable = None if drawable is cells.valid else drawable
    amounts = {"mask_ratio": ratio, "zero_ratio": zero_ratio, "num_zeros": num_zeros}
    out = latents(tokens, cells.valid, maskable, number, *draw, **amounts)
    return out if drawable is None else out._replace(importance=out.importance * drawable)


def _amount(
    share: Share | None,
    cells: CellValues,
    drawable: Tensor | None,
    zeros: bool | None,
    draw: Draw,
) -> tuple[float | None, int | Tensor | None]:
    """How much is hidden: the ratio, for the engine to count, or the numbers; None is what is not
    given. Of zeros, of what is not zero, or, None, of both.
    """
    if share is None:
        return None, None
    ratio = share.plain
    if ratio is not None:
        return ratio, None
    if zeros is not None:
        drawable = cells.among((cells.values == 0) == zeros)
    return None, share.count(cells.values, drawable, draw)


def _context(
    latents: MultinomialAttentionMasking, cells: CellValues, valid: Tensor | None, draw: Draw
) -> MaskingOutput:
    """Context and penalty of what is ``valid``; nothing is hidden."""
    tokens = cells.read if latents.input_dim is None else cells.embed
    return latents(tokens, valid, num_masked=0, seed=draw.seed, step=draw.step)


def _without(valid: Tensor | None, mask: Tensor) -> Tensor:
    return ~mask if valid is None else valid & ~mask


def _uniform(positions: Tensor, share: Share, draw: Draw) -> Tensor:
    """A share of the True of each row, each alike."""
    return _drawn(positions, share.count(positions, positions, draw), draw)


def _drawn(positions: Tensor, counts: int | Tensor, draw: Draw) -> Tensor:
    """``counts`` (B,) of the True of each row, each alike."""
    return sample_without_replacement(positions.float(), counts, **draw._asdict())
