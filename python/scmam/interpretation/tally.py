"""Draws masks of every cell and counts what they hide, gene by gene and cell type by cell type."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mam_kernels.entropy import drawing_entropy
from mam_kernels.randomness import substream
from mam_kernels.strategies import Draw, Masking

from ..data import Cells
from ..objective import Pretraining
from ..sequences import expression

BATCH_VALUES = 2**22
"""Values of a batch, 16 MiB in float32: the fixed cost of a call is small, and any machine has it.
"""

BATCH_CELLS = 512

SUMMARY_DRAWS = 4
"""Draws of which the entropy and the encoder's view are computed.

They cost more than the mask itself, and differ little between draws.
"""


@dataclass(frozen=True)
class Draws:
    """Which masks are drawn: ``number`` for every cell, from bits that no training step used.

    Steps continue where training ended, so a strategy that follows a schedule hides as at its end.
    """

    number: int
    seed: int
    first_step: int

    def steps(self) -> list[dict[str, int]]:
        """The seed and the step of each draw."""
        seed, steps = substream(self.seed, "interpretation"), range(self.number)
        return [{"seed": seed, "step": (self.first_step + step) % 2**32} for step in steps]


def draw_masks(
    pretraining: Pretraining, values: Tensor, cell_ids: Tensor, draw: dict[str, int]
) -> Masking:
    """The masks of one draw for a batch (B, G)."""
    return pretraining.strategy(pretraining.cells(values), Draw(**draw, sample_ids=cell_ids))


@dataclass(frozen=True)
class Entropy:
    """Of the distribution that masks are drawn from; means over cells and draws."""

    share: float  # of its maximum; 1 = uniform
    effective_positions: float  # exp(entropy)
    drawable_positions: float


@dataclass(frozen=True)
class EncoderView:
    """The input of the encoder during pretraining; means over cells and draws."""

    genes: float  # that it reads of a cell
    nonzero_read: float | None  # share of the non-zero genes that it reads with their true value
    invented: float | None  # share of what it reads that is a random value in place of the true one


@dataclass(frozen=True)
class Tally:
    """Sums over cells and draws; float64, on the CPU.

    ``T`` cell types, and a last row for cells without one.
    """

    draws: int
    cells: Tensor  # (T + 1,)
    expression: Tensor  # (T + 1, G) sum of the transformed values
    detected: Tensor  # (T + 1, G) cells where the gene is not zero
    hidden: Tensor  # (T + 1, G) masks that hide the gene
    hidden_nonzero: Tensor  # (T + 1, G) of those, in cells where it is not zero
    uniform: Tensor  # (T + 1, G) sum over cells of the chance that a uniform mask hides it
    uniform_variance: Tensor  # (T + 1, G) sum over cells of chance * (1 - chance)
    hidden_by_draw: Tensor  # (draws, G) cells in which the gene is hidden
    entropy: Entropy | None  # None: drawn uniformly, or nothing to draw
    encoder: EncoderView

    @property
    def masks(self) -> int:
        """How many masks were drawn."""
        return int(self.cells.sum()) * self.draws


def batch_cells(num_genes: int, trained_with: int, embeds: bool) -> int:
    """How many cells go into a batch.

    Latents that attend to embeddings need as much memory per gene as a training step, so the batch
    of the training is known to fit.
    """
    if embeds:
        return trained_with
    return max(trained_with, min(BATCH_CELLS, BATCH_VALUES // max(1, num_genes)))


@torch.no_grad()
def count_masks(
    pretraining: Pretraining,
    cells: Cells,
    draws: Draws,
    *,
    rows: int,
    split: bool,
    device: torch.device,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Tally:
    """Draw masks of all cells and sum up what they hide.

    The cells are read once, ``rows`` at a time, and all their masks are drawn then. Memory is that
    of a batch and of the sums.

    Args:
        pretraining: on ``device``.
        cells: the cells, over the genes of ``pretraining``.
        draws: the masks of each.
        rows: cells of a batch.
        split: whether the strategy draws zeros and non-zeros apart; the uniform mask that it is
            compared with then does so too.
        device: where everything is computed and summed.
        watch: wraps the iterator over batches, for a progress bar.
    """
    groups, genes = len(cells.classes) + 1, cells.num_genes
    sizes = ((6, groups, genes), (groups,), (draws.number, genes), (4,), (3,))
    sums, number, by_draw, entropy, seen = (
        torch.zeros(size, dtype=torch.float64, device=device) for size in sizes
    )
    for start in watch(range(0, cells.num_cells, rows)):
        indices = np.arange(start, min(start + rows, cells.num_cells))
        batch = cells.batch(indices).to(device)
        values = expression(batch.counts, batch.depth, pretraining.transform)
        codes = torch.from_numpy(cells.codes[indices]).to(device)
        member = torch.nn.functional.one_hot(codes % groups, groups).double()  # -1 is the last row
        hidden = torch.zeros_like(values)
        for place, draw in enumerate(draws.steps()):
            masking = draw_masks(pretraining, values, batch.cell_ids, draw)
            mask = masking.mask.float()
            hidden += mask
            by_draw[place] += mask.sum(dim=0)
            if place < SUMMARY_DRAWS:
                entropy += _entropy(pretraining, masking)
                seen += _seen(pretraining, values, masking.mask, batch.cell_ids, draw)
        there = values != 0
        chance = uniform_chance(hidden, there, split) / draws.number
        parts = (values, there, hidden, hidden * there, chance, chance * (1 - chance))
        for total, part in zip(sums, parts, strict=True):
            total.addmm_(member.T, part.double())
        number += member.sum(dim=0)
    nonzeros = float(sums[1].sum())
    read, kept, invented = (seen / min(draws.number, SUMMARY_DRAWS)).tolist()
    view = EncoderView(
        genes=read / cells.num_cells,
        nonzero_read=kept / nonzeros if nonzeros else None,
        invented=invented / read if read else None,
    )
    means = Entropy(*(entropy[1:] / entropy[0]).tolist()) if entropy[0] else None
    expressed, there, hidden, both, chance, variance = sums.cpu()
    counts = (number.cpu(), expressed, there, hidden, both, chance, variance, by_draw.cpu())
    return Tally(draws.number, *counts, means, view)


def _entropy(pretraining: Pretraining, masking: Masking) -> Tensor:
    """Sums over the masks with a choice: 1, and the parts of `Entropy`; (4,)."""
    if masking.importance is None:
        return masking.mask.new_zeros(4, dtype=torch.float64)
    found = drawing_entropy(masking.importance, *pretraining.strategy.weighting())
    known = found.drawable > 1
    share = torch.where(known, found.entropy / found.drawable.log(), 0.0)
    parts = torch.stack((torch.ones_like(share), share, found.entropy.exp(), found.drawable))
    return (parts * known).sum(dim=1)


def _seen(
    pretraining: Pretraining, values: Tensor, mask: Tensor, cell_ids: Tensor, draw: dict[str, int]
) -> Tensor:
    """Genes that the encoder reads: all, with their true value, with another one; (3,) float64."""
    left = pretraining.hide(values, mask, cell_ids, **draw)
    true = left.visible & (left.corrupted == values)
    read, kept = (part.sum(dtype=torch.float64) for part in (left.visible, true))
    return torch.stack((read, kept, read - kept))


def uniform_chance(hidden: Tensor, there: Tensor, split: bool) -> Tensor:
    """How often a uniform mask that hides as many positions of each cell would hide each of them.

    Args:
        hidden: (B, G) how often each position is hidden.
        there: (B, G) bool, True where the value is not zero.
        split: whether as many of the zeros and as many of the non-zeros are hidden, not only as
            many of all.

    Returns:
        (B, G), with the sums over genes of ``hidden``.
    """
    if not split:
        return hidden.mean(dim=1, keepdim=True).expand_as(hidden)
    of_nonzeros, of_zeros = (
        (hidden * part).sum(dim=1, keepdim=True) / part.sum(dim=1, keepdim=True).clamp(min=1)
        for part in (there, ~there)
    )
    return torch.where(there, of_nonzeros, of_zeros)
