"""Over-representation of gene sets among the genes that are hidden most; nothing leaves the
machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from ..errors import ScmamError


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
            wanted = "expected name, description and genes, separated by tabs"
            raise GeneSetError(f"{path}: line {number}: {wanted}; got {line.strip()[:60]!r}")
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
    there = " there, ".join(", ".join(sorted(names)[:3]) for names in (named, genes)) + " here"
    alike = {gene.upper() for gene in named} & {gene.upper() for gene in known}
    if alike:
        raise GeneSetError(
            f"{source}: shares no gene with the {len(known)} of the run, but {len(alike)} when"
            f" upper and lower case are not told apart ({there}), as with symbols of human and"
            " mouse; give gene sets of the right species"
        )
    raise GeneSetError(
        f"{source}: shares no gene with the {len(known)} of the run ({there}); give gene sets with"
        " the same kind of identifiers"
    )


def over_representation(
    tested: Sequence[str], sets: Mapping[str, Sequence[str]], genes: Sequence[str]
) -> pd.DataFrame:
    """Hypergeometric test of every set against some genes, with the genes of the run as background.

    Args:
        tested: the genes that are looked at, some of ``genes``.
        sets: of `sets_among`.
        genes: all genes of the run.

    Returns:
        A row a set, by p value. ``term`` is the name of the set, ``overlap`` counts its genes among
        those tested, ``set_size`` its genes in the run, ``genes`` names those of the overlap,
        separated by semicolons. ``p_value`` is that of at least so large an overlap,
        ``adjusted_p_value`` the same by Benjamini and Hochberg over all sets. ``odds_ratio`` has
        half a gene added to each count, and ``combined_score`` is it times -log p; both are nan
        without overlap.
    """
    wanted, number, drawn = set(tested), len(genes), len(tested)
    common = [sorted(wanted.intersection(members)) for members in sets.values()]
    overlap, size = (np.array([len(x) for x in found]) for found in (common, sets.values()))
    p_value = hypergeom.sf(overlap - 1, number, size, drawn)
    neither, others, missed = number - size - drawn + overlap, size - overlap, drawn - overlap
    odds = (overlap + 0.5) * (neither + 0.5) / ((others + 0.5) * (missed + 0.5))
    odds = np.where(overlap > 0, odds, np.nan)
    table = pd.DataFrame(
        {
            "term": list(sets),
            "overlap": overlap,
            "set_size": size,
            "p_value": p_value,
            "adjusted_p_value": false_discovery_control(p_value),
            "odds_ratio": odds,
            "combined_score": -odds * np.log(p_value),
            "genes": [";".join(names) for names in common],
        }
    )
    return table.sort_values(["p_value", "term"], ignore_index=True)
