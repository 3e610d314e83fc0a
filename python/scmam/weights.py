"""Pretrained models as single files: weights, settings and genes in one safetensors file, to be
kept, passed on and used without the run::

    scmam.export_model(run, "model.safetensors")
    model = scmam.load_model("model.safetensors")
    vectors = model.embed(scmam.open_cells(config.data))
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mam_kernels.weights import WeightsError
from mam_kernels.weights.files import fill, read, require_tensors, write

from .config import Config, validated, with_paths
from .data import Cells
from .errors import RunError, one_line
from .objective import Pretraining, build_pretraining
from .runs import SECTIONS, Run, by_batch, open_run, read_schedule

KIND = "scmam.Pretraining"
SUFFIX = ".safetensors"
SCHEDULE = "schedule"  # beside the weights, where the strategy is "matched"
# Entries of run.json on the origin of the weights, none on the machine.
KEPT = ("steps", "cells", "unit", "date", "versions")


@dataclass(frozen=True)
class ExportedModel:
    """A model that was read from a file."""

    path: Path
    config: Config  #: of the run; paths are names alone
    genes: tuple[str, ...]  #: in the order of the model
    record: dict[str, Any]  #: of the run: steps, cells, unit, date, versions
    pretraining: Pretraining  #: encoder-decoder, masking and injection, in evaluation mode

    def embed(self, cells: Cells, *, max_tokens: int | None = None) -> np.ndarray:
        """The pooled output of the encoder, nothing hidden: what ``scmam evaluate`` classifies.

        Args:
            cells: with the genes of the model, in any order, and maybe more; see `open_cells` and
                `from_anndata`.
            max_tokens: non-zero genes of a cell that are read at most, the largest; None: as many
                as the model reads.

        Returns:
            (cells, feature_dim) float32.

        Raises:
            CellsError: the cells lack genes of the model.
            RunError: the model gives features that are not finite.
        """
        from .evaluation.embedding import embed
        from .evaluation.folder import with_genes

        vocabulary = "a file with the genes of the model, one a line"
        cells = with_genes(cells, self.genes, self.path, vocabulary)
        return embed(self.pretraining, cells, max_tokens=max_tokens)


def export_model(run: Run | str | Path, path: str | Path) -> Path:
    """Write the model of a finished run to one file: encoder-decoder, masking, injection, their
    settings, and the genes.

    Of paths in the settings only the last part is kept, since a file is passed on.

    Args:
        run: a run, or its folder.
        path: of the file, which ends in .safetensors and appears whole or not at all; what is there
            is replaced.

    Returns:
        The path.

    Raises:
        RunError: the run is not done, or damaged; or the file cannot be written there.
        ModuleNotFoundError: safetensors is not installed.
    """
    run, path = run if isinstance(run, Run) else open_run(run), Path(path)
    if path.suffix != SUFFIX:
        raise RunError(f"{path}: expected a name that ends in {SUFFIX}")
    tensors, schedule = run.load().state_dict(), read_schedule(run.folder)
    if schedule is not None:
        tensors[SCHEDULE] = schedule
    settings = run.config.model_dump(mode="json", include=set(SECTIONS))
    arguments = {
        "config": with_paths(settings, lambda path: path.name, [("masking", "matched_to")]),
        "genes": list(run.genes),
        "record": {name: run.record[name] for name in KEPT if name in run.record},
    }
    try:
        write(path, KIND, arguments, tensors)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written there ({error.strerror or error}); name another file"
        ) from error
    return path


def load_model(path: str | Path, device: torch.device | str = "cpu") -> ExportedModel:
    """Read what `export_model` wrote.

    Args:
        path: of the file.
        device: where the weights are put.

    Raises:
        RunError: the file is not there, damaged or cut short, or holds something else.
        ConfigError: its settings are not those of this version.
        ModuleNotFoundError: safetensors is not installed.
    """
    try:
        contents = read(path, KIND)
        wanted = ("config", "genes", "record")
        if missing := ", ".join(name for name in wanted if name not in contents.arguments):
            raise WeightsError(
                f"{path}: expected config, genes and record in its header; got no {missing}"
            )
        config = validated(contents.arguments["config"], str(path))
        genes = contents.arguments["genes"]
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise WeightsError(f"{path}: expected a list of gene names in its header")
        schedule = by_batch(contents.tensors.pop(SCHEDULE, None), config)
        # The sizes are compared before memory is taken for them: they may be anything.
        with torch.device("meta"):
            shapes = build_pretraining(config, len(genes), schedule=schedule)
        require_tensors(shapes, contents.tensors, str(path))
        pretraining = build_pretraining(config, len(genes), schedule=schedule)
        fill(pretraining, contents.tensors, str(path))
    except WeightsError as error:
        raise RunError(str(error)) from error
    except RuntimeError as error:  # torch's, of sizes that no memory has
        raise RunError(f"{path}: its model cannot be built ({one_line(error)})") from error
    pretraining, record = pretraining.to(device).eval(), contents.arguments["record"]
    return ExportedModel(Path(path), config, tuple(genes), record, pretraining)
