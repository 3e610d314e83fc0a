"""The Python blocks of a Markdown page, run one after the other: what the README and the guides
show is what works.
"""

import re
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_examples(
    page: Path, names: dict[str, object] | None = None, *, only: Callable[[str], bool] | None = None
) -> dict[str, object]:
    """What the blocks of a page leave behind, `names` being there before; tracebacks give its
    lines. `only` says which blocks run.
    """
    text = page.read_text()
    blocks = [block for block in BLOCK.finditer(text) if only is None or only(block[1])]
    assert blocks
    names = {} if names is None else names
    for block in blocks:
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, str(page), "exec"), names)
    return names
