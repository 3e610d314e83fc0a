"""Nicheformer-style pretraining: genes ranked by expression, behind context tokens
(theislab/nicheformer, ``Nicheformer``).

In a batch as it comes, 0 is padding. Masked, 1 is padding and 0 the mask token; ``attention_mask``
is True at padding, and ``mask`` is 0 where a token is hidden. Their ``training_step`` and
``validation_step`` mask by themselves: ``nicheformer_with_masking`` gives a class whose steps read
what the latents hid.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..masking import MultinomialAttentionMasking
from ..strategies import MaskingStrategy
from . import core
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, require_ids
from .lightning import MaskedPretrainingMixin

PADDING, MASK_TOKEN = 1, 0


class NicheformerMasking(core.MaskingStep):
    """In place of ``complete_masking``.

    Args:
        masker: the engine's module, with ``input_dim=embed_dim``: it attends to embeddings. Or a
            strategy.
        embed_dim: ``dim_model``.
        n_tokens: ids that the model predicts.
        first_gene: id of the first gene; what is below are special and context tokens (their
            ``aux_tokens``).
        corruption: 80 % the mask token, 10 % any gene, 10 % unchanged.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking | MaskingStrategy,
        embed_dim: int | None = None,
        *,
        n_tokens: int,
        first_gene: int = 30,
        corruption: str | tuple[float, float] = "80/10/10",
        **options: Any,
    ) -> None:
        core.require_input_dim(masker, True, "tokens have no value")
        super().__init__(
            masker,
            mask_value=MASK_TOKEN,
            embed_dim=embed_dim,
            corruption=corruption,
            **{"random_ids": range(first_gene, n_tokens)} | options,
            batches=BatchFormat(
                "nicheformer", "X", "X", "padding", first_gene=first_gene, pad_id=0
            ),
        )
        self.n_tokens, self.first_gene = n_tokens, first_gene

    def forward(
        self,
        batch: dict[str, Any],
        embed: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[dict[str, Any], core.MaskedBatch]:
        """Mask a batch.

        Args:
            batch: with ``X`` (B, L) int32 or int64, context tokens included.
            embed: from ids (B, L) to embeddings (B, L, D): ``model.embeddings``; None for a
                strategy without latents.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            The batch as ``complete_masking`` returns it, with ``X``, ``masked_indices``, ``mask``
            and ``attention_mask``, and the ``MaskedBatch``.
        """
        ids = batch["X"]
        require_ids("X", ids, self.n_tokens, self.device)
        ids = ids.masked_fill(ids == 0, PADDING)
        padding = ids == PADDING
        masked = self.mask(
            ids, embeddings=None if embed is None else embed(ids), ids=ids, padding_mask=padding,
            seed=seed, step=step, sample_ids=sample_ids,
        )  # fmt: skip
        mask = torch.ones_like(ids).masked_fill(masked.mask, 0)
        return {
            **batch,
            "X": ids,
            "masked_indices": masked.inputs,
            "mask": mask,
            "attention_mask": padding,
        }, masked

    def check(self, batch: dict[str, Any]) -> FirstBatch:
        """Whether a batch, as it comes, is what this adapter takes it for."""
        ids = batch["X"]
        return check_batch(self, ids=ids, padding_mask=ids == 0, vocab_size=self.n_tokens)


def nicheformer_with_masking(nicheformer: type) -> type:
    """A subclass of ``nicheformer.models.Nicheformer`` whose training and validation steps take the
    masks of a ``NicheformerMasking`` in place of ``complete_masking``.

    Call ``add_masking(NicheformerMasking(...), encoder="encoder")`` on a module of it, before
    training.

    Args:
        nicheformer: their class.
    """

    class Nicheformer(MaskedPretrainingMixin, _Steps, nicheformer):
        __doc__ = nicheformer.__doc__

        def mask_batch(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
            return self.masking(batch, None if self.masking.masker is None else self.embeddings)

    return Nicheformer


class _Steps:
    """Their two steps without their masking: the batch has been masked."""

    # of their class, which stands behind this one
    forward: Callable[..., dict[str, Tensor]]
    _prepare_target_indices: Callable[[Tensor, Tensor], Tensor]
    _compute_loss: Callable[[Tensor, Tensor], Tensor]
    log: Callable[..., None]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        return self._masked_step(batch, "train_loss")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        return self._masked_step(batch, "val_loss")

    def _masked_step(self, batch: dict[str, Tensor], name: str) -> Tensor:
        output = self.forward(batch["masked_indices"], batch["attention_mask"])
        target = self._prepare_target_indices(batch["mask"], batch["X"])
        loss = self._compute_loss(output["mlm_prediction"], target)
        self.log(name, loss, sync_dist=True, prog_bar=True, reduce_fx="mean")
        return loss
