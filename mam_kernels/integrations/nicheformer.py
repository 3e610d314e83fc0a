"""Nicheformer-style pretraining: genes ranked by expression, behind context tokens
(theislab/nicheformer, ``Nicheformer``).

In a batch as it comes, 0 is padding. Masked, 1 is padding and 0 the mask token; ``attention_mask``
is True at padding, and ``mask`` is 0 where a token is hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..masking import MultinomialAttentionMasking
from . import core

PADDING, MASK_TOKEN = 1, 0


class NicheformerMasking(core.MaskingStep):
    """In place of ``complete_masking``.

    Args:
        masker: the engine's module, with ``input_dim=embed_dim``: it attends to embeddings.
        embed_dim: ``dim_model``.
        n_tokens: ids that the model predicts.
        first_gene: id of the first gene; what is below are special and context tokens (their
            ``aux_tokens``).
        corruption: 80 % the mask token, 10 % any gene, 10 % unchanged.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        *,
        n_tokens: int,
        first_gene: int = 30,
        corruption: str | tuple[float, float] = "80/10/10",
        **options: Any,
    ) -> None:
        if masker.input_dim is None:
            raise ValueError(
                "masker: expected input_dim, the width of the embeddings, since tokens have no value; got input_dim=None"
            )
        super().__init__(
            masker,
            mask_value=MASK_TOKEN,
            embed_dim=embed_dim,
            corruption=corruption,
            random_ids=range(first_gene, n_tokens),
            **options,
        )
        self.n_tokens, self.first_gene = n_tokens, first_gene

    def forward(
        self,
        batch: dict[str, Any],
        embed: Callable[[Tensor], Tensor],
        *,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[dict[str, Any], core.MaskedBatch]:
        """Mask a batch.

        Args:
            batch: with ``X`` (B, L) int32 or int64, context tokens included.
            embed: from ids (B, L) to embeddings (B, L, D): ``model.embeddings``.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            The batch as ``complete_masking`` returns it, with ``X``, ``masked_indices``, ``mask``
            and ``attention_mask``, and the ``MaskedBatch``.
        """
        ids = batch["X"]
        core.require_ids("X", ids, self.n_tokens, self.device)
        ids = ids.masked_fill(ids == 0, PADDING)
        real = core.real_tokens("X", ids == PADDING, ids, true_means="padding")
        masked = super().forward(
            ids,
            embed(ids),
            real & (ids >= self.first_gene),
            seed=seed,
            step=step,
            sample_ids=sample_ids,
        )
        mask = torch.ones_like(ids).masked_fill(masked.mask, 0)
        return {
            **batch,
            "X": ids,
            "masked_indices": masked.inputs,
            "mask": mask,
            "attention_mask": ~real,
        }, masked
