"""UCE: ``TransformerModel``, sequence first, as helical ships it; a hidden gene leaves the
sentence.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import check_first_batch
from ..core import MaskingStep
from ..formats import BatchFormat
from ..places import Place
from . import cells
from .loading import sources_on_path, submodule
from .training import Example, Step, masker

PAD, CLS, FIRST_GENE = 0, 1, 3
TOKEN_DIM, WIDTH, OUTPUT = 48, 32, 16


def code(source: Path | None) -> SimpleNamespace:
    """Their class: helical's, or that of a checkout of UCE."""
    if source is not None:
        with sources_on_path(source):
            return SimpleNamespace(TransformerModel=submodule("model").TransformerModel)
    return SimpleNamespace(
        TransformerModel=submodule("helical.models.uce.uce_model").TransformerModel
    )


def example(theirs: SimpleNamespace) -> Example:
    """Genes as fixed embeddings of their proteins; from a cell's embedding it is predicted which of
    the hidden genes, and of genes that it does not express, it does.
    """
    ids, values = cells.pairs(CLS, PAD, 0.0, FIRST_GENE)
    torch.manual_seed(0)
    proteins = nn.Embedding(cells.GENES + FIRST_GENE, TOKEN_DIM).requires_grad_(False)
    uce = theirs.TransformerModel(TOKEN_DIM, WIDTH, 2, 64, 1, OUTPUT, dropout=0.0)
    model = nn.ModuleDict({"uce": uce, "genes": nn.Linear(TOKEN_DIM, OUTPUT)})
    masking = MaskingStep(
        masker(), mask_value=PAD, embed_dim=WIDTH, seed=0,
        batches=BatchFormat("uce", "ids", "mask", "token", (PAD, CLS)),
    )  # fmt: skip

    def step(rows: Tensor) -> Step:
        sentences, there = ids[rows], (ids[rows] != PAD).long()
        masked = masking.mask(
            sentences, values=values[rows], ids=sentences, padding_mask=there, sample_ids=rows
        )
        embedded = F.normalize(proteins(masked.inputs.T), dim=2)  # (L, B, token_dim)
        read = (there.bool() & ~masked.mask).float()  # 1 = token
        with masked.injected(Place(uce.transformer_encoder, layout="sequence_first")):
            _, embedding = uce(embedded, mask=read)
        score = embedding @ model["genes"](proteins.weight[FIRST_GENE:]).T  # (B, genes)
        hidden = torch.zeros(len(rows), cells.GENES + FIRST_GENE).scatter_add(
            1, sentences, masked.mask.float()
        )[:, FIRST_GENE:]
        asked = (hidden > 0) | (cells.values()[rows] == 0)
        return Step(F.binary_cross_entropy_with_logits(score[asked], hidden[asked]), masked)

    genes = ids >= FIRST_GENE
    return Example(
        model, masking, step, genes, torch.floor(genes.sum(dim=1).double() * 0.3),
        check_first_batch(
            ids=ids, values=values, padding_mask=ids != PAD, special_ids=(PAD, CLS), pad_id=PAD,
            vocab_size=cells.GENES + FIRST_GENE, module=masking,
        ),
    )  # fmt: skip
