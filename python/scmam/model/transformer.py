"""Transformer blocks over padded sequences."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, each added to its input.

    Args:
        width: of the tokens; divisible by ``heads``.
        heads: of the attention.
        dropout: of both branches, in training.
        mlp_ratio: hidden units of the perceptron, in widths.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, mlp_ratio: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of width = {width}; got {heads}")
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.ReLU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, tokens: Tensor, attended: Tensor | None = None) -> Tensor:
        """(B, T, width) to the same; ``attended`` (B, T) bool says which tokens may be attended to,
        at least one a row.
        """
        rows, length, width = tokens.shape
        qkv = self.qkv(self.attention_norm(tokens))
        heads = qkv.view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mask = None if attended is None else attended[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        attended_to = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        tokens = tokens + F.dropout(attended_to, self.dropout, self.training)
        return tokens + F.dropout(self.mlp(self.mlp_norm(tokens)), self.dropout, self.training)


def through(
    blocks: Iterable[nn.Module], tokens: Tensor, attended: Tensor | None, *, recompute: bool
) -> Tensor:
    """Tokens through blocks, one after the other; with ``recompute`` only each block's input is
    kept for the backward pass.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, attended, use_reentrant=False)
        else:
            tokens = block(tokens, attended)
    return tokens
