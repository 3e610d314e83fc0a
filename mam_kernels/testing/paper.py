"""The masking step as it was published, in plain PyTorch: the baseline of every ratio this project
reports.

Naziri, Asgari, An, Sachlos and Seyyed-Kalantari, "Multinomial Attention Masking", PMLR 333:295-311,
2026: project the tokens, let the latents attend to them with per-head weights, add the weights of a
subset of the latents, and draw the hidden positions of each
cell with one `torch.multinomial`. Nothing here is slowed down: it is the straightforward program,
with torch's own fused operations.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaperOutput(NamedTuple):
    """The output of `mam_kernels.MultinomialAttentionMasking`, computed the published way."""

    mask: Tensor  # (B, L) bool, True = hidden
    importance: Tensor  # (B, L) float32, no gradient
    context: Tensor  # (B, Dz)
    penalty: Tensor  # scalar


class PaperMasking(nn.Module):
    """The published masking step, with the constructor arguments and the state dict of
    `mam_kernels.MultinomialAttentionMasking`.

    Every cell needs a valid token: as published, the results of an empty row are NaN.
    """

    def __init__(
        self,
        input_dim: int | None = None,
        latent_dim: int = 256,
        num_latents: int = 128,
        num_heads: int = 8,
        mask_ratio: float = 0.3,
        latent_fraction: float | None = None,
        eps: float = 1e-8,
    ):
        super().__init__()
        self.input_dim = input_dim
        self.mask_ratio = mask_ratio
        self.num_chosen = max(
            1, int(num_latents * (mask_ratio if latent_fraction is None else latent_fraction))
        )
        self.eps = eps
        self.latents = nn.Parameter(torch.randn(num_latents, latent_dim))
        self.input_proj = nn.Linear(1 if input_dim is None else input_dim, latent_dim)
        self.cross_attention = nn.MultiheadAttention(latent_dim, num_heads, batch_first=True)

    def forward(
        self,
        tokens: Tensor,
        valid: Tensor | None = None,
        num_masked: int | None = None,
        latents: Tensor | None = None,
    ) -> PaperOutput:
        """Mask `tokens`: values (B, L) where `input_dim` is None, else embeddings (B, L,
        input_dim); `valid` is (B, L) bool.

        `num_masked` is the number of hidden positions of every cell (default: the mask ratio of its
        valid positions); `latents` fixes the subset of the latents, which is random otherwise.
        """
        # (B, L, Dz)
        projected = self.input_proj(tokens.unsqueeze(-1) if self.input_dim is None else tokens)
        queries = self.latents.expand(len(tokens), -1, -1)  # (B, N, Dz)
        padding = None if valid is None else ~valid
        # (B, N, Dz), (B, H, N, L)
        attended, weights = self.cross_attention(
            queries,
            projected,
            projected,
            key_padding_mask=padding,
            need_weights=True,
            average_attn_weights=False,
        )
        if latents is None:
            latents = torch.randperm(len(self.latents), device=tokens.device)[: self.num_chosen]
        importance = weights.detach()[:, :, latents].sum(dim=(1, 2)).float()
        return PaperOutput(
            mask=self._draw(importance, valid, num_masked),
            importance=importance,
            context=attended.mean(dim=1),
            penalty=attended.square().sum(dim=(1, 2)).mean(),
        )

    def attend_only(self, tokens: Tensor) -> PaperOutput:
        """Context and penalty alone, by `torch.nn.functional.scaled_dot_product_attention`, which
        returns no weights, so there is no mask.

        This is less than a masking step. Its time is a bound: that of torch's fused attention on
        the same tokens.
        """
        projected = self.input_proj(tokens.unsqueeze(-1) if self.input_dim is None else tokens)
        attention, nothing = self.cross_attention, tokens.new_zeros(len(tokens), 0)
        query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)
        query = F.linear(self.latents, query_weight, query_bias).expand(len(tokens), -1, -1)
        heads = [
            x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for x in (
                query,
                F.linear(projected, key_weight, key_bias),
                F.linear(projected, value_weight, value_bias),
            )
        ]
        attended = attention.out_proj(
            F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        )
        return PaperOutput(
            nothing.bool(), nothing, attended.mean(dim=1), attended.square().sum(dim=(1, 2)).mean()
        )

    def _draw(self, importance: Tensor, valid: Tensor | None, num_masked: int | None) -> Tensor:
        probability = importance + self.eps
        if valid is not None:
            probability = probability * valid
        probability = probability / probability.sum(dim=1, keepdim=True)
        mask = torch.zeros_like(importance, dtype=torch.bool)
        for row, row_probability in enumerate(probability):
            size = len(row_probability) if valid is None else int(valid[row].sum())
            count = math.floor(self.mask_ratio * size) if num_masked is None else num_masked
            if count > 0:
                mask[row, torch.multinomial(row_probability, count, replacement=False)] = True
        return mask
