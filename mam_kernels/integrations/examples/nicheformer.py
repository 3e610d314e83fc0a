"""Nicheformer: their LightningModule with both steps reading our masks."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ..core import MaskedBatch
from ..nicheformer import NicheformerMasking, nicheformer_with_masking
from . import cells
from .loading import require_source, sources_on_path, submodule
from .training import Example, Step, masker

FIRST_GENE, WIDTH = 30, 32
N_TOKENS = cells.GENES + FIRST_GENE


def code(source: Path | None) -> SimpleNamespace:
    """Their class, of a checkout's ``src`` folder."""
    with sources_on_path(require_source("Nicheformer", source) / "src"):
        module = submodule("nicheformer.models._nicheformer")
    return SimpleNamespace(Nicheformer=module.Nicheformer)


def example(theirs: SimpleNamespace) -> Example:
    """As their pretraining: species, modality and assay, then genes by rank, 0 as padding."""
    tokens = cells.ranked(FIRST_GENE, [5, 3, 9], [], 0).int()
    torch.manual_seed(0)
    model = nicheformer_with_masking(theirs.Nicheformer)(
        dim_model=WIDTH, nheads=2, dim_feedforward=64, nlayers=1, dropout=0.0, batch_first=True,
        masking_p=0.3, n_tokens=N_TOKENS, context_length=tokens.shape[1], lr=1e-3, warmup=10,
        batch_size=32, max_epochs=1,
    )  # fmt: skip
    model.add_masking(
        NicheformerMasking(masker(WIDTH), WIDTH, n_tokens=N_TOKENS, seed=0), encoder="encoder"
    )
    masking = model.masking
    model.log = lambda *arguments, **options: None  # no trainer is attached
    model.log_dict = lambda *arguments, **options: None

    def step(rows: Tensor) -> Step:
        batch = {"X": tokens[rows]}
        kept: dict[str, MaskedBatch] = {}
        mask_batch = type(model).mask_batch

        def keeping(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], MaskedBatch]:
            masked_batch, kept["masked"] = mask_batch(model, given)
            return masked_batch, kept["masked"]

        model.mask_batch = keeping
        run = model.training_step if model.training else model.validation_step
        loss = run(batch, 0)
        del model.mask_batch
        masked = kept["masked"]
        if model.training:
            loss = loss - model._penalty * masked.penalty
        return Step(loss, masked)

    genes = tokens >= FIRST_GENE
    return Example(
        model, masking, step, genes, torch.floor(genes.sum(dim=1).double() * 0.3),
        masking.check({"X": tokens}), lr=1e-2,
    )  # fmt: skip
