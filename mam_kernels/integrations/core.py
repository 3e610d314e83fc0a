"""One masking step in anybody's terms: which positions are hidden, what stands there, what is to be
predicted, and the context.

Every adapter translates a framework's arguments into those of ``MaskingStep.mask``, by one
description of its batches, a ``BatchFormat``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from .._core.call import word_tensor
from .._core.describing import describe
from ..corruption import IdSet, corruption_shares, draw_outcomes
from ..injection import ContextInjection
from ..masking import MultinomialAttentionMasking
from ..shares import ids_of
from ..strategies import CellValues, Draw, Masking, MaskingStrategy, attention, masking_entropy
from .formats import BatchFormat, real_tokens, warn_of_untried
from .masked_batch import MaskedBatch
from .parameter_groups import parameter_groups

__all__ = ["PENALTY", "MaskedBatch", "MaskingStep", "real_tokens"]

PENALTY = 1e-5
"""The published weight of ``MaskedBatch.penalty`` in a loss."""

CORRUPTION_STREAM = 2
"""Of the random bits: 0 and 1 are those of the positions and of the latents."""


class MaskingStep(nn.Module):
    """From a batch to what a model reads and predicts, by the engine's latents or any other
    strategy.

    A mask is a function of (seed, step, sample id). Without a ``step``, training counts its calls,
    in a buffer that checkpoints hold, so that a resumed training hides the same; evaluation takes
    step 0, the same masks each time.

    Args:
        masker: the engine's module; how many positions are hidden, and how sharply, is set there.
            Or one of ``mam_kernels.strategies``.
        mask_value: what stands at a hidden position: the id of the mask token, or a value that no
            gene has.
        ignore_value: of ``labels`` where nothing is hidden.
        corruption: one of ``mam_kernels.corruption.CORRUPTIONS``, or the shares of mask token and
            random value; the rest is unchanged.
        random_ids: what random values are taken from, each as likely; None: the non-zero values of
            the same cell.
        embed_dim: ``De``, the width of the model's token embeddings, of the encoder where the
            decoder differs. None where nothing is injected.
        decoder_dim: of the decoder; None: the same.
        scheme: where the context is added: "encoder", "decoder", "both", "separate", or "none".
            None: "encoder", or "none" for a strategy without latents.
        injection_start: first weights of its adapters, "random" or "zero".
        seed: of the masks; None: one from torch's generator for each call.
        batches: what the batches mean that ``mask`` and ``check`` take.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    steps: Tensor  # int64, 0 dims: how many batches were masked in training

    def __init__(
        self,
        masker: MultinomialAttentionMasking | MaskingStrategy,
        *,
        mask_value: float,
        embed_dim: int | None = None,
        ignore_value: float = -100,
        corruption: str | Sequence[float] = "all",
        random_ids: Iterable[int] | None = None,
        decoder_dim: int | None = None,
        scheme: str | None = None,
        injection_start: str = "random",
        seed: int | None = None,
        batches: BatchFormat | None = None,
    ) -> None:
        super().__init__()
        self.batches = BatchFormat("loop") if batches is None else batches
        warn_of_untried(self.batches.framework)
        self.strategy = strategy_of(masker)
        self.injection = _injection(self.strategy, embed_dim, decoder_dim, scheme, injection_start)
        self.mask_value, self.ignore_value = mask_value, ignore_value
        self.shares = corruption_shares(corruption)
        self.seed = seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.random_ids = None if random_ids is None else IdSet(random_ids)

    @property
    def masker(self) -> MultinomialAttentionMasking | None:
        """The engine's module; None for a strategy without latents."""
        return self.strategy.latents

    @property
    def device(self) -> torch.device:
        """Of the module, and of the batches it takes."""
        return self.steps.device

    def extra_repr(self) -> str:
        return (
            f"mask_value={self.mask_value}, ignore_value={self.ignore_value}, "
            f"shares={self.shares}, seed={self.seed}"
        )

    def forward(
        self,
        inputs: Tensor,
        tokens: Tensor,
        valid: Tensor,
        *,
        maskable: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a batch.

        Args:
            inputs: (B, L), what the model reads at each position: token ids, bins or values.
            tokens: (B, L) float values or (B, L, D) embeddings, which the latents attend to.
            valid: (B, L) bool, True where there is a gene, neither padding nor a special token:
                what latents attend to.
            maskable: (B, L) bool, the genes that may be hidden; None: all.
            seed, step: ints or integer tensors of one element. None: those of the module.
            sample_ids: (B,) integers, a stable id of each cell. None: the index of the row.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        draw = self._draw(inputs, seed, step, sample_ids)
        embedded = tokens.dim() == 3
        cells = CellValues(
            inputs if embedded else tokens, None, valid, maskable, tokens if embedded else None
        )
        masking = self.strategy(cells, draw)
        importance = masking.importance
        if importance is None:
            drawable = cells.drawable
            importance = (valid if drawable is None else drawable).float()
        encoder_shift, decoder_shift = (
            (None, None) if self.injection is None else self.injection(masking.context)
        )
        corrupted = self._corrupt(inputs, masking.mask, valid, draw)
        labels = inputs.masked_fill(~masking.mask, self.ignore_value)
        penalty = masking.penalty
        if penalty is None:
            penalty = torch.zeros((), device=inputs.device)
        return MaskedBatch(
            corrupted, labels, masking.mask, importance, encoder_shift, decoder_shift, penalty
        )

    def mask(
        self,
        inputs: Tensor,
        *,
        values: Tensor | None = None,
        embeddings: Tensor | None = None,
        ids: Tensor | None = None,
        padding_mask: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a batch whose positions mean what ``batches`` says.

        Args:
            inputs: (B, L), what the model reads.
            values: (B, L) float, which latents for values attend to; None: the inputs.
            embeddings: (B, L, D), which latents for embeddings attend to.
            ids: (B, L), which gene or special token stands at each position.
            padding_mask: (B, L).
            seed, step, sample_ids: as in ``forward``.
        """
        valid, maskable = self.batches.positions(inputs, ids, padding_mask)
        tokens = self.tokens(inputs if values is None else values, embeddings)
        return MaskingStep.forward(
            self, inputs, tokens, valid, maskable=maskable, seed=seed, step=step,
            sample_ids=sample_ids,
        )  # fmt: skip

    def entropy(self, masked: MaskedBatch) -> Tensor:
        """Of the distribution that positions were drawn from, over the logarithm of their number: 1
        is uniform masking. Scalar.
        """
        return masking_entropy(
            Masking(masked.mask, masked.importance, None, None), *self.strategy.weighting()
        )

    @torch.no_grad()
    def statistics(self, masked: MaskedBatch, error: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars to watch in the first hundred steps, without a synchronisation.

        Args:
            masked: of this step.
            error: (B, L), the model's loss at each position, or a scalar, its mean over the hidden
                ones; None: none.

        Returns:
            ``hidden``, the share of the genes that may be hidden which is; ``hidden_nonzero`` and
            ``hidden_zero``, of those that are not zero, and that are (NaN where there are none);
            ``entropy`` of the masks, 1 = uniform; ``penalty``, before its weight; ``loss``, at
            hidden positions, where ``error`` was given.
        """
        drawable = (masked.importance > 0) | masked.mask
        true = torch.where(masked.mask, masked.labels, masked.inputs)
        nonzero = drawable & (true != 0)
        found = {
            "hidden": _share(masked.mask, drawable),
            "hidden_nonzero": _share(masked.mask, nonzero),
            "hidden_zero": _share(masked.mask, drawable & ~nonzero),
            "entropy": self.entropy(masked).float(),
            "penalty": masked.penalty.detach(),
        }
        if error is not None:
            found["loss"] = error.detach()
            if error.dim():
                found["loss"] = (error * masked.mask).sum() / masked.mask.sum().clamp(min=1)
        return found

    def tokens(self, values: Tensor, embeddings: Tensor | None) -> Tensor:
        """The tokens of the latents: the values, or the embeddings where ``masker.input_dim`` is
        theirs.
        """
        input_dim = None if self.masker is None else self.masker.input_dim
        if input_dim is None and embeddings is None:
            return values
        if input_dim is None or embeddings is None:
            expected = "None" if input_dim is None else f"(B, L, {input_dim})"
            raise ValueError(
                f"embeddings: expected {expected}, as input_dim of the masker says; "
                f"got {describe(embeddings)}"
            )
        return embeddings

    def parameter_groups(
        self,
        model: nn.Module,
        lr: float,
        masking_lr: float,
        weight_decay: float = 0.0,
        masking_weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Two groups for an optimizer: "model", the parameters of ``model`` that are not of this
        module, and "masking", those of this.
        """
        both = nn.ModuleDict(
            {"model": model, "masking": self}
        )  # a parameter of both is named by the first
        ours = {id(parameter) for parameter in self.parameters()}
        names = {name for name, parameter in both.named_parameters() if id(parameter) in ours}
        return parameter_groups(both, names, lr, masking_lr, weight_decay, masking_weight_decay)

    def _draw(
        self,
        inputs: Tensor,
        seed: int | Tensor | None,
        step: int | Tensor | None,
        sample_ids: Tensor | None,
    ) -> Draw:
        if step is None:
            step = self.steps.clone() if self.training else 0
            if self.training:
                self.steps += 1
        source = checks.draw_source(
            self.seed if seed is None else seed, step, sample_ids, len(inputs), inputs.device
        )
        draw = Draw(*source)
        return draw._replace(sample_ids=ids_of(inputs, draw))

    def _corrupt(self, inputs: Tensor, mask: Tensor, valid: Tensor, draw: Draw) -> Tensor:
        if self.shares[0] == 1.0:
            return inputs.masked_fill(mask, self.mask_value)
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        ids = ids_of(inputs, draw)[:, None]
        token, wrong, which = draw_outcomes(
            self.shares,
            positions,
            ids,
            seed=word_tensor(draw.seed),
            step=draw.step,
            stream=CORRUPTION_STREAM,
        )
        if self.shares[1] > 0:
            inputs = torch.where(mask & wrong, self._random_values(inputs, valid, which), inputs)
        return inputs.masked_fill(mask & token, self.mask_value)

    def _random_values(self, inputs: Tensor, valid: Tensor, which: Tensor) -> Tensor:
        """(B, L), of ``random_ids`` or of the non-zero genes of the same cell, by the bits
        ``which`` (B, L).
        """
        if self.random_ids is not None:
            return self.random_ids.choose(which).to(inputs.dtype)
        upto = (valid & (inputs != 0)).cumsum(
            dim=1
        )  # the n-th such gene of a cell is where this first exceeds n
        count = upto[:, -1:]
        place = torch.searchsorted(upto, which % count.clamp(min=1), right=True)
        return torch.where(
            count > 0, inputs.gather(1, place.clamp(max=inputs.shape[1] - 1)), inputs
        )


def strategy_of(masker: MultinomialAttentionMasking | MaskingStrategy) -> MaskingStrategy:
    """A strategy as it is, and of the engine's module the one that hides its ``mask_ratio``."""
    if isinstance(masker, MaskingStrategy):
        return masker
    if isinstance(masker, MultinomialAttentionMasking):
        return attention(masker)
    raise TypeError(
        "masker: expected a MultinomialAttentionMasking, or a strategy of mam_kernels.strategies; "
        f"got {type(masker).__name__}"
    )


def require_input_dim(
    masker: MultinomialAttentionMasking | MaskingStrategy, embeddings: bool, why: str
) -> None:
    """Latents for embeddings, or for values."""
    latents = masker.latents if isinstance(masker, MaskingStrategy) else masker
    found = getattr(latents, "input_dim", None)
    if latents is not None and (found is None) == embeddings:
        wanted = "input_dim, the width of the embeddings" if embeddings else "input_dim=None"
        raise ValueError(f"masker: expected {wanted}, since {why}; got input_dim={found}")


def _injection(
    strategy: MaskingStrategy,
    embed_dim: int | None,
    decoder_dim: int | None,
    scheme: str | None,
    start: str,
) -> ContextInjection | None:
    latents = strategy.latents
    if scheme is None:
        scheme = "none" if latents is None else "encoder"
    if scheme == "none":
        return None
    if latents is None:
        raise ValueError(
            f"scheme: expected none, since {type(strategy).__name__} has no latents, "
            f"and so no context; got {scheme!r}"
        )
    return ContextInjection(
        latents.latent_dim,
        checks.require_count("embed_dim", embed_dim),
        scheme,
        decoder_dim=decoder_dim,
        start=start,
    )


def _share(mask: Tensor, among: Tensor) -> Tensor:
    return (mask & among).sum() / among.sum()
