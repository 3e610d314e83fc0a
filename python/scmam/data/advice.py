"""What the benchmark of maskings says of a file, by how sparse it is (docs/study.md)."""

import numpy as np

from .counts import Found
from .genes import VARIABLE_SAMPLE, variable_genes
from .rows import Rows

GENES = 300
"""The most variable genes, which the benchmark ran on: all genes of two files do not compare."""
SPARSE, DENSE = 0.235, 0.335
"""Shares of non-zeros: of the densest set where hiding fewer zeros was ahead, and of the sparsest
where it was not.
"""


def variable_density(found: Found) -> float:
    """The share of the values of the `GENES` most variable genes that are not zero, over the cells
    that have counts; at most as many cells as choose the genes are read.
    """
    cells = np.flatnonzero(found.sums > 0)
    if len(cells) > VARIABLE_SAMPLE:
        cells = np.sort(np.random.default_rng(0).choice(cells, VARIABLE_SAMPLE, replace=False))
    genes, _ = variable_genes(Rows(found.matrix, cells, None, found.conversion), GENES, found.unit)
    if not len(cells) or not len(genes):
        return 0.0
    rows = Rows(found.matrix, cells, genes, found.conversion)
    return sum(block.nnz for block in rows.blocks()) / (len(cells) * len(genes))


def advised(density: float) -> str:
    """Which masking to begin with, for a `variable_density`, in a sentence or two."""
    if density <= SPARSE:
        said = (
            "Hide few zeros, as the default does: the three sets of the benchmark that are as"
            " sparse gained by it."
        )
    elif density < DENSE:
        said = (
            "The benchmark has no set as sparse as this; compare the arms `uniform-half`, the"
            " default, and `uniform`."
        )
    else:
        said = (
            "Masks over all positions (`--arm uniform`) may serve as well as the default: the two"
            " sets of the benchmark that are as dense did not gain by hiding few zeros."
        )
    return f"{density:.1%} of the values of the {GENES} most variable genes are not zero. {said}"
