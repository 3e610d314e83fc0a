"""Trains an example, and says what was found."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...masking import MultinomialAttentionMasking
from ..checking import Finding, FirstBatch
from ..core import PENALTY, MaskedBatch, MaskingStep

STEPS, BATCH = 20, 32


class Step(NamedTuple):
    """One training step of an example."""

    loss: Tensor  # of the framework, without the penalty
    masked: MaskedBatch


class Example(NamedTuple):
    """A framework's model with a masking, and what is to be found when it is trained."""

    model: nn.Module
    masking: MaskingStep
    step: Callable[[Tensor], Step]  # of the cells with these indices
    genes: Tensor  # (cells, L) bool, the positions that may be hidden
    expected: Tensor  # (cells,) how many of them are hidden
    first_batch: FirstBatch
    exact: bool = True  # whether as many are hidden in each cell, not on average alone
    cells: int = 128
    lr: float = 3e-3


def masker(input_dim: int | None = None, **options: Any) -> MultinomialAttentionMasking:
    """The engine's module with few latents."""
    sizes: dict[str, Any] = {"latent_dim": 16, "num_latents": 8, "num_heads": 2, "mask_ratio": 0.3}
    return MultinomialAttentionMasking(input_dim, **{**sizes, **options})


def train(example: Example, steps: int = STEPS) -> FirstBatch:
    """Train, and look at each step.

    Returns:
        Findings: that the first batch is right, the loss falls at the same masks, each step's
        gradient reaches the latents, only genes are hidden, as many as asked for, and what stands
        at hidden positions and elsewhere is what should.
    """
    model, masking = example.model, example.masking
    optimizer = torch.optim.Adam(masking.parameter_groups(model, example.lr, masking_lr=1e-3))
    generator = torch.Generator().manual_seed(0)
    if masking.masker is None:
        raise ValueError("masking: expected a strategy with latents; got one without")
    before, latents, astray, counts = _evaluated(example), [], 0, []
    contents, parameter = _Contents(), masking.masker.latents
    for step in range(steps):
        cells = torch.randperm(example.cells, generator=generator)[:BATCH]
        torch.manual_seed(step)
        model.train(), masking.train()
        loss, masked = example.step(cells)
        optimizer.zero_grad()
        (loss + PENALTY * masked.penalty).backward()
        gradient = parameter.grad
        latents.append(gradient is not None and bool(gradient.abs().max() > 0))
        optimizer.step()
        genes = example.genes[cells][:, : masked.mask.shape[1]]
        astray += int((masked.mask & ~genes).sum())
        counts.append((masked.mask.sum(dim=1), example.expected[cells]))
        contents.look(masking, masked)
    after = _evaluated(example)
    return FirstBatch((
        *example.first_batch.findings,
        Finding(
            after < before, "loss", f"{before:.4g} before {steps} steps, {after:.4g} after them"
        ),
        Finding(all(latents), "latents", f"{sum(latents)} of {steps} steps gave them a gradient"),
        Finding(astray == 0, "never hidden", f"{astray} special tokens or padded positions hidden"),
        _share(counts, example.exact),
        *contents.findings(),
    ))  # fmt: skip


def _evaluated(example: Example) -> float:
    """The mean loss over all cells, at the masks of step 0."""
    example.model.eval(), example.masking.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        losses = [
            float(example.step(cells).loss) for cells in torch.arange(example.cells).split(BATCH)
        ]
    return sum(losses) / len(losses)


def _share(counts: list[tuple[Tensor, Tensor]], exact: bool) -> Finding:
    hidden, asked = (torch.cat(parts).double() for parts in zip(*counts, strict=True))
    text = f"{int(hidden.sum())} positions hidden, {asked.sum():.0f} asked for"
    if exact:
        return Finding(bool((hidden == asked).all()), "hidden share", text + ", in each cell alike")
    # of independent draws, within 5.5 standard deviations: exceeded by chance once in 2e7
    near = abs(float(hidden.sum() - asked.sum())) <= 5.5 * math.sqrt(float(asked.sum()))
    return Finding(near, "hidden share", text)


class _Contents:
    """What stands at hidden positions, over the steps."""

    def __init__(self) -> None:
        self.hidden = self.token = self.changed_elsewhere = 0
        self.wanted: tuple[float, float] = (1.0, 0.0)

    def look(self, masking: MaskingStep, masked: MaskedBatch) -> None:
        self.wanted = masking.shares
        self.hidden += int(masked.mask.sum())
        self.token += int((masked.mask & (masked.inputs == masking.mask_value)).sum())
        ignored = masked.labels == masking.ignore_value
        self.changed_elsewhere += int((~masked.mask & ~ignored).sum())

    def findings(self) -> list[Finding]:
        share, wanted = self.token / max(1, self.hidden), self.wanted[0]
        room = 5.5 * math.sqrt(max(wanted * (1 - wanted), 0) / max(1, self.hidden)) + 1e-9
        text = f"{share:.3f} of the hidden positions hold the mask value, {wanted:g} asked for"
        labels = f"{self.changed_elsewhere} positions predicted that are not hidden"
        return [
            Finding(abs(share - wanted) <= room, "mask value", text),
            Finding(self.changed_elsewhere == 0, "labels", labels),
        ]
