"""The encoder-decoder that is pretrained: an encoder over the visible non-zero genes of a cell, a
decoder over all its genes.
"""

from .cell_model import CellModel, Reconstruction
from .embedding import ExpressionEmbedding, SoftBins
from .sizes import SIZES, build_model

__all__ = ["SIZES", "CellModel", "ExpressionEmbedding", "Reconstruction", "SoftBins", "build_model"]
