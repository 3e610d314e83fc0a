"""Assembles the page and writes it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ReportError
from ..storage import write_file
from . import overview, sections
from .drawing import Palette
from .maps import Projection, checked_projection
from .markup import Markup, element, join, text
from .material import Material, open_material
from .template import PAGE

FILE = "report.html"


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
    material = open_material(folder)
    path = material.folder / FILE if out is None else Path(out)
    if path.is_dir():
        raise ReportError(f"{path}: is a folder; give the name of a file, such as {path / FILE}")
    with _writing(path):  # before the work, which may take a minute
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    page = render(material, chosen)
    with _writing(path):
        write_file(path, page)
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be written ({error.strerror}); give another file"
        ) from error


def render(material: Material, projection: Projection) -> str:
    """The page as text."""
    palette = Palette(material)
    parts = [
        overview.findings_section(material),
        sections.comparison_section(material, palette),
        sections.arms_section(material, palette),
        sections.classes_section(material, palette),
        sections.training_section(material, palette),
        sections.masks_section(material, palette),
        sections.genes_section(material, palette),
        sections.maps_section(material, projection),
        sections.timing_section(material, palette),
        sections.reproduction_section(material),
    ]
    shown = [part for part in parts if part]
    opening, cards, contents = (
        overview.opening(material),
        overview.cards(material),
        overview.contents(shown),
    )
    notes = overview.notes(material)  # after everything was read: it names what could not be
    footer = element(
        "footer",
        "Written by scmam. Multinomial Attention Masking: Naziri, Asgari, An, Sachlos, Seyyed-Kalantari, PMLR 333:295-311, 2026.",
    )
    body = join(
        [element("header", opening, cards, contents), notes, element("main", *shown), footer]
    )
    return PAGE.substitute(title=text(overview.title(material)), body=Markup(body))
