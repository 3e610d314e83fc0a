"""CellPLM: ``OmicsFormer``, whose tokens are cells, with a mask module of ours."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import check_first_batch
from ..core import MaskedBatch, MaskingStep
from ..formats import BatchFormat
from ..places import Place
from . import cells
from .loading import submodule
from .training import Example, Step, masker

WIDTH = 32


class MamMask(nn.Module):
    """In the place of their ``MaskBuilder``: hides what a masked batch says."""

    masked: MaskedBatch

    def apply_mask(self, x_dict: dict[str, Any]) -> dict[str, Any]:
        """As theirs: ``masked_x_seq`` for the embedder, ``input_mask`` for the loss."""
        x_dict["masked_x_seq"] = self.masked.inputs.to_sparse()
        x_dict["input_mask"] = self.masked.mask.int()
        return x_dict


def code(source: Path | None) -> SimpleNamespace:
    """Their class."""
    return SimpleNamespace(OmicsFormer=submodule("CellPLM.model.cellformer").OmicsFormer)


def example(theirs: SimpleNamespace) -> Example:
    """Counts of all genes; a hidden count is 0 for the embedder."""
    counts = cells.counts()
    torch.manual_seed(0)
    model = theirs.OmicsFormer(
        gene_list=[f"gene {gene}" for gene in range(cells.GENES)], enc_mod="transformer",
        enc_hid=WIDTH, enc_layers=1, post_latent_dim=16, dec_mod="mlp", dec_hid=WIDTH,
        dec_layers=2, out_dim=cells.GENES, batch_num=1, model_dropout=0.0, enc_head=2,
        latent_mod="ae", pe_type=None, cat_pe=False, mask_node_rate=1.0, mask_feature_rate=0.3,
    )  # fmt: skip
    model.mask_model = MamMask()
    masking = MaskingStep(
        masker(), mask_value=0.0, embed_dim=WIDTH, seed=0, batches=BatchFormat("cellplm")
    )

    def step(rows: Tensor) -> Step:
        x = counts[rows]
        everywhere = torch.ones_like(x, dtype=torch.bool)
        masked = model.mask_model.masked = masking(x, torch.log1p(x), everywhere, sample_ids=rows)
        x_dict = {
            "x_seq": x.to_sparse(), "batch": torch.zeros(len(rows), dtype=torch.int64),
            "gene_mask": torch.ones(cells.GENES, dtype=torch.bool),
        }  # fmt: skip
        with masked.injected(Place(model.encoder, "x_dict", key="h", layout="cells")):
            _, loss = model(x_dict)
        return Step(loss, masked)

    everywhere = torch.ones_like(counts, dtype=torch.bool)
    return Example(
        model, masking, step, everywhere, torch.full((len(counts),), int(0.3 * cells.GENES)),
        check_first_batch(values=counts, module=masking),
    )  # fmt: skip
