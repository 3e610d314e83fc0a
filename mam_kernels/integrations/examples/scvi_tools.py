"""scvi-tools: a ``VAE`` whose encoder reads masked counts, with the context in its hidden layer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..checking import check_first_batch
from ..core import PENALTY, MaskingStep
from ..formats import BatchFormat
from ..places import Place
from . import cells
from .training import Example, Step, masker

WIDTH = 32


def code(source: Path | None) -> SimpleNamespace:
    """Their class."""
    from scvi.module import VAE

    return SimpleNamespace(VAE=VAE)


def masked_vae(vae: type) -> type:
    """A subclass of ``scvi.module.VAE`` that trains on masked counts."""

    class MaskedVAE(vae):
        def __init__(self, *args: Any, masking: MaskingStep, **options: Any) -> None:
            super().__init__(*args, **options)
            self.masking = masking

        def _regular_inference(self, x: Tensor, *args: Any, **options: Any) -> dict[str, Any]:
            everywhere = torch.ones_like(x, dtype=torch.bool)
            self.masked = self.masking(x, torch.log1p(x), everywhere)
            with self.masked.injected(Place(self.z_encoder.encoder, output=True, layout="cells")):
                outputs = super()._regular_inference(self.masked.inputs, *args, **options)
            return {**outputs, "library": torch.log(x.sum(1, keepdim=True))}

        def loss(self, *args: Any, **options: Any) -> Any:
            losses = super().loss(*args, **options)
            losses.loss = losses.loss + PENALTY * self.masked.penalty
            return losses

    return MaskedVAE


def example(theirs: SimpleNamespace) -> Example:
    """Counts of all genes; a hidden count is 0 for the encoder."""
    counts = cells.counts()
    torch.manual_seed(0)
    masking = MaskingStep(
        masker(), mask_value=0.0, embed_dim=WIDTH, seed=0, batches=BatchFormat("scvi-tools")
    )
    model = masked_vae(theirs.VAE)(
        cells.GENES, n_hidden=WIDTH, n_latent=8, n_layers=1, dropout_rate=0.0, masking=masking
    )

    def step(rows: Tensor) -> Step:
        one = torch.zeros(len(rows), 1)  # one batch, one label
        tensors = {"X": counts[rows], "batch": one, "labels": one}
        _, _, losses = model(tensors)
        return Step(losses.loss - PENALTY * model.masked.penalty, model.masked)

    everywhere = torch.ones_like(counts, dtype=torch.bool)
    return Example(
        model, masking, step, everywhere, torch.full((len(counts),), int(0.3 * cells.GENES)),
        check_first_batch(values=counts, module=masking),
    )  # fmt: skip
