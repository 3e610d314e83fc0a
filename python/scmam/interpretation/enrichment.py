"""Over-representation of gene sets among the genes that are hidden most; nothing leaves the
machine.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..errors import ScmamError

COLUMNS = (
    "term",
    "overlap",
    "set_size",
    "p_value",
    "adjusted_p_value",
    "odds_ratio",
    "combined_score",
    "genes",
)


class GeneSetError(ScmamError):
    """A file of gene sets cannot be used, or does not fit the genes of the run."""


def read_gene_sets(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read a GMT file: a set a line, tab-separated: name, description, genes.

    Raises:
        GeneSetError: no such file, no text, empty, or a line that is none of a GMT file; the line
            is named.
    """
    path = Path(path)
    if not path.is_file():
        raise GeneSetError(f"{path}: no such file; give a GMT file of gene sets")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise GeneSetError(
            f"{path}: not a text file; give a GMT file, unpacked where it was compressed"
        ) from error
    sets: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *fields = (field.strip() for field in line.split("\t"))
        genes = tuple(dict.fromkeys(filter(None, fields[1:])))
        if not name or not genes:
            raise GeneSetError(
                f"{path}: line {number}: expected name, description and genes, separated by tabs; got {line.strip()[:60]!r}"
            )
        if name in sets:
            raise GeneSetError(
                f"{path}: line {number}: the set {name!r} is there twice; rename one of them"
            )
        sets[name] = genes
    if not sets:
        raise GeneSetError(f"{path}: holds no gene set; give a GMT file with a set a line")
    return sets


def sets_among(
    sets: Mapping[str, Sequence[str]], genes: Sequence[str], source: str
) -> dict[str, tuple[str, ...]]:
    """The sets with the genes of the run alone; sets that have none of them are left out.

    Raises:
        GeneSetError: not one gene is shared; where it is a matter of upper and lower case, that is
            said.
    """
    known = set(genes)
    kept = {
        name: shared
        for name, members in sets.items()
        if (shared := tuple(gene for gene in members if gene in known))
    }
    if kept:
        return kept
    named = {gene for members in sets.values() for gene in members}
    alike = {gene.upper() for gene in named} & {gene.upper() for gene in known}
    if alike:
        raise GeneSetError(
            f"{source}: shares no gene with the {len(known)} of the run, but {len(alike)} when upper and lower case are not told apart"
            f" ({_some(named)} there, {_some(genes)} here), as with symbols of human and mouse; give gene sets of the right species"
        )
    raise GeneSetError(
        f"{source}: shares no gene with the {len(known)} of the run ({_some(named)} there, {_some(genes)} here); give gene sets with the"
        " same kind of identifiers"
    )


def over_representation(
    tested: Sequence[str], sets: Mapping[str, Sequence[str]], genes: Sequence[str]
) -> pd.DataFrame:
    """Hypergeometric test of every set against some genes, by gseapy, with the genes of the run as
    background.

    Args:
        tested: the genes that are looked at, some of ``genes``.
        sets: of `sets_among`.
        genes: all genes of the run.

    Returns:
        A row a set, by p value: term (name of the set), overlap (its genes among those tested),
        set_size (its genes in the run), p_value (of at least that overlap), adjusted_p_value
        (Benjamini-Hochberg over all sets, those without overlap included), odds_ratio and
        combined_score (as gseapy has them; nan without overlap), genes (of the overlap, separated
        by semicolons).
    """
    from scipy.stats import false_discovery_control

    found = _gseapy(tested, sets, genes)
    rows = [_row(name, len(members), found.get(name)) for name, members in sets.items()]
    table = pd.DataFrame(
        rows, columns=[column for column in COLUMNS if column != "adjusted_p_value"]
    )
    table.insert(
        COLUMNS.index("adjusted_p_value"),
        "adjusted_p_value",
        false_discovery_control(table["p_value"]),
    )
    return table.sort_values(["p_value", "term"], ignore_index=True)


def _gseapy(
    tested: Sequence[str], sets: Mapping[str, Sequence[str]], genes: Sequence[str]
) -> dict[str, dict]:
    """gseapy's row of each set that has an overlap; it leaves the others out."""
    import gseapy

    wanted = set(tested)
    if not any(gene in wanted for members in sets.values() for gene in members):
        return {}
    # gseapy changes names on its way, to upper case or to integers, by what most of them look like;
    # it leaves these alone.
    alias = {gene: f"G{index}" for index, gene in enumerate(genes)}
    gene_of = {short: gene for gene, short in alias.items()}
    result = gseapy.enrich(
        [alias[gene] for gene in tested],
        {name: [alias[gene] for gene in members] for name, members in sets.items()},
        background=list(gene_of),
        outdir=None,
        no_plot=True,
    ).results
    rows = {row["Term"]: row for row in result.to_dict("records")}
    return {
        name: {**row, "Genes": sorted(gene_of[short] for short in row["Genes"].split(";"))}
        for name, row in rows.items()
    }


def _row(name: str, size: int, found: Mapping | None) -> tuple:
    """A row without its adjusted p value; without overlap the p value is 1."""
    if found is None:
        return name, 0, size, 1.0, math.nan, math.nan, ""
    genes = found["Genes"]
    return (
        name,
        len(genes),
        size,
        found["P-value"],
        found["Odds Ratio"],
        found["Combined Score"],
        ";".join(genes),
    )


def _some(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names)[:3])
