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
from ..strategies import Masking, attend_to_values
from . import core


class ScFoundationBatch(NamedTuple):
    """A masked batch, and the arguments that ``MaeAutobin`` takes of it."""

    masked: core.MaskedBatch
    model_arguments: dict[str, Any]


class ScFoundationMasking(core.MaskingStep):
    """In place of their masking and ``getEncoerDecoderData``.

    Args:
        masker: the engine's module, for scalar values (``input_dim=None``); its ``mask_ratio`` is
            not used.
        embed_dim, decoder_dim: widths of encoder and decoder.
        seq_len: ``config["seq_len"]``: genes and totals; the position of padding.
        mask_token_id, pad_token_id: ``config["mask_token_id"]``, ``config["pad_token_id"]``: values
            that no gene has.
        num_genes: genes of a cell; what stands behind them are totals. None: all.
        value_ratio, zero_ratio: shares of a cell's non-zeros and zeros that are hidden.
        scheme: where the context is added.
        **options: of ``MaskingStep``: corruption ("all"), seed and more.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        decoder_dim: int,
        *,
        seq_len: int,
        mask_token_id: float,
        pad_token_id: float,
        num_genes: int | None = None,
        value_ratio: float = 0.3,
        zero_ratio: float = 0.03,
        scheme: str = "decoder",
        **options: Any,
    ) -> None:
        if masker.input_dim is not None:
            raise ValueError(
                f"masker: expected input_dim=None, since it attends to values; got input_dim={masker.input_dim}"
            )
        super().__init__(
            masker,
            mask_value=mask_token_id,
            embed_dim=embed_dim,
            decoder_dim=decoder_dim,
            scheme=scheme,
            **options,
        )
        self.value_ratio = checks.require_number("value_ratio", value_ratio, 0.0, 1.0)
        self.zero_ratio = checks.require_number("zero_ratio", zero_ratio, 0.0, 1.0)
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
        core.require_values("values", values, self.device)
        checks.require_shape("values", values, (None, self.seq_len), "(B, seq_len)")
        genes = values[:, : self.num_genes]
        core.require_any("values", genes != 0, "a non-zero gene")
        masked = super().forward(
            genes,
            genes,
            torch.ones_like(genes, dtype=torch.bool),
            seed=seed,
            step=step,
            sample_ids=sample_ids,
        )
        totals = values.shape[1] - genes.shape[1]
        inputs = torch.cat([masked.inputs, values[:, genes.shape[1] :]], dim=1)
        masked = masked._replace(
            inputs=inputs,
            labels=F.pad(masked.labels, (0, totals), value=self.ignore_value),
            mask=F.pad(masked.mask, (0, totals)),
            importance=F.pad(masked.importance, (0, totals)),
        )
        visible = (inputs != 0) & (inputs != self.mask_value)
        encoder = gather(inputs, visible)
        arguments = {
            "x": encoder.values.masked_fill(~encoder.valid, self.pad_token_id),
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

    def select(
        self, tokens: Tensor, valid: Tensor, maskable: Tensor | None, draw: checks.Draw
    ) -> Masking:
        return attend_to_values(
            self.masker, tokens, self.value_ratio, self.zero_ratio, draw.sample_ids, seed=draw.seed, step=draw.step
        )  # fmt: skip
