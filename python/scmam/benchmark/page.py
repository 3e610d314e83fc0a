"""benchmark.svg: the pictures of a benchmark."""

from pathlib import Path


def draw_page(folder: Path) -> Path:
    return folder
