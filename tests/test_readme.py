"""The examples of README.md run, one after the other, and what they claim in comments is asserted by the examples themselves."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


README = ROOT / "README.md"


def run_examples(blocks: list[str]) -> dict[str, object]:
    """What the blocks, run one after the other, leave behind; tracebacks give the line of README.md."""
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        line = README.read_text()[: README.read_text().index(block)].count("\n")
        exec(compile("\n" * line + block, str(README), "exec"), names)
    return names


def of_the_study(block: str) -> bool:
    """Whether a block needs the study layer, whose packages are optional."""
    return "scmam" in block


def test_the_examples_of_the_engine_run():
    names = run_examples([block for block in BLOCK.findall(README.read_text()) if not of_the_study(block)])
    assert names["out"].mask.any()


def test_the_examples_of_the_study_run(capsys):
    for package in ("anndata", "lightning", "pydantic", "scanpy", "sklearn"):
        pytest.importorskip(package, reason="the single-cell layer is not installed")
    names = run_examples([block for block in BLOCK.findall(README.read_text()) if of_the_study(block)])
    assert names["run"].done
    assert "macro-F1 0." in capsys.readouterr().out


def pages() -> list[Path]:
    """The Markdown files of the repository, without environments and builds inside its folder."""
    found = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return [path for path in found if not any(part.startswith(".") or part in ("build", "report") for part in path.parts)]


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / page.parent / target).exists()]
    assert not missing
