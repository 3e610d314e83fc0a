"""What the masks and the latents are like, in a few numbers: ``latents.json``."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ..objective import Pretraining
from .attention import Overlap, Slopes, overlap_of, slopes_of
from .collapse import collapse_warnings
from .entropy import selecting_latents
from .tables import correlation
from .tally import Tally

if TYPE_CHECKING:
    from ..data import Cells


@dataclass(frozen=True)
class Attention:
    """What the latents look at."""

    latents: int
    heads: int
    decide_masks: (
        bool  # False: they only give a context, and another strategy decides what is hidden
    )
    overlap: Overlap | None  # None: there is a single latent, or no cell has genes
    slopes: Slopes | None  # None: the latents attend to embeddings


@dataclass(frozen=True)
class Summary:
    """Saved as ``latents.json``; None is null there."""

    strategy: str
    transform: str  # what expression is
    cells: int
    genes: int
    draws: int  # masks of each cell
    masks: int
    hidden: float  # share of the positions
    hidden_nonzero: float | None  # of those that are not zero
    hidden_zero: float | None
    spearman: (
        float | None
    )  # of a gene's hidden rate and its mean expression; None: one of them does not vary
    spearman_by_type: dict[str, float | None]
    entropy: (
        float | None
        # of the masking distribution, over its maximum, mean over cells; 1 = uniform; None: nothing is
        # hidden
    )
    effective_positions: (
        float | None
    )  # exp(entropy), mean over cells; None: the strategy draws uniformly, or nothing
    drawable_positions: float | None  # how many there are to draw from, mean over cells; likewise
    attention: Attention | None
    attention_missing: str | None  # why there is none
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(
    pretraining: Pretraining,
    strategy: str,
    cells: "Cells",
    tally: Tally,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    notes: tuple[str, ...],
    device: torch.device,
    *,
    decayed: bool,
) -> Summary:
    """The summary of a run.

    Args:
        pretraining: on ``device``.
        strategy: name of its masking strategy.
        cells: the cells that ``tally`` is of.
        tally: what the masks hide.
        tables: frequencies, and frequencies by type.
        notes: sentences to be kept with the summary.
        device: where the latents' attention is computed.
        decayed: whether the latents were trained with a weight decay.
    """
    table, by_type = tables
    attention = _attention(pretraining, cells, device)
    share, effective, drawable = tally.entropy.means() or (
        1.0 if bool(tally.hidden.any()) else None,
        None,
        None,
    )
    overlap = (
        None
        if attention is None or not attention.decide_masks or attention.overlap is None
        else attention.overlap.cosine
    )
    return Summary(
        strategy=strategy,
        transform=pretraining.transform,
        cells=cells.num_cells,
        genes=cells.num_genes,
        draws=tally.draws,
        masks=tally.masks,
        hidden=float(table["hidden"].mean()),
        **_hidden_shares(tally),
        spearman=correlation(table["mean_expression"], table["hidden"]),
        spearman_by_type={
            name: correlation(part["mean_expression"], part["hidden"])
            for name, part in by_type.groupby("cell_type")
        },
        entropy=share,
        effective_positions=effective,
        drawable_positions=drawable,
        attention=attention,
        attention_missing=None if attention is not None else f"strategy {strategy} has no latents",
        warnings=tuple(
            collapse_warnings(strategy, share, overlap, attention.latents, decayed=decayed)
        )
        if attention is not None and attention.decide_masks
        else (),
        notes=notes,
    )


def _attention(pretraining: Pretraining, cells: "Cells", device: torch.device) -> Attention | None:
    latents = pretraining.strategy.latents
    if latents is None:
        return None
    return Attention(
        latents=latents.num_latents,
        heads=latents.num_heads,
        decide_masks=selecting_latents(pretraining.strategy) is not None,
        overlap=overlap_of(pretraining, cells, device),
        slopes=slopes_of(latents),
    )


def _hidden_shares(tally: Tally) -> dict[str, float | None]:
    there, every = float(tally.detected.sum()), float(tally.cells.sum()) * tally.detected.shape[1]
    hidden, both = (
        float(tally.hidden.sum()) / tally.draws,
        float(tally.hidden_nonzero.sum()) / tally.draws,
    )
    return {
        "hidden_nonzero": both / there if there else None,
        "hidden_zero": (hidden - both) / (every - there) if every > there else None,
    }
