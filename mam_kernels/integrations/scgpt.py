"""scGPT-style pretraining: pairs of gene and value, padded, ``<cls>`` first (bowang-lab/scGPT,
``TransformerModel``).

Their ``src_key_padding_mask`` is True at padding, hidden values become -1, and padded ones are -2.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._core import checks
from ..masking import MultinomialAttentionMasking
from . import core
from .checking import FirstBatch, check_first_batch


class ScGptMasking(core.MaskingStep):
    """In place of ``random_mask_value``.

    Args:
        masker: the engine's module; ``input_dim=None`` attends to values, ``input_dim=embed_dim``
            to embeddings.
        embed_dim: ``d_model``.
        special_ids: ids of ``<cls>``, ``<pad>`` and other tokens that are no gene.
        mask_value: what stands at a hidden value.
        pad_value: what stands in the padding; the checker looks for it.
        **options: of ``MaskingStep``: corruption ("all"), scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        *,
        special_ids: Iterable[int],
        mask_value: float = -1,
        pad_value: float = -2,
        **options: Any,
    ) -> None:
        super().__init__(masker, mask_value=mask_value, embed_dim=embed_dim, **options)
        self.special_ids, self.pad_value = tuple(special_ids), pad_value

    def forward(
        self,
        gene_ids: Tensor,
        values: Tensor,
        src_key_padding_mask: Tensor,
        *,
        embeddings: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> core.MaskedBatch:
        """Mask a batch.

        Args:
            gene_ids: (B, L) int64.
            values: (B, L) float, binned or not, nothing hidden yet.
            src_key_padding_mask: (B, L) bool, True = padding.
            embeddings: (B, L, D), as ``model.encoder(gene_ids) + model.value_encoder(values)``,
                where the masker attends to embeddings.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            A ``MaskedBatch``: ``inputs`` are the values that the model reads, ``mask`` is where its
                loss is computed.
        """
        core.require_values("values", values, self.device)
        checks.require_shape("gene_ids", gene_ids, values.shape, "(B, L)")
        checks.require_device("gene_ids", gene_ids, values.device, "values")
        real = core.real_tokens(
            "src_key_padding_mask", src_key_padding_mask, values, true_means="padding"
        )
        valid = real & core.not_among(gene_ids, self.special_ids)
        return super().forward(
            values,
            self.tokens(values, embeddings),
            valid,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
        )

    def check(
        self,
        gene_ids: Tensor,
        values: Tensor,
        src_key_padding_mask: Tensor,
        vocab_size: int | None = None,
    ) -> FirstBatch:
        """Whether a batch is what this adapter takes it for."""
        return check_first_batch(
            ids=gene_ids, values=values, padding_mask=src_key_padding_mask, true_means="padding", mask_value=self.mask_value,
            pad_value=self.pad_value, special_ids=self.special_ids, vocab_size=vocab_size, module=self,
        )  # fmt: skip
