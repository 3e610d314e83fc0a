"""scBERT-style pretraining: expression in bins, one token a gene (TencentAILabHealthcare/scBERT,
``PerformerLM``).

Their ``SCDataset`` gives tokens: bins, and a last 0. Zeros are never hidden, and the mask token's
id is also that of padding, which the loss ignores.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.describing import describe
from ..masking import MultinomialAttentionMasking
from ..shares import Share
from ..strategies import MaskingStrategy, attention
from . import core
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, require_ids, require_values


class ScBertMasking(core.MaskingStep):
    """In place of ``data_mask``.

    A cell in which one gene or more is above bin 0 has one hidden at least; a cell without any has
    none, and a batch of such cells alone gives their loss nothing to average: see ``mean_loss``.

    Args:
        masker: the engine's module; ``input_dim=None`` attends to the values,
            ``input_dim=embed_dim`` to embeddings. Or a strategy; ``Uniform(Share(0.15,
            rounding="ceil"))`` is theirs.
        embed_dim: ``dim``.
        bin_num: bins above zero; tokens are 0 to ``bin_num``, and ``bin_num + 1`` is the mask
            token.
        corruption: theirs: 90 % the mask token, 10 % unchanged.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking | MaskingStrategy,
        embed_dim: int | None = None,
        *,
        bin_num: int = 5,
        corruption: str | tuple[float, float] = (0.9, 0.0),
        **options: Any,
    ) -> None:
        self.bin_num = bin_num
        mask_token = bin_num + 1
        if isinstance(masker, MultinomialAttentionMasking):
            masker = attention(masker, Share(masker.mask_ratio, at_least=1))
        super().__init__(
            masker, mask_value=mask_token, ignore_value=mask_token, embed_dim=embed_dim,
            corruption=corruption, random_ids=range(1, bin_num + 1),
            batches=BatchFormat("scbert", "tokens", trailing=1, hides_zeros=False), **options,
        )  # fmt: skip

    def bins(self, values: Tensor) -> Tensor:
        """Values (B, G), not negative, to tokens (B, G + 1) int64: the integer part, at most
        ``bin_num``, and a last token, 0.
        """
        return F.pad(values.clamp(0, self.bin_num).long(), (0, 1))

    def mean_loss(self, logits: Tensor, masked: core.MaskedBatch) -> Tensor:
        """The mean cross-entropy at hidden tokens; 0, with a gradient of 0, where there are none.

        Args:
            logits: (B, G + 1, bin_num + 2), of the model.
            masked: of the batch.
        """
        errors = F.cross_entropy(
            logits.transpose(1, 2), masked.labels, ignore_index=int(self.ignore_value),
            reduction="none",
        )  # fmt: skip
        return errors.sum() / masked.mask.sum().clamp(min=1)

    def forward(
        self,
        data: Tensor,
        *,
        embeddings: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> core.MaskedBatch:
        """Mask a batch.

        Args:
            data: (B, G + 1) int64, tokens of their dataset: bins, and a last 0. Or (B, G) float,
                normalised and log-transformed values, which are binned here.
            embeddings: (B, G + 1, D), as ``model.token_emb(data)`` of tokens, where the masker
                attends to embeddings.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            A ``MaskedBatch``: ``inputs`` (B, G + 1) int64 are what the model reads; ``labels`` hold
            ``bin_num + 1``, which the loss ignores, where nothing is hidden.
        """
        tokens, values = self._tokens_and_values(data)
        return self.mask(
            tokens, values=values, embeddings=embeddings, seed=seed, step=step,
            sample_ids=sample_ids,
        )  # fmt: skip

    def check(self, data: Tensor) -> FirstBatch:
        """Whether a batch is what this adapter takes it for."""
        tokens, _ = self._tokens_and_values(data)
        return check_batch(self, values=tokens.float())

    def _tokens_and_values(self, data: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(data, Tensor) and not data.is_floating_point():
            require_ids("data", data, self.bin_num + 2, self.device)
            if data.shape[1] < 2:
                raise ValueError(
                    f"data: expected a gene and the last 0 of their dataset in each row; "
                    f"got {describe(data)}"
                )
            return data, data.to(torch.float32)
        require_values("data", data, self.device)
        return self.bins(data), F.pad(data, (0, 1))
