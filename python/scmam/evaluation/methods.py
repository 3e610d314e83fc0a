"""The ways to predict cell types from a pretrained encoder."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..data import Cells
from ..objective import Pretraining
from ..settings import Evaluation as Settings
from . import fine_tuning, probing, published
from .cross_validation import Predict, Say, cross_validate, describe, scored, silent
from .embedding import embed
from .scores import Evaluation


class Method(NamedTuple):
    """A way to classify cells."""

    #: (features, pretraining, cells, settings, seed) -> what fits and predicts a fold
    predictor: Callable[[np.ndarray, Pretraining, Cells, Settings, int], Predict]
    details: Callable[[Settings], dict[str, Any]]  #: its own entries of `Evaluation.settings`


def _published(method: str) -> Method:
    return Method(partial(published.predictor, method), partial(published.details, method))


METHODS = {
    probing.METHOD: Method(probing.predictor, probing.details),
    published.PROBE: _published(published.PROBE),
    fine_tuning.METHOD: Method(fine_tuning.predictor, fine_tuning.details),
}
RECIPE = _published(fine_tuning.METHOD)
"""Fine-tuning under protocol "published"."""


def classify(
    method: str,
    pretraining: Pretraining,
    cells: Cells,
    settings: Settings,
    seed: int = 0,
    *,
    features: np.ndarray | None = None,
    say: Say = silent,
) -> Evaluation:
    """Score a method on the folds, or the test set, of the settings.

    Args:
        method: of `METHODS`.
        pretraining: stays as it is; the work is done on its device.
        cells: with the genes of the model, and labels; cells without one are left out.
        settings: the `evaluation` section of a configuration.
        seed: of the pretraining. It is recorded. With the number of the fold it decides whatever
            the method draws.
        features: (cells, F) float32, of cells that all have a label; None: they are computed.
        say: is told of the progress.

    Raises:
        CellsError: the labels do not allow the folds.
        ConfigError: the encoder has no such block.
        RunError: fine-tuning diverges.
    """
    if features is None:
        cells = scored(cells, settings)
        features = embed(pretraining, cells, max_tokens=settings.max_tokens, say=say)
    predict = _method(method, settings).predictor(features, pretraining, cells, settings, seed)
    recorded = record(method, cells, settings, seed)
    return cross_validate(method, cells, settings, predict, recorded, say)


def record(method: str, cells: Cells, settings: Settings, seed: int) -> dict[str, Any]:
    """`Evaluation.settings` of a method; ``cells``: from `scored`."""
    details = _method(method, settings).details(settings)
    tokens = settings.max_tokens
    return describe(method, cells, settings, seed=seed, max_tokens=tokens, **details)


linear_probe = partial(classify, probing.METHOD)
"""`classify` by logistic regression on the frozen features."""
fine_tune = partial(classify, fine_tuning.METHOD)
"""`classify` by an encoder of which embeddings and a block learn, together with a head."""


def _method(name: str, settings: Settings) -> Method:
    by_recipe = name == fine_tuning.METHOD and settings.protocol == "published"
    return RECIPE if by_recipe else METHODS[name]
