"""The examples of the README and of the guides run, and the README prints what it shows."""

import re
from pathlib import Path

import pytest

from tests.examples import run_examples

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_loop_of_the_readme_prints_what_is_shown(capsys):
    names = run_examples(README)
    printed = capsys.readouterr().out.splitlines()
    shown = re.search(r"```text\n(.*?)```", README.read_text(), re.DOTALL)[1].splitlines()
    assert len(printed) == len(shown) == 3
    for ours, theirs in zip(printed, shown, strict=True):
        numbers = [[float(x) for x in re.findall(r"\d+\.?\d*", line)] for line in (ours, theirs)]
        # a loss of two decimals, whose sums another processor adds in another order
        assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.02)
    assert names["masker"].latents.grad.abs().sum() > 0


def test_the_readme_is_a_door():
    lines = README.read_text().splitlines()
    assert len(lines) <= 130
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("```sh")) < 25


def test_the_examples_about_backends_run():
    assert run_examples(ROOT / "docs" / "backends.md")["table"]


def test_the_examples_of_the_study_run(capsys):
    for package in ("anndata", "lightning", "pydantic", "scanpy", "sklearn"):
        pytest.importorskip(package, reason="the single-cell layer is not installed")
    names = run_examples(ROOT / "docs" / "study_guide.md")
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
