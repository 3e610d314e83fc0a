"""scGPT-style pretraining: pairs of gene and value, padded, ``<cls>`` first (bowang-lab/scGPT,
``TransformerModel``).

Their ``src_key_padding_mask`` is True at padding, hidden values become -1. Padded values are -2
where their tutorials tokenize, and 0 as their ``DataCollator`` pads.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._core import checks
from ..masking import MultinomialAttentionMasking
from ..strategies import MaskingStrategy
from . import core
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, require_values


class ScGptMasking(core.MaskingStep):
    """In place of ``random_mask_value``, and of the masking of ``DataCollator``.

    Args:
        masker: the engine's module; ``input_dim=None`` attends to values, ``input_dim=embed_dim``
            to embeddings. Or a strategy.
        embed_dim: ``d_model``.
        special_ids: ids of ``<cls>``, ``<pad>`` and other tokens that are no gene.
        mask_value: what stands at a hidden value.
        pad_value: what stands in the padding; the checker looks for it.
        **options: of ``MaskingStep``: corruption ("all"), scheme ("encoder"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking | MaskingStrategy,
        embed_dim: int | None = None,
        *,
        special_ids: Iterable[int],
        mask_value: float = -1,
        pad_value: float = -2,
        **options: Any,
    ) -> None:
        batches = BatchFormat(
            "scgpt", "values", "src_key_padding_mask", "padding", tuple(special_ids),
            pad_value=pad_value,
        )  # fmt: skip
        super().__init__(
            masker, mask_value=mask_value, embed_dim=embed_dim, batches=batches, **options
        )

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
            gene_ids: (B, L) int64: their ``genes``, or ``gene`` of ``DataCollator``.
            values: (B, L) float, binned or not, nothing hidden yet: their ``target_values``, or
                ``expr`` of ``DataCollator``.
            src_key_padding_mask: (B, L) bool, True = padding.
            embeddings: (B, L, D), as ``model.encoder(gene_ids) + model.value_encoder(values)``,
                where the masker attends to embeddings.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            A ``MaskedBatch``: ``inputs`` are the values that the model reads, ``mask`` is where its
            loss is computed.
        """
        require_values("values", values, self.device)
        checks.require_shape("gene_ids", gene_ids, values.shape, "(B, L)")
        checks.require_device("gene_ids", gene_ids, values.device, "values")
        return self.mask(
            values, embeddings=embeddings, ids=gene_ids, padding_mask=src_key_padding_mask,
            seed=seed, step=step, sample_ids=sample_ids,
        )  # fmt: skip

    def check(
        self,
        gene_ids: Tensor,
        values: Tensor,
        src_key_padding_mask: Tensor,
        vocab_size: int | None = None,
    ) -> FirstBatch:
        """Whether a batch is what this adapter takes it for."""
        return check_batch(
            self, ids=gene_ids, values=values, padding_mask=src_key_padding_mask,
            vocab_size=vocab_size,
        )  # fmt: skip
