"""A few cells and their masks, for pictures."""

from dataclasses import dataclass

import numpy as np
import torch

from mam_kernels.entropy import drawing_logits

from ..data import Cells
from ..objective import Pretraining
from ..sequences import expression
from .tally import Draws, draw_masks

EXAMPLES = 6
EXAMPLE_DRAWS = 200
"""Masks behind the hidden rate of a gene of one cell: its standard error is then at most .035."""


@dataclass(frozen=True)
class Examples:
    """``c`` cells; saved as ``masks.npz`` with these names."""

    values: np.ndarray  # (c, G) float32: what the model sees
    mask: np.ndarray  # (c, G) bool: one mask of each, True = hidden
    hidden: np.ndarray  # (c, G) float32: share of masks that hide the gene
    # (c, G) float32: positions are drawn in proportion to this; rows sum to 1; nan where uniform
    importance: np.ndarray
    draws: np.ndarray  # () int64: masks behind `hidden`
    genes: np.ndarray  # (G,) str
    cells: np.ndarray  # (c,) str
    cell_types: np.ndarray  # (c,) str, "" where there is none


@torch.no_grad()
def example_masks(
    pretraining: Pretraining, cells: Cells, draws: Draws, device: torch.device
) -> Examples:
    """The typical cell of each of the largest types, many masks of each."""
    chosen = typical_cells(cells)
    batch = cells.batch(chosen).to(device)
    values = expression(batch.counts, batch.depth, pretraining.transform)
    hidden, importance = torch.zeros_like(values), torch.zeros_like(values)
    later = Draws(EXAMPLE_DRAWS, draws.seed, draws.first_step + draws.number).steps()
    first = draw_masks(pretraining, values, batch.cell_ids, later[0]).mask
    for draw in later:
        masking = draw_masks(pretraining, values, batch.cell_ids, draw)
        hidden += masking.mask
        if masking.importance is None:
            importance += torch.nan
        else:
            logits = drawing_logits(masking.importance, *pretraining.strategy.weighting())
            importance += torch.softmax(logits, dim=1).nan_to_num()
    classes = [cells.classes[code] if code >= 0 else "" for code in cells.codes[chosen]]
    return Examples(
        values=values.cpu().numpy(),
        mask=first.cpu().numpy(),
        hidden=(hidden / EXAMPLE_DRAWS).cpu().numpy(),
        importance=(importance / EXAMPLE_DRAWS).cpu().numpy(),
        draws=np.array(EXAMPLE_DRAWS),
        genes=np.array(cells.genes, dtype=str),
        cells=cells.names[chosen].astype(str),
        cell_types=np.array(classes, dtype=str),
    )


def typical_cells(cells: Cells) -> np.ndarray:
    """Positions of a few cells: of each of the largest types the one of median depth.

    Without types, the cells are spread over the depths.
    """
    sizes = np.bincount(cells.codes[cells.codes >= 0], minlength=len(cells.classes))
    largest = [code for code in np.argsort(-sizes, kind="stable")[:EXAMPLES] if sizes[code]]
    if not largest:
        order = np.argsort(cells.depth, kind="stable")
        return order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(np.int64)]
    members = [np.flatnonzero(cells.codes == code) for code in largest]
    return np.array(
        [part[np.argsort(cells.depth[part], kind="stable")[len(part) // 2]] for part in members]
    )
