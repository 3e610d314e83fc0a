"""The masks and the latents in a few numbers: ``latents.json``."""

from dataclasses import dataclass

import pandas as pd
import torch

from mam_kernels.strategies import ContextOnly

from ..data import Cells
from ..objective import Pretraining
from .attention import Overlap, Slopes, overlap_of, slopes_of
from .tables import Dispersion, correlation, dispersion
from .tally import EncoderView, Tally

ENTROPY_UNIFORM = 0.999
"""Above this share of the maximal entropy masks count as uniform.

Weights whose standard deviation is ``c`` of their mean have an entropy of about ``log(L) - c^2 /
2``. At .999 and between 700 and 20,000 positions ``c`` is 0.11 to 0.14. With 30 % of the positions
hidden, the chance of being hidden then differs between genes by a tenth of itself: .30 ± .03."""

OVERLAP_ALIKE = 0.99
"""Above this mean cosine similarity latents count as attending alike.

Attention vectors that deviate from a common one by ``c`` of it, each in its own way, have a cosine
of ``1 / (1 + c^2)``. At .99 ``c`` is 0.1, so the choice of latents for a mask changes the weights
by less than a tenth."""

UNDECAYED = (
    "training.masking_weight_decay=0, because under Adam the decay alone takes the slopes to zero"
)
"""The first thing to try where there is a decay."""

_EMBEDDING = "masking.strategy=mam-embedding with masking.zero_ratio=0"
SHARPER = {
    "mam": f"masking.temperature below 1 (0.1), masking.slope_norm=1 or larger, or {_EMBEDDING}",
    "mam-embedding": "masking.temperature below 1 (0.1), or a smaller masking.penalty",
}
"""Settings that make masks sharper, by strategy."""

APART = {
    "mam": f"masking.slope_norm=1 or larger, or {_EMBEDDING}, whose latents see the gene too",
    "mam-embedding": "a larger masking.latent_dim, or a smaller masking.penalty",
}
"""Settings that let latents differ, by strategy. The temperature does not: it acts on their sum."""


@dataclass(frozen=True)
class Attention:
    """Attention of the latents."""

    latents: int
    heads: int
    decide_masks: bool  # False: they only give a context, and another strategy decides the masks
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
    dispersion: Dispersion | None  # None: nothing is hidden
    encoder: EncoderView
    spearman: float | None  # of hidden rate and mean expression; None: one of them does not vary
    spearman_by_type: dict[str, float | None]
    entropy: float | None  # over its maximum, mean over cells; 1 = uniform; None: nothing is hidden
    effective_positions: float | None  # exp(entropy), mean over cells; None: drawn uniformly
    drawable_positions: float | None  # how many there are to draw from, mean over cells; likewise
    attention: Attention | None
    attention_missing: str | None  # why there is none
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def summarise(
    pretraining: Pretraining,
    strategy: str,
    cells: Cells,
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
    attention, entropy = _attention(pretraining, cells, device), tally.entropy
    share = entropy.share if entropy else 1.0 if bool(tally.hidden.any()) else None
    warnings = []
    if attention is not None and attention.decide_masks:
        cosine = attention.overlap.cosine if attention.overlap else None
        warnings = collapse_warnings(strategy, share, cosine, attention.latents, decayed=decayed)
    return Summary(
        strategy=strategy,
        transform=pretraining.transform,
        cells=cells.num_cells,
        genes=cells.num_genes,
        draws=tally.draws,
        masks=tally.masks,
        hidden=float(table["hidden"].mean()),
        **_hidden_shares(tally),
        dispersion=dispersion(tally),
        encoder=tally.encoder,
        spearman=correlation(table["mean_expression"], table["hidden"]),
        spearman_by_type={
            name: correlation(part["mean_expression"], part["hidden"])
            for name, part in by_type.groupby("cell_type")
        },
        entropy=share,
        effective_positions=entropy.effective_positions if entropy else None,
        drawable_positions=entropy.drawable_positions if entropy else None,
        attention=attention,
        attention_missing=None if attention is not None else f"strategy {strategy} has no latents",
        warnings=tuple(warnings),
        notes=notes,
    )


def _attention(pretraining: Pretraining, cells: Cells, device: torch.device) -> Attention | None:
    latents = pretraining.strategy.latents
    if latents is None:
        return None
    return Attention(
        latents=latents.num_latents,
        heads=latents.num_heads,
        decide_masks=not isinstance(pretraining.strategy, ContextOnly),
        overlap=overlap_of(pretraining, cells, device),
        slopes=slopes_of(latents),
    )


def _hidden_shares(tally: Tally) -> dict[str, float | None]:
    there, every = float(tally.detected.sum()), float(tally.cells.sum()) * tally.detected.shape[1]
    hidden, both = (float(x.sum()) / tally.draws for x in (tally.hidden, tally.hidden_nonzero))
    return {
        "hidden_nonzero": both / there if there else None,
        "hidden_zero": (hidden - both) / (every - there) if every > there else None,
    }


def collapse_warnings(
    strategy: str, entropy: float | None, cosine: float | None, latents: int, *, decayed: bool
) -> list[str]:
    """A sentence or two for each kind of collapse, with what to try.

    Args:
        strategy: "mam" or "mam-embedding".
        entropy: of the masking distribution, over its maximum; None where there is none.
        cosine: mean cosine similarity of the latents' attention; None where there is a single
            latent.
        latents: how many there are.
        decayed: whether they were trained with a weight decay.
    """
    warnings = []
    first = f"{UNDECAYED}, or " if decayed else ""
    if entropy is not None and entropy > ENTROPY_UNIFORM:
        warnings.append(
            f"masks are indistinguishable from uniform ones: their distribution has {entropy:.5f}"
            f" of the largest entropy (limit {ENTROPY_UNIFORM}). What the latents learned hardly"
            " decides which genes are hidden, and a difference to uniform masking comes from"
            f" elsewhere, such as the injected context; try {first}{SHARPER[strategy]}"
        )
    if cosine is not None and cosine > OVERLAP_ALIKE:
        warnings.append(
            f"all {latents} latents attend alike: the mean cosine similarity of their attention is"
            f" {cosine:.4f} (limit {OVERLAP_ALIKE}). It hardly matters which of them are drawn for"
            f" a mask; try {first}{APART[strategy]}"
        )
    return warnings
