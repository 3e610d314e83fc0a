"""Partial fine-tuning: embeddings, one encoder block and a two-layer head learn to tell cell types;
the rest is frozen.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam_kernels.randomness import substream
from mam_kernels.sequences import Sequences

from ..data import Cells
from ..errors import ConfigError, RunError
from ..learning_rate import rise_and_fall
from ..model import CellModel
from ..objective import Pretraining
from ..settings import Evaluation as Settings
from .cross_validation import Predict
from .embedding import sequence_reader
from .reading import SequenceReader

METHOD = "fine-tuning"
DROPOUT = 0.1
WARMUP = 0.1
WEIGHT_DECAY = 0.01
CLIP = 1.0
HEAD_EPOCHS = 50
"""Of the head alone, on features that are computed once, before the rest learns with it (linear
probing, then fine-tuning: Kumar et al., ICLR 2022). A random head would first spoil what was
pretrained. Measured on pbmc68k_reduced with 10 epochs: macro-F1 .61 with it, .49 without, for a
twentieth of the time."""
LEAST_VARIANCE = 1e-2
"""Of a principal axis of the features, in units of the mean over axes: added to its variance, so
that axes of mere rounding stay small.
"""


class Classifier(nn.Module):
    """A pretrained encoder and a head: classes from the pooled features.

    Args:
        model: its embedding, one encoder block and final norm will be trained, everything else is
            frozen. Taken as it is, not copied.
        block: which block, counted from the last, which is -1.
        hidden: units of the head's first layer.
        num_classes: of its second.
        mean: (feature_dim,) of the features of the training cells before fine-tuning.
        axes: (feature_dim, feature_dim), what whitens or standardises them: the head reads
            ``(features - mean) @ axes``.
    """

    mean: Tensor
    axes: Tensor

    def __init__(
        self,
        model: CellModel,
        block: int,
        hidden: int,
        num_classes: int,
        mean: Tensor,
        axes: Tensor,
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)
        self.head = nn.Sequential(
            nn.Linear(model.feature_dim, hidden),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, num_classes),
        )
        model.requires_grad_(False)
        for part in (model.embedding, model.encoder.blocks[block], model.encoder.norm):
            part.requires_grad_(True)

    def forward(self, sequences: Sequences, depth: Tensor, shift: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of sequences (B, T), depth (B,) and shift (B, 1, width)."""
        return self.classify(self.model.pool(self.model.encode(sequences, depth, shift)))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, feature_dim)."""
        return self.head((features - self.mean) @ self.axes)


def predictor(
    features: np.ndarray, pretraining: Pretraining, cells: Cells, settings: Settings, seed: int
) -> Predict:
    """Fine-tune on the training cells of each fold, each time from the pretrained weights;
    ``features`` (cells, F) are those before.

    AdamW minimises the plain cross-entropy for a fixed number of epochs; the learning rate rises
    from 0 in the first tenth of the steps and falls to 0 along a cosine. Before that, the head
    alone learns in the same way. The masking module has no part in it. Seed and fold decide the
    head's first weights, the order of the cells and the dropout: the same (seed, fold) gives the
    same scores, to the bit with as many threads of a CPU, to rounding on a GPU, which sums the
    gradients of embeddings in no fixed order.
    """
    reader = sequence_reader(pretraining, cells, settings.max_tokens)

    def predict(fold: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        with seeded(substream(seed, f"fine-tuning fold {fold}"), reader.device) as order:
            classifier = _classifier(
                pretraining.model, features[train], settings, len(cells.classes)
            ).to(reader.device)
            fit_head(classifier, features[train], cells.codes[train], settings, order)
            fit(classifier, reader, train, cells.codes, settings, order)
            return predictions(classifier, reader, test)

    return predict


def details(settings: Settings) -> dict[str, Any]:
    """Entries of `Evaluation.settings` of fine-tuning."""
    return {
        **{name: getattr(settings, name) for name in ("hidden", "epochs", "batch_size", "lr")},
        "dropout": DROPOUT,
        "head_epochs": HEAD_EPOCHS,
        "warmup": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
        "loss": "cross-entropy",
        "optimizer": "AdamW",
        "trained": f"embeddings, encoder block {settings.block}, final norm, head on"
        f" {settings.head_input} features",
    }


def fit_head(
    classifier: Classifier,
    features: np.ndarray,
    codes: np.ndarray,
    settings: Settings,
    order: torch.Generator,
) -> None:
    """Train the head alone, in place, on features of the training cells (n, F) and their classes
    (n,).
    """
    device = classifier.mean.device
    inputs, targets = (torch.from_numpy(array).to(device) for array in (features, codes))
    parameters = list(classifier.head.parameters())
    classifier.train()
    for chosen in _steps(parameters, HEAD_EPOCHS, len(features), settings, order):
        F.cross_entropy(classifier.classify(inputs[chosen]), targets[chosen]).backward()


def fit(
    classifier: Classifier,
    reader: SequenceReader,
    train: np.ndarray,
    codes: np.ndarray,
    settings: Settings,
    order: torch.Generator,
) -> None:
    """Train all parts of the classifier that are not frozen together, in place.

    A loop of its own rather than Lightning's: a fold takes seconds, of which setting up a Trainer
    would be a good share, and there is nothing to checkpoint or to log.

    Args:
        train: (n,) int64 positions of the cells to train on.
        codes: (cells,) int64 classes of all cells, of which those in `train` are looked at.
        order: draws the order of the cells.
    """
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    classifier.train()
    for chosen in _steps(parameters, settings.epochs, len(train), settings, order):
        batch = train[chosen.numpy()]
        # The batch is random, for an unbiased gradient, and split by length, so that hardly any of
        # the work goes into padding.
        for part in reader.parts(batch):
            target = torch.from_numpy(codes[batch[part.positions]]).to(reader.device)
            logits = classifier(part.sequences, part.depth, part.shift)
            (F.cross_entropy(logits, target, reduction="sum") / len(batch)).backward()
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise RunError(f"fine-tuning: diverged at evaluation.lr = {settings.lr:g}; set a lower one")


@torch.inference_mode()
def predictions(classifier: Classifier, reader: SequenceReader, indices: np.ndarray) -> np.ndarray:
    """The most likely class of each cell; (n,) int64."""
    classifier.eval()
    predicted = np.empty(len(indices), dtype=np.int64)
    for part in reader.parts(indices):
        logits = classifier(part.sequences, part.depth, part.shift)
        predicted[part.positions] = logits.argmax(dim=1).cpu().numpy()
    return predicted


def _steps(
    parameters: list[nn.Parameter],
    epochs: int,
    cells: int,
    settings: Settings,
    order: torch.Generator,
) -> Iterator[Tensor]:
    """The cells of each step, int64 positions. The gradients that the caller accumulates become a
    step of AdamW, clipped, at a learning rate that rises and falls over all steps.
    """
    steps = epochs * math.ceil(cells / settings.batch_size)
    rise = max(1, round(WARMUP * steps))
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=WEIGHT_DECAY)
    factor = partial(rise_and_fall, rise=rise, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(epochs):
        for chosen in torch.randperm(cells, generator=order).split(settings.batch_size):
            optimizer.zero_grad()
            yield chosen
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()


def whitening(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean (F,) and axes (F, F) that turn features (n, F) into uncorrelated ones of variance ``v /
    (v + LEAST_VARIANCE * mean v)``.

    A pretrained encoder puts nearly all variance of its features into a few directions, depth above
    all, and what tells cell types apart into the rest; a head on standardised features learns the
    former first. This favours pretrained encoders: at a learning rate of 1e-3, macro-F1 on
    pbmc68k_reduced (300 genes, one seed) rose from .58 and .60 to .67 and .66, of an untrained one
    it fell from .59 to .58; on standardised features at 3e-3 the untrained one reached .67. All
    that was tried is in benchmarks/results/masking/development.csv.
    """
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    variances, axes = np.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    least = LEAST_VARIANCE * variances.mean()
    axes = axes / np.sqrt(variances.clip(min=0) + max(least, np.finfo(np.float32).tiny))
    return torch.from_numpy(mean).float(), torch.from_numpy(axes).float()


def standardising(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean (F,) and axes (F, F), which are diagonal, that turn features (n, F) into ones of
    variance 1; of a constant one, 0.
    """
    features = features.astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    varies = deviation > np.finfo(np.float32).eps * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.diag(scale)).float()


HEAD_INPUTS = {"whitened": whitening, "standardised": standardising}


def _classifier(
    model: CellModel, features: np.ndarray, settings: Settings, num_classes: int
) -> Classifier:
    mean, axes = HEAD_INPUTS[settings.head_input](features)
    block = trained_block(model, settings.block)
    return Classifier(copy.deepcopy(model), block, settings.hidden, num_classes, mean, axes)


def trained_block(model: CellModel, block: int) -> int:
    """``block``, or a `ConfigError`: it is one of the encoder."""
    layers = len(model.encoder.blocks)
    if block < -layers:
        raise ConfigError(
            f"evaluation.block: expected a block of the encoder, -{layers} to -1; got {block}"
        )
    return block


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Torch's generators at a seed, for initial weights and dropout, and as they were afterwards;
    yields one for the order of cells.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
