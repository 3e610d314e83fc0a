"""scGPT: ``TransformerModel`` on pairs of gene and value, laid out as by
``tokenize_and_pad_batch``.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scgpt import ScGptMasking
from . import cells
from .loading import sources_on_path, submodule
from .training import Example, Step, masker

PAD, CLS, FIRST_GENE = 0, 1, 3
WIDTH = 32


def code(source: Path | None) -> SimpleNamespace:
    """Their model's class."""
    with sources_on_path(*([] if source is None else [source])):
        return SimpleNamespace(TransformerModel=submodule("scgpt.model.model").TransformerModel)


def example(theirs: SimpleNamespace) -> Example:
    """As their pretraining: masked value prediction, with MVC."""
    genes, target_values = cells.pairs(CLS, PAD, -2, FIRST_GENE)
    torch.manual_seed(0)
    model = theirs.TransformerModel(
        ntoken=cells.GENES + FIRST_GENE, d_model=WIDTH, nhead=2, d_hid=64, nlayers=1,
        vocab={"<pad>": PAD}, dropout=0.0, pad_token="<pad>", pad_value=-2, do_mvc=True,
    )  # fmt: skip
    masking = ScGptMasking(masker(), WIDTH, special_ids=(PAD, CLS, 2), seed=0)

    def step(rows: Tensor) -> Step:
        ids, values = genes[rows], target_values[rows]
        src_key_padding_mask = ids.eq(PAD)
        masked = masking(ids, values, src_key_padding_mask, sample_ids=rows)
        with masked.injected(model.transformer_encoder):
            output = model(ids, masked.inputs, src_key_padding_mask, MVC=True)
        mlm, mvc = (
            F.mse_loss(output[name][masked.mask], values[masked.mask])
            for name in ("mlm_output", "mvc_output")
        )
        return Step(mlm + mvc, masked)

    is_gene = genes >= FIRST_GENE
    return Example(
        model, masking, step, is_gene, torch.floor(is_gene.sum(dim=1).double() * 0.3),
        masking.check(genes, target_values, genes.eq(PAD), vocab_size=cells.GENES + FIRST_GENE),
    )  # fmt: skip
