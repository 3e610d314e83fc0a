"""cellarium-ml: its ``Geneformer``, which hides in ``forward``, with a masking of ours there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checking import check_batch
from ..core import PENALTY, MaskingStep
from ..formats import BatchFormat
from . import cells
from .loading import submodule
from .training import Example, Step, masker

PAD, MASK = 0, 1
WIDTH = 32
BATCHES = BatchFormat(
    "cellarium-ml", "input_ids", "attention_mask", "token", (PAD, MASK), pad_id=PAD
)


def code(source: Path | None) -> SimpleNamespace:
    """Their class."""
    module = submodule("cellarium.ml.models.geneformer")
    return SimpleNamespace(Geneformer=module.Geneformer)


def masked_geneformer(geneformer: type) -> type:
    """A subclass of ``cellarium.ml.models.Geneformer`` that trains on our masks."""

    class MaskedGeneformer(geneformer):
        def __init__(self, *args: Any, masking: MaskingStep, **options: Any) -> None:
            super().__init__(*args, **options)
            self.masking = masking

        def forward(self, x_ng: Tensor, var_names_g: Any) -> dict[str, Tensor]:
            input_ids, attention_mask = self.tokenize(x_ng)
            self.masked = self.masking.mask(
                input_ids, embeddings=self.bert.get_input_embeddings()(input_ids), ids=input_ids,
                padding_mask=attention_mask,
            )  # fmt: skip
            with self.masked.injected(self.bert.bert.encoder):
                output = self.bert(
                    input_ids=self.masked.inputs, attention_mask=attention_mask,
                    labels=self.masked.labels,
                )  # fmt: skip
            return {"loss": output.loss + PENALTY * self.masked.penalty}

    return MaskedGeneformer


def example(theirs: SimpleNamespace) -> Example:
    """Genes by rank, without special tokens; 80/10/10."""
    counts = cells.counts()
    names = np.array([f"gene {gene}" for gene in range(cells.GENES)])
    torch.manual_seed(0)
    masking = MaskingStep(
        masker(WIDTH), mask_value=MASK, embed_dim=WIDTH, corruption="80/10/10",
        random_ids=range(2, cells.GENES + 2), seed=0, batches=BATCHES,
    )  # fmt: skip
    model = masked_geneformer(theirs.Geneformer)(
        names, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=cells.GENES, masking=masking,
    )  # fmt: skip
    ids, there = model.tokenize(counts)

    def step(rows: Tensor) -> Step:
        loss = model(counts[rows], names)["loss"]
        return Step(loss - PENALTY * model.masked.penalty, model.masked)

    found = check_batch(masking, ids=ids, padding_mask=there, vocab_size=cells.GENES + 2)
    return Example(model, masking, step, there, torch.floor(there.sum(dim=1).double() * 0.3), found)
