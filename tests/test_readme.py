"""The examples of README.md run, one after the other, and what they claim in comments is asserted
by the examples themselves.
"""

import re
from pathlib import Path

import pytest

from tests.examples import run_examples

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def of_the_study(block: str) -> bool:
    """Whether a block needs the study layer, whose packages are optional."""
    return "scmam" in block


def test_the_examples_of_the_engine_run():
    names = run_examples(README, only=lambda block: not of_the_study(block))
    assert names["out"].mask.any()


def test_the_examples_of_the_study_run(capsys):
    for package in ("anndata", "lightning", "pydantic", "scanpy", "sklearn"):
        pytest.importorskip(package, reason="the single-cell layer is not installed")
    names = run_examples(README, only=of_the_study)
    assert names["run"].done
    assert "macro-F1 0." in capsys.readouterr().out


def pages() -> list[Path]:
    """The Markdown files of the repository, without environments and builds inside its folder."""
    found = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return [
        path
        for path in found
        if not any(part.startswith(".") or part in ("build", "report") for part in path.parts)
    ]


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [
        target
        for target in targets
        if "://" not in target and not (ROOT / page.parent / target).exists()
    ]
    assert not missing
