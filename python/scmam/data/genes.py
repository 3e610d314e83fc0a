"""Genes: their names, and which of them are taken."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData
from pandas import DataFrame, Index

from ..errors import CellsError, listing
from .counts import PER_10K
from .rows import Rows

SMALLEST_SHARE, FEWEST = 0.1, 50  # of a vocabulary's genes that have to be in a file
VARIABLE_SAMPLE = 10_000  # cells that variable genes are chosen on at most: bounded memory
MISSING = ("", "nan", "none", "na", "<na>")


def gene_names(var: DataFrame, where: str) -> tuple[str, ...]:
    """The gene names of a table, without blanks around them.

    Raises:
        CellsError: a name is missing, is no line of text, or occurs twice.
    """
    found = [str(name) for name in var.index]
    # Half of a character cannot be encoded, so no file takes it.
    lines = ("".join(name.encode(errors="ignore").decode().splitlines()) for name in found)
    broken = [name for name, line in zip(found, lines, strict=True) if name != line]
    if broken:
        raise CellsError(
            f"{where}: {len(broken)} of {len(found)} gene names are no line of text"
            f" ({broken[0]!r}); give them names without line breaks in .var_names"
        )
    names = tuple(name.strip() for name in found)
    missing = sum(name.lower() in MISSING for name in names)
    if missing:
        raise CellsError(
            f"{where}: {missing} of {len(names)} genes have no name; give them names in"
            " .var_names, or drop them"
        )
    if repeated := [f"{name} {n} times" for name, n in Counter(names).items() if n > 1]:
        raise CellsError(
            f"{where}: {len(repeated)} gene names occur more than once ({listing(repeated, 5)});"
            " add them up or call adata.var_names_make_unique(), and write the file again"
        )
    return names


def numbered(names: tuple[str, ...]) -> bool:
    """Whether the names are only numbers, anndata's default."""
    return all(name.isdigit() for name in names)


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Gene names, one a line; empty lines are skipped.

    Raises:
        CellsError: no such file, not text, empty, or a name that occurs twice.
    """
    path, give = Path(path), "give data.vocabulary a text file with a gene name a line"
    if not path.is_file():
        raise CellsError(f"{path}: no such file; {give}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CellsError(f"{path}: not a text file ({error.reason}); {give}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise CellsError(f"{path}: holds no gene names; {give}")
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise CellsError(
            f"{path}: {len(repeated)} gene names occur more than once ({listing(repeated, 5)});"
            " keep each once"
        )
    return names


def vocabulary_columns(
    vocabulary: tuple[str, ...], names: tuple[str, ...], *, path: Path, where: str, var: DataFrame
) -> tuple[np.ndarray, str]:
    """Where a vocabulary's genes are, and a sentence on how many are there.

    Returns:
        (vocabulary,) int64: column of each gene, -1 where it is missing; and the sentence.

    Raises:
        CellsError: fewer than 10 % of them are there, or fewer than 50 and not all.
    """
    columns = Index(names).get_indexer(vocabulary)
    shared = int(np.count_nonzero(columns >= 0))
    said = f"{shared} of the {len(vocabulary)} genes of {path.name} are in the file"
    if shared == len(vocabulary):
        return columns, f"All {shared} genes of {path.name} are in the file."
    if shared < SMALLEST_SHARE * len(vocabulary) or shared < FEWEST:
        advice = "give a vocabulary of the same species and naming"
        if better := _better_column(vocabulary, var):
            advice = (
                f"its names are in .var[{better!r}]: set adata.var_names to that column and write"
                " the file again"
            )
        raise CellsError(
            f"{where}: only {said} (it has {', '.join(names[:3])}, the vocabulary"
            f" {', '.join(vocabulary[:3])}); {advice}"
        )
    missing = len(vocabulary) - shared
    return columns, f"{said}; the other {missing} are taken to be zero in every cell."


def _better_column(vocabulary: tuple[str, ...], var: DataFrame) -> str | None:
    """A column of .var that holds at least half of a vocabulary."""
    known = set(vocabulary)
    for column in var.columns:
        if len(known.intersection(var[column].astype(str))) >= len(known) / 2:
            return str(column)
    return None


def sampled(cells: int) -> np.ndarray:
    """Positions of as many cells, or of `VARIABLE_SAMPLE` of them, at random but always the same;
    ascending.
    """
    if cells <= VARIABLE_SAMPLE:
        return np.arange(cells)
    return np.sort(np.random.default_rng(0).choice(cells, VARIABLE_SAMPLE, replace=False))


def variable_genes(rows: Rows, count: int, unit: str) -> tuple[np.ndarray, str]:
    """The genes that vary most between cells, by scanpy: by the variance of Pearson residuals
    (Lause et al., Genome Biology 2021), which takes raw counts; by the dispersion of log1p
    ("seurat") where there are only counts per 10k.

    Args:
        rows: counts of the cells that are kept. At most 10 000 of them are read, at random but
            always the same.
        count: how many genes to take; all, where there are no more.
        unit: of the counts.

    Returns:
        (genes,) int64 columns, ascending, and a sentence.
    """
    cells, genes = rows.shape
    if count >= genes:
        return np.arange(genes), f"All {genes} genes are taken: data.num_genes is {count}."
    import scanpy

    on = f", on {VARIABLE_SAMPLE} of the cells drawn at random" if cells > VARIABLE_SAMPLE else ""
    data = AnnData(rows.take(sampled(cells)))
    if unit == PER_10K:
        how, flavor, find = "dispersion of log1p", "seurat", scanpy.pp.highly_variable_genes
        scanpy.pp.log1p(data)
    else:
        how, flavor = "variance of Pearson residuals", "pearson_residuals"
        find = partial(scanpy.experimental.pp.highly_variable_genes, check_values=False)
    table = find(data, n_top_genes=count, flavor=flavor, inplace=False)
    columns = np.flatnonzero(table["highly_variable"].to_numpy())
    taken = f"{len(columns)} of {genes} genes are taken, the most variable ones"
    return columns, f"{taken} (scanpy, {how}{on})."
