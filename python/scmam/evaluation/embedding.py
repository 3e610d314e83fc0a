"""The features of cells: the pooled output of the frozen encoder."""

import numpy as np
import torch

from ..data import Cells
from ..errors import CellsError, RunError
from ..objective import Pretraining
from .cross_validation import Say, silent
from .reading import SequenceReader, token_limit

TOLD_EVERY = 20_000
"""Cells between lines of progress."""


def sequence_reader(
    pretraining: Pretraining, cells: Cells, max_tokens: int | None
) -> SequenceReader:
    """The reader of cells for a pretrained model, on its device.

    Raises:
        CellsError: the model has another number of genes.
    """
    if cells.num_genes != pretraining.model.num_genes:
        raise CellsError(
            f"{cells.source}: expected the {pretraining.model.num_genes} genes of the model, in"
            f" its order; got {cells.num_genes}; read the cells with the genes.txt of its run as"
            " data.vocabulary"
        )
    device = next(pretraining.model.parameters()).device
    return SequenceReader(
        cells,
        pretraining.transform,
        token_limit(pretraining.model.max_encoder_tokens, max_tokens),
        device,
        pretraining.encoder_shift if pretraining.shifts_encoder else None,
    )


@torch.inference_mode()
def embed(
    pretraining: Pretraining, cells: Cells, *, max_tokens: int | None = None, say: Say = silent
) -> np.ndarray:
    """`Pretraining.features` of cells, without gradient, dropout or masking; memory beyond the
    result is bounded.

    Args:
        pretraining: in evaluation or training mode, which is left as it is.
        cells: with the genes of the model.
        max_tokens: non-zero genes of a cell that are read at most, the largest; None: as many as
            the model reads.
        say: is told of the progress.

    Returns:
        (cells, feature_dim) float32.

    Raises:
        CellsError: the cells have other genes.
        RunError: the model gives features that are not finite.
    """
    model = pretraining.model
    reader = sequence_reader(pretraining, cells, max_tokens)
    features = np.empty((len(cells), model.feature_dim), dtype=np.float32)
    mode, count, told = model.training, 0, 0
    model.eval()
    try:
        for part in reader.parts(np.arange(len(cells))):
            pooled = model.pool(model.encode(part.sequences, part.depth, part.shift))
            features[part.positions] = pooled.float().cpu().numpy()
            count += len(part.positions)
            if count // TOLD_EVERY > told:
                told = count // TOLD_EVERY
                say(f"features: {count} of {len(cells)} cells")
    finally:
        model.train(mode)
    if not np.isfinite(features).all():
        raise RunError(
            "features: the model gives values that are not finite, so its training diverged;"
            " pretrain with a lower training.lr"
        )
    return features
