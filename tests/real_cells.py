"""Real cells for the tests of the integrations: scanpy's `pbmc68k_reduced`, as counts and as
frameworks encode them.
"""

from functools import cache

import torch
from scmam.config import load_config
from scmam.data import open_cells
from torch import Tensor, nn

import mam_kernels as mam

PAD, MASK, CLS, EOS = range(4)  # the special tokens of Geneformer's second vocabulary
SPECIAL = (PAD, MASK, CLS, EOS)


@cache
def counts(num_genes: int = 100, num_cells: int = 128) -> Tensor:
    """(cells, genes) float32 raw counts of the most variable genes, of cells that have some."""
    cells = open_cells(
        load_config(None, {"data.genes": "variable", "data.num_genes": num_genes}).data
    )
    dense = torch.from_numpy(cells.counts.take(range(cells.num_cells)).toarray())
    return dense[(dense > 0).sum(dim=1) >= 10][:num_cells]


@cache
def rank_encoded() -> list[list[int]]:
    """Each cell as Geneformer encodes it: genes from the highest expression down, relative to the
    gene's mean, between <cls> and <eos>.
    """
    relative = counts() / counts().sum(dim=0).clamp(min=1)
    return [
        [CLS, *(row.argsort(descending=True)[: int((row > 0).sum())] + len(SPECIAL)).tolist(), EOS]
        for row in relative
    ]


def small_masker(
    input_dim: int | None = None, **options: object
) -> mam.MultinomialAttentionMasking:
    """The engine's module with few latents."""
    return mam.MultinomialAttentionMasking(
        input_dim,
        **{"latent_dim": 16, "num_latents": 8, "num_heads": 2, "mask_ratio": 0.3} | options,
    )


def encoder(width: int = 32, layers: int = 1, heads: int = 2) -> nn.TransformerEncoder:
    """Layers as scGPT and Nicheformer have them, without dropout."""
    layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def sequences(special_first: int, pad_id: int, pad_value: float) -> tuple[Tensor, Tensor]:
    """Each cell's non-zero genes behind a first special token, as scGPT has them: gene ids (B, L)
    int64 and log values (B, L), padded.

    Genes have the ids from 3 on; the first token has the value 0.
    """
    rows = [row.nonzero()[:, 0] for row in counts()]
    longest = 1 + max(map(len, rows))
    gene_ids = torch.full((len(rows), longest), pad_id)
    values = torch.full((len(rows), longest), float(pad_value))
    gene_ids[:, 0], values[:, 0] = special_first, 0.0
    for cell, genes in enumerate(rows):
        gene_ids[cell, 1 : 1 + len(genes)] = genes + 3
        values[cell, 1 : 1 + len(genes)] = torch.log1p(counts()[cell, genes])
    return gene_ids, values
