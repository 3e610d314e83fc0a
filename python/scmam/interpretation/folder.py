"""From a run to its folder ``genes/``: masks are drawn, counted, summarised and pictured."""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..data import Cells
from ..drawing import Drawing
from ..errors import ConfigError
from ..evaluation.folder import with_genes
from ..runs import GENES, Run
from ..settings import Masking
from ..storage import new_folder, writing
from . import figures
from .enrichment import over_representation, read_gene_sets, sets_among
from .examples import Examples, example_masks
from .summary import summarise
from .tables import frequencies, frequencies_by_type, ranking
from .tally import Draws, batch_cells, count_masks

FOLDER = "genes"
TABLES = (
    *("frequencies", "frequencies_by_type", "ranking"),
    *("enrichment", "enrichment_beyond_expression"),
)


@dataclass(frozen=True)
class Interpretation:
    """The masks of a run; the tables as in the documentation of the package."""

    folder: Path
    frequencies: pd.DataFrame
    frequencies_by_type: pd.DataFrame | None  # None: the cells have no types
    ranking: pd.DataFrame
    latents: dict[str, Any]  # as in latents.json; see `summary.Summary`
    examples: Examples
    enrichment: pd.DataFrame | None  # of the genes hidden most; None: no gene sets were given
    enrichment_beyond_expression: pd.DataFrame | None  # of the first genes of the ranking; likewise

    @property
    def warnings(self) -> tuple[str, ...]:
        """Whether the latents collapsed, and what to try."""
        return tuple(self.latents["warnings"])


def interpret(
    run: Run,
    cells: Cells,
    *,
    draws: int = 20,
    gmt: str | Path | None = None,
    top: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Interpretation:
    """Draw masks of every cell with the weights of a run, and summarise them.

    The masks are those of the strategy, before the training adds what its encoder has no room for.
    They are drawn on the device of the run where there is one, else on the CPU, and are the same on
    both. Memory is that of a batch, whatever the number of cells.

    Args:
        run: a finished run.
        cells: with the genes of the run, in any order, and maybe more.
        draws: masks of every cell.
        gmt: a file of gene sets, to be tested for over-representation against the genes of the run;
            no network is used.
        top: how many genes are tested: those hidden most, and those hidden most beyond what their
            expression predicts.
        seed: of the masks; no training step uses the same.
        progress: whether a bar is shown.

    Returns:
        The tables, which are written to ``<run>/genes`` too, in place of what was there; see the
        documentation of the package.

    Raises:
        CellsError: the cells lack genes of the run.
        ConfigError: draws or top are out of range.
        GeneSetError: the file of gene sets cannot be used, or shares no gene with the run.
        RunError: the run cannot be read, or its folder cannot be written to.
    """
    cells = with_genes(cells, run.genes, run.folder, vocabulary=str(run.folder / GENES))
    if draws < 1:
        raise ConfigError(f"draws: expected at least 1 mask of every cell; got {draws}")
    if gmt is not None and not 1 <= top < cells.num_genes:
        wanted = f"fewer genes than the {cells.num_genes} of the run, at least 1"
        raise ConfigError(f"top: expected {wanted}; got {top}")
    sets = None if gmt is None else sets_among(read_gene_sets(gmt), cells.genes, str(gmt))
    device = run.device
    pretraining = run.load(device)
    masking = run.config.masking
    drawn = Draws(draws, seed, int(run.record.get("steps", 0)))
    embeds, split = masking.strategy == "mam-embedding", draws_apart(masking)
    rows = batch_cells(cells.num_genes, run.config.training.batch_size, embeds)
    bar = partial(tqdm, desc="masks", unit="batch", disable=not progress)
    tally = count_masks(pretraining, cells, drawn, rows=rows, split=split, device=device, watch=bar)
    table = frequencies(tally, cells.genes)
    by_type = frequencies_by_type(tally, cells.genes, cells.classes)
    ranked = ranking(table)
    most = (table.nlargest(top, "hidden"), ranked.head(top))
    enriched = [
        None if sets is None else over_representation(part["gene"].tolist(), sets, cells.genes)
        for part in most
    ]
    decayed, notes = run.config.training.decay_of_latents > 0, _notes(cells, by_type, sets)
    tables, strategy = (table, by_type), masking.strategy
    summary = summarise(pretraining, strategy, cells, tally, tables, notes, device, decayed=decayed)
    examples, types = example_masks(pretraining, cells, drawn, device), by_type
    found = Interpretation(
        folder=run.folder / FOLDER,
        frequencies=table,
        frequencies_by_type=None if types.empty else types,
        ranking=ranked,
        latents=dataclasses.asdict(summary),
        examples=examples,
        enrichment=enriched[0],
        enrichment_beyond_expression=enriched[1],
    )
    remedy = "make room, or copy the run elsewhere"
    with writing(found.folder, remedy), new_folder(found.folder) as unfinished:
        _fill(unfinished, found)
    return found


def draws_apart(masking: Masking) -> bool:
    """Whether a strategy draws zeros and non-zeros apart, so that a uniform mask to compare with
    must do the same.
    """
    return masking.zero_ratio is not None or masking.strategy not in ("mam", "uniform", "none")


def _notes(
    cells: Cells, by_type: pd.DataFrame, sets: dict[str, tuple[str, ...]] | None
) -> tuple[str, ...]:
    notes = [f"cells: {cells.source} ({cells.unit})"]
    without = int((cells.codes < 0).sum())
    if by_type.empty:
        notes.append("no cell types: there is no table and no picture by type")
    elif without:
        notes.append(f"{without} cells without a type count in the table of all cells alone")
    if sets is not None:
        shared = len({gene for members in sets.values() for gene in members})
        there = f"{shared} of its {cells.num_genes} genes in all"
        notes.append(f"gene sets: {len(sets)} share a gene with the run, {there}")
    return tuple(notes)


def _fill(folder: Path, found: Interpretation) -> None:
    for name in TABLES:
        if (table := getattr(found, name)) is not None:
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    latents = json.dumps(found.latents, indent=2, ensure_ascii=False) + "\n"
    (folder / "latents.json").write_text(latents, encoding="utf-8")
    np.savez_compressed(folder / "masks.npz", **dataclasses.asdict(found.examples))
    for name, drawing in _drawings(found).items():
        drawing.save_png(folder / f"{name}.png")


def _drawings(found: Interpretation) -> dict[str, Drawing]:
    """The figures of the folder, by name."""
    summary, table, by_type = found.latents, found.frequencies, found.frequencies_by_type
    title, masks, correlation = (summary[name] for name in ("strategy", "masks", "spearman"))
    head, top = f"{title}: {len(table):,} genes, {masks:,} masks", figures.highest(table)
    if correlation is not None:
        head += f"; rank correlation {correlation:+.2f}".replace("-", "\N{MINUS SIGN}")
    drawings = {
        "hidden_by_expression": figures.hidden_by_expression(head, table, masks, top=top),
        "masks": figures.masks(title, dataclasses.asdict(found.examples)),
    }
    if by_type is not None:
        drawings["hidden_by_type"] = figures.hidden_by_type(title, by_type, summary["draws"])
        drawings["specific_genes"] = figures.specific_genes(title, by_type, summary["draws"])
    return drawings
