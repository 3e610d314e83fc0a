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


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    if any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts):
        pytest.skip("not part of the documentation")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing
