"""Cells from AnnData: which values are the counts, which cells and genes are taken, folds, and
batches for training.
"""

from .adapters import cell_batch
from .cells import Cells
from .inspection import Inspection, inspect
from .loader import CellLoader
from .reading import from_anndata, open_cells
from .splits import development_split, folds, holdout, stratified

__all__ = [
    "CellLoader",
    "Cells",
    "Inspection",
    "cell_batch",
    "development_split",
    "folds",
    "from_anndata",
    "holdout",
    "inspect",
    "open_cells",
    "stratified",
]
