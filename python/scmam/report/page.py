"""Puts the page together by Jinja2 templates, and writes it."""

import inspect
import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..drawing import FIXED, GROUND, INK, LEARNED, QUIET, RULE, UNTRAINED, shortened
from ..errors import ReportError
from ..storage import require_writable, write_file, writing
from . import formatting, mask_section, sections
from .findings import METHOD_NAMES, UNDER, VERDICTS, interval_text, spoken
from .folder import StudyFiles, number, open_study_files
from .maps import Projection, checked_projection, class_style
from .palette import arm_styles
from .score_figures import shade
from .scores import METRICS

FILE = "report.html"
ARM_COLOURS = (*FIXED, *LEARNED, UNTRAINED)
VARIABLES = {INK: "--ink", QUIET: "--quiet", RULE: "--rule", GROUND: "--ground"}
VARIABLES |= {colour: f"--arm-{colour[1:]}" for colour in ARM_COLOURS}
TONES = {"ahead": "up", "behind": "down", "not shown": "flat", "one seed": "flat"}


def write_report(
    folder: str | Path, out: str | Path | None = None, *, projection: str = "auto"
) -> Path:
    """Write the report of a study or of a run as one HTML file, which needs no network, no script
    and no other file.

    Only files of the folder are read; nothing of a model is computed. What is missing is left out
    or said to be missing.

    Args:
        folder: of a study, as `scmam.study.compare` writes it, or of a run, as
            `scmam.training.pretrain` does.
        out: the file to write; None: ``report.html`` in the folder.
        projection: of the maps: "umap", "pca", or "auto", which is UMAP where umap-learn is
            installed. UMAP takes about half a minute.

    Returns:
        The path of the page.

    Raises:
        ReportError: nothing to report there, an unknown projection, or a place that cannot be
            written to.
    """
    chosen = checked_projection(projection)
    study = open_study_files(folder)
    path = study.folder / FILE if out is None else Path(out)
    if path.is_dir():
        raise ReportError(f"{path}: is a folder; give the name of a file, such as {path / FILE}")
    with writing(path, "give another file", ReportError):
        require_writable(path.parent)  # before the work, which may take a minute
        write_file(path, render(study, chosen))
    return path


def environment() -> Environment:
    """The templates, with autoescape: only drawings are inserted unescaped."""
    found = Environment(
        loader=PackageLoader("scmam.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= dict(inspect.getmembers(formatting, inspect.isfunction))
    found.filters |= {"shade": shade, "class_style": class_style, "interval": interval_text}
    found.filters |= {"number": number, "shortened": shortened, "spoken": spoken}
    found.globals |= {
        "METHOD_NAMES": METHOD_NAMES,
        "METRICS": METRICS,
        "TONES": TONES,
        "UNDER": UNDER,
        "VERDICTS": VERDICTS,
        "VARIABLES": VARIABLES,
        "ARM_COLOURS": ARM_COLOURS,
        "nan": math.nan,
    }
    return found


def render(study: StudyFiles, projection: Projection) -> str:
    """The page as text."""
    styles = arm_styles(study)
    content = {
        "hidden": mask_section.hidden(study, styles),
        "findings": sections.found(study),
        "comparison": sections.comparison(study, styles),
        "what": {"cells": study.cells},
        "types": sections.types(study),
        "training": sections.training(study, styles),
        "genes": sections.genes(study, styles),
        "maps": sections.maps(study, projection),
        "times": sections.times(study),
        "again": sections.again(study),
    }
    page = environment().get_template("page.html")
    return page.render(
        study=study,
        styles=styles,
        opening=sections.opening(study),
        notes=sections.notes(study),  # after the rest was read: it names what could not be
        sections={name: part for name, part in content.items() if part},
    )
