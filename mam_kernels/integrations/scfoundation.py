"""scFoundation- or xTrimoGene-style pretraining: the encoder reads visible non-zero genes, the
decoder all (biomap-research/scFoundation, ``MaeAutobin``).

Values are dense. After the genes may stand totals of the cell (their T and S), which are never
hidden. Their padding labels are True at padding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core import checks
from ..masking import MultinomialAttentionMasking
from ..sequences import gather
from ..shares import Share, share_of
from ..strategies import MaskingStrategy, ValueAttention
from . import core
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, require_any, require_values


class ScFoundationBatch(NamedTuple):
    """A masked batch, and the arguments that ``MaeAutobin`` takes of it."""

    masked: core.MaskedBatch
    model_arguments: dict[str, Any]


class ScFoundationMasking(core.MaskingStep):
    """In place of their masking and ``getEncoerDecoderData``.

    Args:
        masker: the engine's module, for scalar values (``input_dim=None``); its ``mask_ratio`` is
            not used. Or a strategy, whose own shares are.
        embed_dim: width of the encoder.
        decoder_dim: width at which the context meets the decoder's tokens. None: ``embed_dim``, as
            published: it is added before ``model.decoder_embed``, which is the module to inject
            into. The decoder's own width is that of ``model.decoder``.
        seq_len: ``config["seq_len"]``: genes and totals; the position of padding.
        mask_token_id, pad_token_id: ``config["mask_token_id"]``, ``config["pad_token_id"]``: values
            that no gene has.
        num_genes: genes of a cell; what stands behind them are totals. None: all.
        value_ratio: share of a cell's non-zeros that is hidden.
        zero_ratio: share of its zeros. None: ``value_ratio`` of all genes, zeros and non-zeros in
            one draw, as the authors of the method did.
        scheme: where the context is added.
        **options: of ``MaskingStep``: corruption ("all"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking | MaskingStrategy,
        embed_dim: int | None = None,
        decoder_dim: int | None = None,
        *,
        seq_len: int,
        mask_token_id: float,
        pad_token_id: float,
        num_genes: int | None = None,
        value_ratio: float | Share = 0.3,
        zero_ratio: float | Share | None = 0.03,
        scheme: str | None = None,
        **options: Any,
    ) -> None:
        core.require_input_dim(masker, False, "it attends to values")
        if isinstance(masker, MultinomialAttentionMasking):
            share = share_of("value_ratio", value_ratio)
            zeros = None if zero_ratio is None else share_of("zero_ratio", zero_ratio)
            masker = ValueAttention(masker, share, zeros)
        if scheme is None and masker.latents is not None:
            scheme = "decoder"
        super().__init__(
            masker,
            mask_value=mask_token_id,
            embed_dim=embed_dim,
            decoder_dim=decoder_dim,
            scheme=scheme,
            batches=BatchFormat("scfoundation", "values", pad_value=pad_token_id),
            **options,
        )
        self.seq_len, self.pad_token_id, self.num_genes = seq_len, pad_token_id, num_genes

    def forward(
        self,
        values: Tensor,
        *,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> ScFoundationBatch:
        """Mask a batch.

        Args:
            values: (B, seq_len) float, normalised and log-transformed; totals last.
            seed, step, sample_ids: as in ``MaskingStep``.

        Returns:
            ``masked``, whose ``labels`` and ``mask`` are (B, seq_len), and ``model_arguments``:
            ``model(**model_arguments)`` predicts (B, seq_len).
        """
        require_values("values", values, self.device)
        checks.require_shape("values", values, (None, self.seq_len), "(B, seq_len)")
        genes = values[:, : self.num_genes]
        require_any("values", genes != 0, "a non-zero gene")
        masked = self.mask(genes, seed=seed, step=step, sample_ids=sample_ids)
        totals = values.shape[1] - genes.shape[1]
        inputs = torch.cat([masked.inputs, values[:, genes.shape[1] :]], dim=1)
        visible = (inputs != 0) & (inputs != self.mask_value)
        encoder = gather(inputs, visible)
        read = encoder.values.masked_fill(~encoder.valid, self.pad_token_id)
        masked = masked._replace(
            inputs=inputs,
            labels=F.pad(masked.labels, (0, totals), value=self.ignore_value),
            mask=F.pad(masked.mask, (0, totals)),
            importance=F.pad(masked.importance, (0, totals)),
            derived=(read,),
        )
        arguments = {
            "x": read,
            "padding_label": ~encoder.valid,
            "encoder_position_gene_ids": encoder.gene_ids.masked_fill(~encoder.valid, self.seq_len),
            "encoder_labels": visible,
            "decoder_data": inputs,
            "mask_gene_name": False,
            "mask_labels": None,
            "decoder_position_gene_ids": torch.arange(self.seq_len, device=values.device).expand(
                len(values), -1
            ),
            "decoder_data_padding_labels": torch.zeros_like(visible),
        }
        return ScFoundationBatch(masked, arguments)

    def check(self, values: Tensor) -> FirstBatch:
        """Whether a batch is what this adapter takes it for."""
        return check_batch(self, values=values[:, : self.num_genes])
