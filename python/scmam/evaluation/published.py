"""The published classifier: a two-layer head after batch norm reads the largest of each feature
over the genes of a cell; the encoder is frozen, or its embeddings and one block learn too.

Adam with amsgrad minimises a cross-entropy in which every class weighs the same, and stops early by
the loss of a part of the training cells (PMLR 333:295-311, 2026, and its code). Latents and
adapters are frozen here; the published code trains those that reach the encoder.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam_kernels.randomness import substream

from ..data import Cells, stratified
from ..errors import CellsError, RunError
from ..model import CellModel
from ..model.cell_model import Encoded
from ..objective import Pretraining
from ..settings import Evaluation as Settings
from .cross_validation import Predict
from .embedding import sequence_reader
from .fine_tuning import METHOD as FINE_TUNING
from .fine_tuning import seeded, trained_block
from .reading import SequenceReader

PROBE = "mlp-probe"
WEIGHT_DECAY = 5e-4
SMALLEST_VARIANCE = 1e-6  # of the batch norm


class Classifier(nn.Module):
    """A pretrained encoder and the published head.

    Args:
        model: taken as it is, not copied; frozen but for what ``block`` says.
        block: of the encoder, which learns together with the embeddings; None: nothing does.
        hidden: units of the head's first layer.
        num_classes: of its second.
    """

    def __init__(self, model: CellModel, block: int | None, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.norm = nn.BatchNorm1d(model.width, affine=False, eps=SMALLEST_VARIANCE)
        self.head = nn.Sequential(
            nn.Linear(model.width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
        model.requires_grad_(False)
        if block is not None:
            for part in (model.embedding, model.encoder.blocks[block]):
                part.requires_grad_(True)

    def pooled(self, reader: SequenceReader, cells: np.ndarray) -> Tensor:
        """(n, width): the largest of each feature over the genes of each of these cells (n,)."""
        parts = list(reader.parts(cells))
        rows = [largest(self.model.encode(p.sequences, p.depth, p.shift)) for p in parts]
        order = np.argsort(np.concatenate([part.positions for part in parts]))
        return torch.cat(rows)[torch.from_numpy(order).to(reader.device)]

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, width)."""
        return self.head(self.norm(pooled))


def largest(encoded: Encoded) -> Tensor:
    """The largest of each feature over the genes of a cell (B, width); of a cell without genes, its
    own token.
    """
    tokens = encoded.tokens.masked_fill(~encoded.valid[..., None], -torch.inf)
    return torch.where(encoded.valid.any(dim=1)[:, None], tokens.amax(dim=1), encoded.cell)


def predictor(
    method: str,
    features: np.ndarray,
    pretraining: Pretraining,
    cells: Cells,
    settings: Settings,
    seed: int,
) -> Predict:
    """The published classifier, trained for each fold.

    Args:
        method: "fine-tuning" or "mlp-probe", which freezes the encoder.
        features: not looked at.
        pretraining: stays as it is; the work is done on its device.
        cells: with the genes of the model; all have a label.
        settings: the `evaluation` section of a configuration.
        seed: of the pretraining; it decides the head's first weights and the order of the cells.

    Raises:
        ConfigError: the encoder has no such block. The result raises a `CellsError` where too few
            cells are there to stop early by, and a `RunError` where training diverges.
    """
    reader = sequence_reader(pretraining, cells, settings.max_tokens)
    block = trained_block(pretraining.model, settings.block) if method == FINE_TUNING else None

    def predict(fold: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        with seeded(substream(seed, f"{method} published {fold}"), reader.device) as order:
            classifier = Classifier(
                copy.deepcopy(pretraining.model), block, settings.hidden, len(cells.classes)
            ).to(reader.device)
            _fit(classifier, reader, train, cells, settings, order)
            with torch.inference_mode():
                return classifier(classifier.pooled(reader, test)).argmax(dim=1).cpu().numpy()

    return predict


def details(method: str, settings: Settings) -> dict[str, Any]:
    """Entries of `Evaluation.settings` of the published classifier."""
    names = ("hidden", "epochs", "patience", "validation", "batch_size", "lr")
    trained = f"embeddings, encoder block {settings.block}, head"
    return {
        **{name: getattr(settings, name) for name in names},
        "weight_decay": WEIGHT_DECAY,
        "loss": "cross-entropy, classes weighted alike",
        "optimizer": "Adam, amsgrad",
        "trained": trained if method == FINE_TUNING else "head",
    }


def _fit(
    classifier: Classifier,
    reader: SequenceReader,
    train: np.ndarray,
    cells: Cells,
    settings: Settings,
    order: torch.Generator,
) -> None:
    """Train in place, up to the best epoch; the classifier is left in evaluation mode."""
    aside = stratified(
        cells.codes[train], max(1, round(settings.validation * len(train))), settings.fold_seed
    )
    held, seen = train[aside], np.delete(train, aside)
    if len(seen) < 2:
        raise CellsError(
            f"{cells.source}: {len(train)} training cells are too few to stop early by some of"
            " them; give more cells"
        )
    classifier.eval()
    frozen = not any(parameter.requires_grad for parameter in classifier.model.parameters())
    if frozen:
        with torch.no_grad():
            pooled, pooled_held = (classifier.pooled(reader, part) for part in (seen, held))
    targets, targets_held = (
        torch.from_numpy(cells.codes[part]).to(reader.device) for part in (seen, held)
    )
    counts = torch.bincount(targets, minlength=len(cells.classes))
    weight = torch.where(counts > 0, len(seen) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=settings.lr, weight_decay=WEIGHT_DECAY, amsgrad=True
    )
    best, best_loss, waited = _trained(classifier), float("inf"), 0
    for _ in range(settings.epochs):
        classifier.train()
        for chosen in torch.randperm(len(seen), generator=order).split(settings.batch_size):
            if len(chosen) < 2:  # batch norm has nothing to compare it with
                continue
            inputs = pooled[chosen] if frozen else classifier.pooled(reader, seen[chosen.numpy()])
            optimizer.zero_grad()
            F.cross_entropy(classifier(inputs), targets[chosen], weight).backward()
            optimizer.step()
        classifier.eval()
        with torch.no_grad():
            inputs = pooled_held if frozen else classifier.pooled(reader, held)
            loss = _held_loss(classifier(inputs), targets_held, weight)
        if not np.isfinite(loss):
            raise RunError(
                f"fine-tuning: diverged at evaluation.lr = {settings.lr:g}; set a lower one"
            )
        if loss < best_loss:
            best, best_loss, waited = _trained(classifier), loss, 0
        else:
            waited += 1
            if waited == settings.patience:
                break
    classifier.load_state_dict(best, strict=False)
    classifier.eval()


def _held_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> float:
    """The loss of the cells that training stops by."""
    return F.cross_entropy(logits, targets, weight).item()


def _trained(classifier: Classifier) -> dict[str, Tensor]:
    """A copy of what training changes."""
    learned = {name for name, tensor in classifier.named_parameters() if tensor.requires_grad}
    return {
        name: tensor.clone()
        for name, tensor in classifier.state_dict().items()
        if name in learned or name.startswith("norm.")
    }
