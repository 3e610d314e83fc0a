"""What is recorded about a study or run as a whole: its cells, types, seeds, folds and machine."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from .material import Material, RunFiles


def cells_facts(material: Material) -> dict[str, Any]:
    """What is recorded of the cells: source, unit, num_cells, num_genes, density, label, donor,
    notes; a run knows only some of them.
    """
    cells = material.record.get("cells")
    if isinstance(cells, dict):
        return cells
    return {
        "num_cells": cells,
        **{name: material.record.get(name) for name in ("num_genes", "source", "unit")},
    }


def source_name(material: Material) -> str:
    """The name of the data in a few letters: that of the file, where there is one."""
    data = material.config.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    source = str(cells_facts(material).get("source") or "").partition(":")[0]
    return Path(str(path)).name if path else source or material.folder.resolve().name


def class_sizes(material: Material) -> dict[str, int]:
    """Cells of each type, as recorded, or as tested."""
    sizes = cells_facts(material).get("classes")
    if isinstance(sizes, dict):
        return {str(name): int(size) for name, size in sizes.items()}
    evaluation = next((found for run in material.runs for found in run.evaluations.values()), None)
    if evaluation is None:
        return {}
    return dict(zip(evaluation.classes, map(int, evaluation.confusion().sum(axis=1)), strict=True))


def wanted_seeds(material: Material) -> tuple[int, ...]:
    """The seeds that were asked for; those that are there, where that is not recorded."""
    settings = material.config.get("study")
    asked = settings.get("seeds") if isinstance(settings, dict) else None
    return tuple(asked or material.seeds())


def num_folds(material: Material) -> int:
    """Of the evaluations; 0 where there is none."""
    return max(
        (len(evaluation.folds) for run in material.runs for evaluation in run.evaluations.values()),
        default=0,
    )


def mean_of(runs: tuple[RunFiles, ...], name: str) -> float:
    """A number of run.json, the mean over those of the runs that have it; nan where none has."""
    values = [value for run in runs if not math.isnan(value := run.number(name))]
    return fmean(values) if values else math.nan


def first(runs: tuple[RunFiles, ...], name: str) -> Any:
    """What the first of the runs holds that has something under this name: a table, arrays or an
    object; None where none has.
    """
    for run in runs:
        found = getattr(run, name)
        if found is not None and len(found):
            return found
    return None
