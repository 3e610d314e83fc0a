"""How Sphinx builds these pages: `make docs`. Nothing is fetched, and warnings are errors there."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]  # of this checkout, whatever is installed

from scmam.cli.settings_text import commented_yaml  # noqa: E402
from scmam.config import Config  # noqa: E402

import mam_kernels  # noqa: E402

project = "mam-kernels"
author = "the mam-kernels developers"
version = release = mam_kernels.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
html_theme = "furo"
html_title = f"mam-kernels {version}"
html_show_copyright = html_show_sourcelink = html_copy_source = False

smartquotes = False
default_role = "py:obj"  # `name` in a docstring leads to what is called so, where that has an entry
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

myst_heading_anchors = 3


class Settings(Directive):
    """The commented configuration that `scmam config` prints."""

    def run(self) -> list[nodes.Node]:
        text = commented_yaml(Config())
        return [nodes.literal_block(text, text, language="yaml")]


def adapt(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make of a docstring what Sphinx takes as it is meant, before napoleon reads it."""
    for index, line in enumerate(lines[:-1]):
        if (
            line.strip() == "Returns:"
        ):  # what stands before a colon in the first line is no type, but a sentence
            start = len(lines[index + 1]) - len(lines[index + 1].lstrip())
            lines[index + 1] = f"{lines[index + 1][:start]}: {lines[index + 1][start:]}"
    if lines and what in ("attribute", "property"):
        lines[0] = f": {lines[0]}"
    if lines and lines[0].startswith(": Alias for field number"):  # Python's own, of named tuples
        lines.clear()


LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)]*\)")


def stay_inside(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave the words alone of a link to a file of the repository that is no page here; where the
    sources are read, it leads there.
    """
    folder = Path(app.srcdir, page).parent

    def words(link: re.Match) -> str:
        return link[0] if (folder / link[2]).resolve().is_relative_to(app.srcdir) else link[1]

    source[0] = LINK.sub(words, source[0])


def setup(app: Sphinx) -> None:
    """What these pages use beyond Sphinx."""
    app.add_directive("settings", Settings)
    app.connect("autodoc-process-docstring", adapt, priority=100)
    app.connect("source-read", stay_inside)
