"""The examples of README.md run, one after the other, and what they claim in comments is asserted by the examples themselves."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_readme_run():
    readme = ROOT / "README.md"
    blocks = BLOCK.findall(readme.read_text())
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        line = readme.read_text()[: readme.read_text().index(block)].count("\n")
        exec(compile("\n" * line + block, str(readme), "exec"), names)
    assert names["out"].mask.any()


def pages() -> list[Path]:
    """The Markdown files of the repository, without environments and builds inside its folder."""
    found = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return [path for path in found if not any(part.startswith(".") or part in ("build", "report") for part in path.parts)]


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / page.parent / target).exists()]
    assert not missing
