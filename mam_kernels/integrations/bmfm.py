"""BMFM-RNA-style pretraining: a masking strategy that gives a probability for each token
(BiomedSciAI/biomed-multi-omic, ``Masker``).

Their collator asks the strategy for probabilities, and hides. The context comes later, from the
batch that the collator made.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..masking import MultinomialAttentionMasking
from ..strategies import CellValues
from . import core
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, not_among, real_tokens, require_values


class LatentMaskingStrategy(core.MaskingStep):
    """A masking strategy for their data module (``masking_strategy=``), by the latents' attention
    to values.

    Args:
        masker: the engine's module, for scalar values (``input_dim=None``).
        embed_dim: ``hidden_size``.
        tokenizer: theirs, which gives the special ids, as their own strategies take one; None:
            ``special_ids`` does, or ``special_tokens_mask`` of a batch.
        special_ids: ids of special tokens in the vocabulary of the genes.
        gene_field, value_field: the fields whose ``input_ids`` are genes, and values.
        use_for_validation: whether validation is masked by it too.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more; what stands at hidden
            tokens is their collator's affair.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        *,
        tokenizer: Any = None,
        special_ids: Iterable[int] | None = None,
        gene_field: str = "genes",
        value_field: str = "expressions",
        use_for_validation: bool = False,
        **options: Any,
    ) -> None:
        core.require_input_dim(masker, False, "it attends to values")
        if special_ids is None:
            special_ids = () if tokenizer is None else tokenizer.all_special_ids
        super().__init__(
            masker,
            mask_value=0 if tokenizer is None else -(tokenizer.mask_token_id + 1),
            embed_dim=embed_dim,
            batches=BatchFormat(
                "bmfm", "input_ids", "attention_mask", "token", tuple(special_ids),
                negative_is_special=True,
            ),
            **options,
        )  # fmt: skip
        self.gene_field, self.value_field = gene_field, value_field
        self.use_for_validation = use_for_validation

    @property
    def _latents(self) -> MultinomialAttentionMasking:
        """The engine's module; a strategy put in place later may be without."""
        if self.masker is None:
            raise ValueError(
                "strategy: expected one with latents, whose probabilities and context are asked "
                f"for; got {type(self.strategy).__name__}"
            )
        return self.masker

    @torch.no_grad()
    def get_mask_probs(self, batch: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The probability of each token of being hidden.

        Their ``Masker`` divides these by their mean over all positions, padding and special tokens
        too, before it multiplies by ``change_ratio``; and sets special tokens to 0. So those
        positions hold the mean over the genes: then as many genes are hidden as ``change_ratio``
        asks for, however much of a batch is padding.

        Args:
            batch: of the collator: ``batch[value_field]`` with ``input_ids`` and
                ``attention_mask``, each (B, L), and where special ids are not known
                ``special_tokens_mask``; ``batch[gene_field]`` with ``input_ids`` where they are.

        Returns:
            (B, L) float32 on the device of the batch; ``mask_ratio`` of a cell's genes are expected
            to be hidden.
        """
        field = batch[self.value_field]
        values = field["input_ids"].to(self.device, torch.float32)
        valid = self._genes(batch, field, values)
        draw = self._draw(values, None, None, None)
        masking = self.strategy(CellValues(values, None, valid), draw)
        latents = self._latents
        weight = (masking.importance + latents.eps) ** (1 / latents.temperature) * valid
        expected = latents.mask_ratio * valid.sum(dim=1, keepdim=True)
        total = weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        probability = (weight / total * expected).clamp(max=1.0)
        mean = probability.sum() / valid.sum().clamp(min=1)
        return torch.where(valid, probability, mean).to(field["input_ids"].device)

    def _genes(
        self, batch: Mapping[str, Mapping[str, Tensor]], field: Mapping[str, Tensor], values: Tensor
    ) -> Tensor:
        """(B, L) bool, neither padding nor special."""
        valid = real_tokens(
            "attention_mask", field["attention_mask"].to(self.device), values, true_means="token"
        )
        valid = valid & (values >= 0)
        special = field.get("special_tokens_mask")
        if special is not None:
            valid = valid & ~special.to(self.device).bool()
        if self.batches.special_ids:
            ids = batch[self.gene_field]["input_ids"].to(self.device)
            valid = valid & not_among(ids, self.batches.special_ids)
        return valid

    def forward(
        self,
        values: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        special_tokens: Tensor | None = None,
        *,
        gene_ids: Tensor | None = None,
    ) -> core.MaskedBatch:
        """The context of a batch that their collator has masked.

        Args:
            values: (B, L), the value field of the collator's ``input_ids``: hidden ones hold the
                mask value.
            labels: (B, L), of the same field: true values where hidden, -100 elsewhere.
            attention_mask: (B, L), 1 = token; or (B, L, L) of ``prevent_attention_to_masked``,
                whose diagonal is that.
            special_tokens: (B, L) bool, True = special; None: what is negative and not hidden, as
                special tokens of a continuous field are, and what ``gene_ids`` say.
            gene_ids: (B, L), the gene field of ``input_ids``; None: not looked at.
        """
        hidden = labels != self.ignore_value
        true = torch.where(hidden, labels, values).float()
        require_values("values", true, self.device)
        if attention_mask.dim() == 3:
            attention_mask = attention_mask.diagonal(dim1=1, dim2=2)
        special = true < 0 if special_tokens is None else special_tokens.bool()
        if gene_ids is not None:
            special = special | ~self.batches.genes(gene_ids)
        valid = real_tokens("attention_mask", attention_mask, true, true_means="token") & ~special
        attended = valid & ~hidden if self._latents.context_from == "visible" else valid
        out = self._latents(true, attended, num_masked=0, seed=0)
        encoder_shift, decoder_shift = (
            (None, None) if self.injection is None else self.injection(out.context)
        )
        return core.MaskedBatch(
            values, labels, hidden, out.importance * valid, encoder_shift, decoder_shift,
            out.penalty,
        )  # fmt: skip

    def check(
        self, batch: Mapping[str, Mapping[str, Tensor]], vocab_size: int | None = None
    ) -> FirstBatch:
        """Whether a batch of the collator, before its ``Masker``, is what this adapter takes it
        for.
        """
        field = batch[self.value_field]
        genes = batch.get(self.gene_field)
        return check_batch(
            self, ids=None if genes is None else genes["input_ids"],
            values=field["input_ids"].float(), padding_mask=field["attention_mask"],
            vocab_size=vocab_size, special=field.get("special_tokens_mask"),
            mask_value=self.mask_value or None,
        )  # fmt: skip
