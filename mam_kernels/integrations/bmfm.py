"""BMFM-RNA-style pretraining: a masking strategy that gives a probability for each token
(BiomedSciAI/biomed-multi-omic, ``Masker``).

Their collator asks the strategy for probabilities, and hides. The context comes later, from the
batch that the collator made.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..masking import MultinomialAttentionMasking
from . import core


class LatentMaskingStrategy(core.MaskingStep):
    """A masking strategy for their data module (``masking_strategy=``), by the latents' attention
    to values.

    Args:
        masker: the engine's module, for scalar values (``input_dim=None``).
        embed_dim: ``hidden_size``.
        value_field: the field whose ``input_ids`` are values.
        use_for_validation: whether validation is masked by it too.
        **options: of ``MaskingStep``: scheme ("encoder"), seed and more; what stands at hidden
            tokens is their collator's affair.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        embed_dim: int,
        *,
        value_field: str = "expressions",
        use_for_validation: bool = False,
        **options: Any,
    ) -> None:
        if masker.input_dim is not None:
            raise ValueError(
                f"masker: expected input_dim=None, since it attends to values; got input_dim={masker.input_dim}"
            )
        super().__init__(masker, mask_value=0, embed_dim=embed_dim, **options)
        self.value_field, self.use_for_validation = value_field, use_for_validation

    @torch.no_grad()
    def get_mask_probs(self, batch: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The probability of each token of being hidden.

        Args:
            batch: of the collator: ``batch[value_field]`` with ``input_ids``, ``attention_mask``
                and ``special_tokens_mask``, each (B, L).

        Returns:
            (B, L) float32 on the device of the batch, 0 at padding and special tokens;
            ``mask_ratio`` of a cell's genes are expected to be hidden. Their ``Masker`` rescales
            all to its ``change_ratio``.
        """
        field = batch[self.value_field]
        values = field["input_ids"].to(self.device, torch.float32)
        real = core.real_tokens(
            "attention_mask", field["attention_mask"].to(self.device), values, true_means="token"
        )
        valid = real & ~field["special_tokens_mask"].to(self.device).bool()
        masking = self.select(values, valid, None, self._draw(values, None, None, None))
        weight = (masking.importance + self.masker.eps) ** (1 / self.masker.temperature) * valid
        expected = self.masker.mask_ratio * valid.sum(dim=1, keepdim=True)
        probability = (
            weight
            / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
            * expected
        )
        return probability.clamp(max=1.0).to(field["input_ids"].device)

    def forward(
        self,
        values: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        special_tokens: Tensor | None = None,
    ) -> core.MaskedBatch:
        """The context of a batch that their collator has masked.

        Args:
            values: (B, L), the value field of the collator's ``input_ids``: hidden ones hold the
                mask value.
            labels: (B, L), of the same field: true values where hidden, -100 elsewhere.
            attention_mask: (B, L), 1 = token.
            special_tokens: (B, L) bool, True = special; None: what is negative and not hidden, as
                special tokens of a continuous field are.
        """
        hidden = labels != self.ignore_value
        true = torch.where(hidden, labels, values).float()
        core.require_values("values", true, self.device)
        special = true < 0 if special_tokens is None else special_tokens.bool()
        valid = (
            core.real_tokens("attention_mask", attention_mask, true, true_means="token") & ~special
        )
        attended = valid & ~hidden if self.masker.context_from == "visible" else valid
        out = self.masker(true, attended, num_masked=0, seed=0)
        shifts = (None, None) if self.injection is None else self.injection(out.context)
        return core.MaskedBatch(
            values, labels, hidden, out.importance * valid, *shifts, out.penalty
        )
