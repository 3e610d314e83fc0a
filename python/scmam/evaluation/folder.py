"""`evaluate`: a run folder and labelled cells in, scores and features into the folder."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pandas import Index

from ..config import digest, validated
from ..data import Cells
from ..data.rows import Rows
from ..errors import CellsError, ConfigError, RunError
from ..objective import Pretraining
from ..runs import GENES, WEIGHTS, Run
from ..settings import Evaluation as Settings
from ..settings.studies import SPLIT
from ..storage import new_file, require_writable, writing
from . import fine_tuning
from .cross_validation import Say, scored, scored_positions, silent, splits
from .embedding import embed
from .methods import classify, record
from .scores import Evaluation

FOLDER = "evaluation"
EMBEDDING = "embedding.npz"


def evaluate(
    run: Run,
    cells: Cells,
    settings: Settings,
    *,
    methods: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Score a finished run by cross-validation, and write what comes out into ``<run>/evaluation``.

    Files: ``<method>.json`` (an `Evaluation`) for each method, and ``embedding.npz``: features
    float16 (cells, F), codes int64 (cells,; -1 without a label), classes, cell_ids int64, and
    settings (JSON). Each appears whole or not at all. What is there for the same cells, settings
    and weights is not computed again.

    Args:
        run: opened with ``scmam.runs.open_run``; done.
        cells: labelled; its genes are those of the run, in any order, and may be more. Cells
            without a label are embedded, not scored.
        settings: the `evaluation` section of a configuration.
        methods: of "linear-probe", "mlp-probe" and "fine-tuning"; None: ``settings.methods``.
        progress: print a line for each fold.

    Returns:
        The evaluation of each method, in their order.

    Raises:
        ConfigError: a method or a block of the encoder that does not exist; a test set other than
            the one that the run was pretrained without.
        CellsError: the cells lack genes of the run, or labels that allow the folds.
        RunError: the run is not done, or damaged; its fine-tuning diverges; or its folder cannot be
            written to.
    """
    asked = {"methods": settings.methods if methods is None else methods}
    methods = validated({"evaluation": asked}, "methods").evaluation.methods
    cells = with_genes(cells, run.genes, run.folder, vocabulary=str(run.folder / GENES))
    known = scored(cells, settings)
    # An error in the labels is reported before the work, not after.
    splits(known, settings)
    say: Say = partial(print, flush=True) if progress else silent
    _require_unseen(run, settings, say)
    pretraining = run.load(run.device)
    if fine_tuning.METHOD in methods:
        fine_tuning.trained_block(pretraining.model, settings.block)
    folder, seed = run.folder / FOLDER, run.config.training.seed
    weights = digest((run.folder / WEIGHTS).read_bytes())
    of_run = {"encoder_shift": pretraining.shifts_encoder, "weights": weights}
    records = {method: record(method, known, settings, seed) | of_run for method in methods}
    done = {
        method: found
        for method in methods
        if (found := _finished(folder / f"{method}.json", records[method], say)) is not None
    }
    key = _embedding_key(cells, settings, weights)
    if len(done) < len(methods) or _key_of(folder / EMBEDDING) != key:
        with writing(folder, "make room, or copy the run to a place that can be written to"):
            require_writable(folder)  # before the work
            features = _embedded(pretraining, cells, settings, folder, key, say)
            options = {"features": features[scored_positions(cells, settings)], "say": say}
            for method in methods:
                if method not in done:
                    found = classify(method, pretraining, known, settings, seed, **options)
                    done[method] = replace(found, settings=records[method])
                    done[method].save(folder / f"{method}.json")
    return {method: done[method] for method in methods}


def with_genes(cells: Cells, genes: tuple[str, ...], trained: Path, vocabulary: str) -> Cells:
    """The cells over the genes of a model, in its order; matched by name, nothing is copied.

    Args:
        cells: with these genes and maybe others.
        genes: of the model.
        trained: the run or the file that the model is from, for the error.
        vocabulary: where its genes are, one a line, for the error.

    Raises:
        CellsError: some are not there.
    """
    if tuple(cells.genes) == tuple(genes):
        return cells
    chosen = Index(cells.genes).get_indexer(genes)
    if missing := [gene for gene, place in zip(genes, chosen, strict=True) if place < 0]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CellsError(
            f"{cells.source}: {len(missing)} of the {len(genes)} genes that {trained} was trained"
            f" on are not among the {len(cells.genes)} of these cells ({shown}); read the cells"
            f" with data.genes=vocabulary and data.vocabulary={vocabulary}"
        )
    counts = cells.counts
    columns = chosen if counts.columns is None else counts.columns[chosen]
    return replace(
        cells,
        counts=Rows(counts.matrix, counts.cells, columns, counts.conversion),
        genes=tuple(genes),
    )


def _embedded(
    pretraining: Pretraining, cells: Cells, settings: Settings, folder: Path, key: str, say: Say
) -> np.ndarray:
    """The features of all cells, float32, written as float16 too."""
    features = embed(pretraining, cells, max_tokens=settings.max_tokens, say=say)
    with new_file(folder / EMBEDDING) as beside, open(beside, "wb") as file:
        np.savez(
            file,
            features=features.astype(np.float16),
            codes=cells.codes,
            classes=np.array(cells.classes, dtype=str),
            cell_ids=cells.cell_ids,
            settings=np.array(key),
        )
    return features


def _embedding_key(cells: Cells, settings: Settings, weights: str) -> str:
    key = {
        "source": cells.source,
        "content": cells.fingerprint(),
        "max_tokens": settings.max_tokens,
        "weights": weights,
    }
    return json.dumps(key)


def _key_of(path: Path) -> str | None:
    """What an embedding file was computed from; None where there is none that can be read, and it
    is to be written anew.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["settings"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _finished(path: Path, wanted: dict[str, Any], say: Say) -> Evaluation | None:
    """The evaluation in a file, if its settings are the requested ones."""
    if not path.is_file():
        return None
    try:
        found = Evaluation.load(path)
    except RunError as error:
        say(f"{error} (done now)")
        return None
    if found.settings != json.loads(json.dumps(wanted)):
        say(f"{found.method}: computed again, for its cells, settings or weights have changed")
        return None
    say(f"{found.method}: already there")
    return found


def _require_unseen(run: Run, settings: Settings, say: Say) -> None:
    """Or a `ConfigError`: a run that was pretrained without test cells is tested on those."""
    if settings.protocol != "published":
        return
    if run.config.training.cells == "all":
        say("pretraining saw the test cells, without their labels (training.cells: all)")
        return
    for name in SPLIT:
        kept, wanted = (getattr(part, name) for part in (run.config.evaluation, settings))
        if kept != wanted:
            raise ConfigError(
                f"evaluation.{name}: expected {kept}, for {run.folder} was pretrained without the"
                f" test cells of that; got {wanted}"
            )
