"""scFoundation: ``MaeAutobin`` on dense values with two totals behind them."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scfoundation import ScFoundationMasking
from . import cells
from .loading import require_source, sources_on_path
from .training import Example, Step, masker

TOTALS, MASK, PAD = 2, 102, 103
SEQ_LEN = cells.GENES + TOTALS
CONFIG = {
    "n_class": SEQ_LEN, "seq_len": SEQ_LEN, "mask_token_id": MASK, "pad_token_id": PAD,
    "bin_alpha": 1.0, "bin_num": 10, "model": "mae_autobin", "model_type": "mae_autobin",
    "encoder": {"hidden_dim": 32, "depth": 1, "heads": 2, "module_type": "transformer"},
    "decoder": {"hidden_dim": 16, "depth": 1, "heads": 2, "module_type": "transformer"},
}  # fmt: skip


def code(source: Path | None) -> SimpleNamespace:
    """Their classes, of a checkout's ``model`` folder."""
    with sources_on_path(require_source("scFoundation", source) / "model"):
        from pretrainmodels.mae_autobin import MaeAutobin
        from pretrainmodels.transformer import pytorchTransformerModule

    return SimpleNamespace(MaeAutobin=MaeAutobin, pytorchTransformerModule=pytorchTransformerModule)


def example(theirs: SimpleNamespace) -> Example:
    """As published: 30 % of the non-zeros and 3 % of the zeros, the context before
    ``decoder_embed``.
    """
    total = torch.log10(cells.counts().sum(dim=1, keepdim=True))
    values = torch.cat([cells.values(), total, total], dim=1)
    torch.manual_seed(0)
    model = theirs.MaeAutobin(
        num_tokens=SEQ_LEN, max_seq_len=SEQ_LEN, embed_dim=32, decoder_embed_dim=16, bin_alpha=1.0,
        bin_num=10, pad_token_id=PAD, mask_token_id=MASK,
    )  # fmt: skip
    options = {"max_seq_len": SEQ_LEN, "depth": 1, "heads": 2}
    model.encoder = theirs.pytorchTransformerModule(dim=32, **options)
    model.decoder = theirs.pytorchTransformerModule(dim=16, **options)
    masking = ScFoundationMasking(
        masker(), 32, seq_len=SEQ_LEN, num_genes=cells.GENES, mask_token_id=MASK, pad_token_id=PAD,
        seed=0,
    )  # fmt: skip

    def step(rows: Tensor) -> Step:
        masked, arguments = masking(values[rows], sample_ids=rows)
        with masked.injected(decoder=model.decoder_embed):
            predicted = model(**arguments)
        return Step(F.mse_loss(predicted[masked.mask], values[rows][masked.mask]), masked)

    genes = F.pad(torch.ones_like(cells.values(), dtype=torch.bool), (0, TOTALS))
    nonzero = (cells.values() != 0).sum(dim=1).double()
    expected = torch.floor(nonzero * 0.3) + torch.floor((cells.GENES - nonzero) * 0.03)
    return Example(model, masking, step, genes, expected, masking.check(values))
