"""scBERT: ``PerformerLM`` on the tokens of ``SCDataset``."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scbert import ScBertMasking
from . import cells
from .loading import require_source, sources_on_path
from .training import Example, Step, masker

BINS, WIDTH = 5, 32


def code(source: Path | None) -> SimpleNamespace:
    """Their class, of a checkout."""
    with sources_on_path(require_source("scBERT", source)):
        from performer_pytorch import PerformerLM

    return SimpleNamespace(PerformerLM=PerformerLM)


def example(theirs: SimpleNamespace) -> Example:
    """As their pretraining: bins of log2 values, 90 % of what is hidden behind the mask token."""
    data = torch.log2(1 + cells.counts()).clamp(max=BINS).long()
    data = F.pad(data, (0, 1))  # as SCDataset ends each row
    torch.manual_seed(0)
    model = theirs.PerformerLM(
        num_tokens=BINS + 2, dim=WIDTH, depth=1, max_seq_len=cells.GENES + 1, heads=2,
        local_attn_heads=0, g2v_position_emb=False,
    )  # fmt: skip
    masking = ScBertMasking(masker(), WIDTH, seed=0)

    def step(rows: Tensor) -> Step:
        masked = masking(data[rows], sample_ids=rows)
        with masked.injected(model.performer):
            logits = model(masked.inputs)
        return Step(masking.mean_loss(logits, masked), masked)

    hideable = data > 0
    expected = torch.floor(hideable.sum(dim=1).double() * 0.3)
    return Example(
        model, masking, step, hideable, expected.clamp(min=1).minimum(hideable.sum(dim=1).double()),
        masking.check(data),
    )  # fmt: skip
