"""Continue from a pretrained model: the encoder-decoder of a run or of an exported model, its genes
matched by name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import Index

from ..config import Config, digest
from ..errors import ConfigError, listing
from ..objective import Pretraining
from ..runs import WEIGHTS, open_run
from ..weights import ExportedModel, load_model

OF_GENES = ("embedding.gene.weight", "decoder.gene.weight", "gene_bias")
"""Tensors of the encoder-decoder with a row for each gene."""
SHOWN = 3  # of the tensors that do not fit


def start_from(
    path: Path, pretraining: Pretraining, genes: tuple[str, ...], config: Config
) -> dict[str, Any]:
    """Give the encoder-decoder of ``pretraining`` the weights of another model.

    Genes that the other model does not have keep their first weights, and so do latents and
    adapters, whatever the other model has.

    Args:
        path: of a run folder, or of an exported model.
        pretraining: of ``config``; changed in place.
        genes: of the cells, in their order.
        config: of the run that begins.

    Returns:
        Entries of run.json: ``start_digest`` of the weights and ``start_genes``, how many of the
        genes have weights from there.

    Raises:
        ConfigError: the models have other sizes or read other values, or no gene in common.
        RunError: there is no finished run, or no model in the file.
    """
    source = read_source(path)
    if source.config.data.transform != config.data.transform:
        raise ConfigError(
            f"data.transform: expected {source.config.data.transform}, which {path} was trained on;"
            f" got {config.data.transform}"
        )
    places = Index(source.genes).get_indexer(genes)
    rows = np.flatnonzero(places >= 0)
    if not len(rows):
        raise ConfigError(
            f"training.start_from: {path} has none of the {len(genes)} genes of these cells"
            f" ({genes[0]}, ...; there {source.genes[0]}, ...); give cells with the same names"
        )
    new, old = pretraining.model.state_dict(), source.pretraining.model.state_dict()
    wrong = sorted(
        name
        for name in new.keys() | old.keys()
        if name not in new or name not in old or _sizes(new, name) != _sizes(old, name)
    )
    if wrong:
        raise ConfigError(
            f"training.start_from: {path} has an encoder-decoder of other sizes"
            f" ({listing(wrong, SHOWN)}); set model.* and training.loss as they are in its settings"
        )
    with torch.no_grad():
        for name, tensor in new.items():
            if name in OF_GENES:
                tensor[rows] = old[name][places[rows]]
            else:
                tensor.copy_(old[name])
    return {"start_digest": digest(source.path.read_bytes()), "start_genes": len(rows)}


def read_source(path: Path) -> ExportedModel:
    """The model of a run folder or of an exported file; its path is that of the weights.

    Raises:
        RunError: there is none that can be read.
    """
    if path.is_file():
        return load_model(path)
    run = open_run(path)
    return ExportedModel(path / WEIGHTS, run.config, run.genes, run.record, run.load())


def _sizes(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor, without the number of genes."""
    shape = tuple(tensors[name].shape)
    return shape[1:] if name in OF_GENES else shape
