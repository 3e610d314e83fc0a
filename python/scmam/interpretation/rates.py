"""How often a trained strategy hides each gene, as weights that hide it as often again."""

import torch
from torch import Tensor

from ..data import Cells
from ..gene_knowledge import permuted
from ..runs import Run
from .tally import Draws, batch_cells, count_masks

DRAWS = 4  # masks of each cell


def race_weights(run: Run, cells: Cells, *, permute: int | None = None) -> Tensor:
    """(G,) float32 weights ``-log(1 - p)``, with ``p`` the share of the cells with a non-zero value
    of the gene in which a finished run hides it: in a race of exponentials at these rates,
    positions are hidden about as often.

    Args:
        run: of a strategy that hides something.
        cells: over the genes of the run.
        permute: a seed: the weights are exchanged at random among genes of about equal mean. None:
            they are not.
    """
    config = run.config
    pretraining = run.load()
    rows = batch_cells(
        cells.num_genes, config.training.batch_size, config.masking.strategy == "mam-embedding"
    )
    draws = Draws(DRAWS, config.training.seed, config.training.steps)
    tally = count_masks(
        pretraining, cells, draws, rows=rows, split=True, device=torch.device("cpu")
    )
    detected, hidden = tally.detected.sum(dim=0), tally.hidden_nonzero.sum(dim=0)
    rate = hidden / (DRAWS * detected).clamp(min=1)
    weights = -torch.log1p(-rate.clamp(min=1e-4, max=0.999)).float()
    if permute is None:
        return weights
    return permuted(weights, tally.expression.sum(dim=0), permute)
