"""The encoder-decoder: tokens in, a prediction for each gene out, and a vector for the cell.

Encoder and decoder divide the genes as in scFoundation (Hao et al., Nature Methods 2024). The
encoder reads visible non-zero genes alone. The decoder reads every gene: its encoder output, a
value that the encoder did not read, a zero or a mask token.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mam_kernels as mam
from mam_kernels.randomness import substream
from mam_kernels.sequences import Sequences, gather

from .embedding import ExpressionEmbedding
from .transformer import Block, through

VISIBLE, ZERO, HIDDEN = range(3)
"""Input of the decoder for a gene: a vector (its encoder output, or the embedding of a value that
the encoder did not read), the token of a zero, or the mask token.
"""


class Encoded(NamedTuple):
    """The encoder's output for a batch."""

    tokens: Tensor  # (B, T, width)
    cell: Tensor  # (B, width): the output of the cell token
    valid: Tensor  # (B, T) bool


class Reconstruction(NamedTuple):
    """Predictions of both heads; ``outputs`` numbers for each."""

    # (B, M) int64: the genes that the decoder predicts; None: all, in their order.
    gene_ids: Tensor | None
    genes: Tensor  # (B, M, outputs), from the decoder
    cell: Tensor  # (B, G, outputs), from the pooled encoder output alone


class Blocks(NamedTuple):
    """The transformer blocks of an encoder or decoder."""

    layers: int
    heads: int
    dropout: float
    mlp_ratio: int
    recompute: bool

    def modules(self, width: int) -> nn.ModuleList:
        """The blocks, of this width."""
        sizes = (width, self.heads, self.dropout, self.mlp_ratio)
        return nn.ModuleList(Block(*sizes) for _ in range(self.layers))


class Encoder(nn.Module):
    """Self-attention over the genes of a cell and a token of the cell, which holds its depth."""

    def __init__(self, width: int, depth: str, blocks: Blocks) -> None:
        super().__init__()
        self.recompute = blocks.recompute
        self.cell = nn.Parameter(torch.zeros(width))
        self.depth = nn.Linear(1, width) if depth == "token" else None
        self.blocks = blocks.modules(width)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.cell, std=width**-0.5)

    def forward(self, tokens: Tensor, valid: Tensor, depth: Tensor) -> Encoded:
        """(B, T, width) tokens, (B, T) valid and (B,) total counts."""
        cell = self.cell.expand(len(tokens), 1, -1)
        if self.depth is not None:
            cell = cell + self.depth(torch.log1p(depth)[:, None, None])
        tokens = torch.cat([cell, tokens], dim=1)
        # The cell token is attended to, so that no row is without a token.
        attended = torch.cat([valid.new_ones(len(valid), 1), valid], dim=1)
        tokens = through(self.blocks, tokens, attended, recompute=self.recompute)
        tokens = self.norm(tokens)
        return Encoded(tokens[:, 1:], tokens[:, 0], valid)


class Decoder(nn.Module):
    """Self-attention over genes, whose tokens hold their identity and their known input."""

    def __init__(
        self, num_genes: int, encoder_width: int, width: int, outputs: int, blocks: Blocks
    ) -> None:
        super().__init__()
        self.recompute = blocks.recompute
        self.gene = nn.Embedding(num_genes, width)
        nn.init.normal_(self.gene.weight, std=width**-0.5)
        self.state = nn.Embedding(3, width)
        nn.init.normal_(self.state.weight, std=width**-0.5)
        self.bridge = nn.Linear(encoder_width, width)
        self.blocks = blocks.modules(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(
        self, cell: Tensor, visible: Tensor, gene_ids: Tensor, state: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Predictions (B, M, outputs).

        Args:
            cell: (B, encoder width), the cell token.
            visible: (B, M, encoder width), what is known where ``state`` is VISIBLE, else 0.
            gene_ids: (B, M) int64.
            state: (B, M) int64, one of VISIBLE, ZERO, HIDDEN.
            shift: (B, 1, encoder width), the injected context, or None. It is added before the
                decoder's own projection, as published.
        """
        if shift is not None:
            visible = visible + shift
        tokens = self.gene(gene_ids) + self.state(state) + self.bridge(visible)
        tokens = torch.cat([self.bridge(cell)[:, None], tokens], dim=1)
        tokens = through(self.blocks, tokens, None, recompute=self.recompute)
        return self.head(self.norm(tokens[:, 1:]))


class CellModel(nn.Module):
    """Encoder, decoder and the two heads that predict expression.

    Args:
        num_genes: ``G``.
        width, heads, encoder_layers: of the encoder.
        decoder_layers: of the decoder, whose width and heads are ``decoder_width`` and
            ``decoder_heads`` (None: the encoder's).
        bins: soft bins of the value embedding.
        max_encoder_tokens: genes of a cell that the encoder reads at most, in training (the excess
            is hidden) and in ``features`` (the largest values are kept). None: all.
        decoder_genes: genes of a cell that the decoder predicts at most: hidden ones first, the
            rest at random. None: all.
        depth: "token": the logarithm of a cell's total count is added to the cell token; "none".
        dropout: in the blocks.
        mlp_ratio: hidden units of their perceptrons, in widths.
        recompute: keep only the input of each block for the backward pass, and compute the rest
            again there.
        outputs: numbers that each head predicts for a gene.
    """

    def __init__(
        self,
        num_genes: int,
        *,
        width: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        bins: int,
        max_encoder_tokens: int | None = None,
        decoder_genes: int | None = None,
        decoder_width: int | None = None,
        decoder_heads: int | None = None,
        depth: str = "token",
        dropout: float = 0.0,
        mlp_ratio: int = 4,
        recompute: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if depth not in ("token", "none"):
            raise ValueError(f"depth: expected token or none; got {depth!r}")
        self.num_genes = num_genes
        self.width = width
        self.decoder_width = decoder_width or width
        self.feature_dim = 2 * width
        self.max_encoder_tokens = max_encoder_tokens
        self.decoder_genes = decoder_genes
        self.outputs = outputs
        self.embedding = ExpressionEmbedding(num_genes, bins, width)
        blocks = Blocks(encoder_layers, heads, dropout, mlp_ratio, recompute)
        self.encoder = Encoder(width, depth, blocks)
        blocks = blocks._replace(layers=decoder_layers, heads=decoder_heads or heads)
        self.decoder = Decoder(num_genes, width, self.decoder_width, outputs, blocks)
        self.cell_query = nn.Linear(self.feature_dim, outputs * width)
        self.gene_bias = nn.Parameter(torch.zeros(num_genes, outputs))

    def encode(self, sequences: Sequences, depth: Tensor, shift: Tensor | None = None) -> Encoded:
        """The encoder's output for sequences (B, T); ``shift`` (B, 1, width) is added to every gene
        token.
        """
        tokens = self.embedding(sequences.gene_ids, sequences.values)
        if shift is not None:
            tokens = tokens + shift
        return self.encoder(tokens, sequences.valid, depth)

    def pool(self, encoded: Encoded) -> Tensor:
        """A cell as a vector (B, feature_dim): the mean over its genes, and the cell token."""
        weight = encoded.valid[..., None].to(encoded.tokens.dtype)
        mean = (encoded.tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return torch.cat([mean, encoded.cell], dim=-1)

    def features(self, values: Tensor, depth: Tensor, shift: Tensor | None = None) -> Tensor:
        """Pooled encoder output (B, feature_dim) of values (B, G), nothing hidden; ``shift`` as in
        `encode`.
        """
        taken = values != 0
        limit = self.max_encoder_tokens
        if limit is not None and limit < self.num_genes:
            largest = values.topk(limit, dim=1).indices
            taken = taken & torch.zeros_like(taken).scatter(1, largest, True)
        return self.pool(self.encode(gather(values, taken), depth, shift))

    def reconstruct(
        self,
        values: Tensor,
        visible: Tensor,
        hidden: Tensor,
        depth: Tensor,
        *,
        encoder_shift: Tensor | None = None,
        decoder_shift: Tensor | None = None,
        gene_ids: Tensor | None = None,
    ) -> Reconstruction:
        """Predict genes from what is visible.

        Args:
            values: (B, G), as corrupted.
            visible: (B, G) bool, True for values that are not zero: what the encoder reads.
            hidden: (B, G) bool: behind a mask token. Other values that are not zero and not visible
                are read by the decoder alone, as the embedding of gene and value.
            depth: (B,).
            encoder_shift, decoder_shift: (B, 1, width), or None.
            gene_ids: (B, M) int64, the genes that the decoder reads and predicts. None: all.
        """
        encoded = self.encode(gather(values, visible), depth, encoder_shift)
        state = torch.where(hidden, HIDDEN, torch.where(values != 0, VISIBLE, ZERO))
        slots = (visible.cumsum(dim=1) - 1).clamp(min=0)
        if gene_ids is None:
            every = torch.arange(self.num_genes, device=values.device).expand(len(values), -1)
        else:
            every, parts = gene_ids, (state, slots, visible, values)
            state, slots, visible, values = (x.gather(1, gene_ids) for x in parts)
        known = visible[..., None]
        places = (slots[..., None] * known).expand(-1, -1, self.width)
        output = encoded.tokens.gather(1, places) * known
        shown = (state == VISIBLE) & ~visible
        embedded = self.embedding(every[shown], values[shown])
        output = output.index_put(shown.nonzero(as_tuple=True), embedded.to(output.dtype))
        bias = self.gene_bias[every]
        genes = self.decoder(encoded.cell, output, every, state, decoder_shift) + bias
        return Reconstruction(gene_ids, genes, self.predict_from_cell(self.pool(encoded)))

    def predict_from_cell(self, features: Tensor) -> Tensor:
        """Every gene (B, G, outputs) from the cell's vector (B, feature_dim) and the gene's
        embedding.
        """
        query = self.cell_query(features).view(len(features), self.outputs, self.width)
        return torch.einsum("bow,gw->bgo", query, self.embedding.gene.weight) + self.gene_bias

    def sample_genes(
        self, hidden: Tensor, cell_ids: Tensor, *, seed: int, step: int
    ) -> Tensor | None:
        """The genes (B, M) that the decoder predicts: hidden ones first, the rest drawn from the
        others; None: all.
        """
        limit = self.decoder_genes
        if limit is None or limit >= self.num_genes:
            return None
        counts = hidden.sum(dim=1).clamp(max=limit)
        seed = substream(seed, "decoder")
        draw = partial(mam.sample_without_replacement, seed=seed, step=step, sample_ids=cell_ids)
        drawn = draw(hidden.float(), counts) | draw((~hidden).float(), limit - counts)
        # Every row draws exactly as many: there are G >= limit genes.
        return drawn.nonzero()[:, 1].view(len(hidden), limit)
