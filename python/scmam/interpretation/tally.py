"""Draws masks of every cell and counts what they hide, gene by gene and cell type by cell type."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mam_kernels.randomness import substream
from mam_kernels.strategies import Draw, Masking

from ..objective import Pretraining
from ..sequences import expression
from .entropy import Entropy, entropy_of, selecting_latents

if TYPE_CHECKING:
    from ..data import Cells

BATCH_VALUES = 2**22
"""Values of a batch, 16 MiB in float32: large enough that a call's fixed cost is lost in it, small
enough for any machine.
"""

BATCH_CELLS = 512

ENTROPY_DRAWS = 4
"""Draws whose entropy is computed: it costs more than the mask itself, and differs between draws by
the latents drawn for them alone.
"""


@dataclass(frozen=True)
class Draws:
    """Which masks are drawn: ``number`` for every cell, from bits that no training step used.

    The steps go on where training ended, so that a strategy that follows a schedule hides as it did
    in the end.
    """

    number: int
    seed: int
    first_step: int

    def of(self, pretraining: Pretraining, values: Tensor, cell_ids: Tensor) -> Iterator[Masking]:
        """The masks of a batch (B, G), one after the other."""
        seed, cells = substream(self.seed, "interpretation"), pretraining.cells(values)
        for number in range(self.number):
            step = (self.first_step + number) % 2**32
            yield pretraining.strategy(cells, Draw(seed, step, cell_ids))


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
    hidden_by_draw: Tensor  # (draws, G) cells in which the gene is hidden
    entropy: Entropy

    @property
    def masks(self) -> int:
        """How many masks were drawn."""
        return int(self.cells.sum()) * self.draws


def batch_cells(num_genes: int, trained_with: int, embeds: bool) -> int:
    """How many cells go into a batch.

    Latents that attend to embeddings need as much memory per gene as a training step, so the batch
    of the training is known to fit.
    """
    return (
        trained_with
        if embeds
        else max(trained_with, min(BATCH_CELLS, BATCH_VALUES // max(1, num_genes)))
    )


@torch.no_grad()
def count_masks(
    pretraining: Pretraining,
    cells: "Cells",
    draws: Draws,
    *,
    rows: int,
    split: bool,
    device: torch.device,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Tally:
    """Draw masks of all cells and sum up what they hide.

    The cells are read once, ``rows`` at a time, and all their masks are drawn then: memory is that
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
    import numpy as np

    groups, genes = len(cells.classes) + 1, cells.num_genes
    sums = torch.zeros(5, groups, genes, dtype=torch.float64, device=device)
    by_draw = torch.zeros(draws.number, genes, dtype=torch.float64, device=device)
    number = torch.zeros(groups, dtype=torch.float64, device=device)
    entropy, latents = Entropy.none(device), selecting_latents(pretraining.strategy)
    for start in watch(range(0, cells.num_cells, rows)):
        indices = np.arange(start, min(start + rows, cells.num_cells))
        batch = cells.batch(indices).to(device)
        values = expression(batch.counts, batch.depth, pretraining.transform)
        codes = torch.from_numpy(cells.codes[indices]).to(device)
        member = torch.nn.functional.one_hot(codes % groups, groups).double()  # -1 is the last row
        hidden = torch.zeros_like(values)
        for draw, masking in enumerate(draws.of(pretraining, values, batch.cell_ids)):
            mask = masking.mask.float()
            hidden += mask
            by_draw[draw] += mask.sum(dim=0)
            if draw < ENTROPY_DRAWS:
                entropy += entropy_of(masking, latents)
        there = values != 0
        chance = uniform_chance(hidden, there, split) / draws.number
        for total, part in zip(sums, (values, there, hidden, hidden * there, chance), strict=True):
            total.addmm_(member.T, part.double())
        number += member.sum(dim=0)
    return Tally(draws.number, number.cpu(), *sums.cpu(), by_draw.cpu(), entropy)


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
    share = [
        (hidden * part).sum(dim=1, keepdim=True) / part.sum(dim=1, keepdim=True).clamp(min=1)
        for part in (there, ~there)
    ]
    return torch.where(there, *share)
