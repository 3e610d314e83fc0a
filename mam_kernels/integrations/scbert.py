"""scBERT-style pretraining: expression in bins, one token a gene (TencentAILabHealthcare/scBERT,
``PerformerLM``).

Bins are made on the device. Zeros are never hidden, and the mask token's id is also that of
padding, which the loss ignores.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..masking import MultinomialAttentionMasking
from . import core


class ScBertMasking(core.MaskingStep):
    """In place of ``data_mask`` and of the bins that their dataset makes.

    Args:
        masker: the engine's module; ``input_dim=None`` attends to the values,
            ``input_dim=embed_dim`` to embeddings.
        embed_dim: ``dim``.
        bin_num: bins above zero; tokens are 0 to ``bin_num``, and ``bin_num + 1`` is the mask
            token.
        corruption: theirs: 90 % the mask token, 10 % unchanged.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        *,
        bin_num: int = 5,
        corruption: str | tuple[float, float] = (0.9, 0.0),
        **options: Any,
    ) -> None:
        self.bin_num = bin_num
        mask_token = bin_num + 1
        super().__init__(
            masker, mask_value=mask_token, ignore_value=mask_token, embed_dim=embed_dim, corruption=corruption,
            random_ids=range(1, bin_num + 1), **options,
        )  # fmt: skip

    def bins(self, values: Tensor) -> Tensor:
        """Values (B, G), not negative, to tokens (B, G + 1) int64: the integer part, at most
        ``bin_num``, and a last token, 0.
        """
        return F.pad(values.clamp(0, self.bin_num).long(), (0, 1))

    def forward(
        self,
        values: Tensor,
        *,
        embeddings: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> core.MaskedBatch:
        """Bin and mask a batch.

        Args:
            values: (B, G) float, normalised and log-transformed.
            embeddings: (B, G + 1, D), as ``model.token_emb(masking.bins(values))``, where the
                masker attends to embeddings.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            A ``MaskedBatch``: ``inputs`` (B, G + 1) int64 are what the model reads; ``labels`` hold
            ``bin_num + 1``, which the loss ignores, where nothing is hidden.
        """
        core.require_values("values", values, self.device)
        tokens = self.bins(values)
        core.require_any("values", tokens > 0, "a gene above bin 0")
        genes = F.pad(values.new_ones(values.shape, dtype=bool), (0, 1))
        seen = self.tokens(F.pad(values, (0, 1)), embeddings)
        return super().forward(
            tokens, seen, genes, maskable=tokens > 0, seed=seed, step=step, sample_ids=sample_ids
        )
