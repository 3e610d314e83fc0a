"""Imports parts of a framework: of an installed package, or of a checkout of its repository."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def sources_on_path(*folders: Path) -> Iterator[None]:
    """While active, modules are found in these folders first."""
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"--source: expected a checkout that holds {folder}; got none")
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


def require_source(framework: str, source: Path | None) -> Path:
    """A checkout of a repository that is no package."""
    if source is None:
        raise ModuleNotFoundError(
            f"{framework} is not in the package registry: name a checkout of its repository by "
            f"--source FOLDER"
        )
    return source


def submodule(name: str) -> ModuleType:
    """A module of a package, without what the package's ``__init__`` imports beside it: a model
    needs less than a framework.
    """
    parents = name.split(".")[:-1]
    made = []
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if parent in sys.modules:
            continue
        spec = importlib.util.find_spec(parent)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"{parent} is not installed")
        package = ModuleType(parent)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[parent] = package
        made.append(parent)
    try:
        return importlib.import_module(name)
    finally:
        for parent in made:
            del sys.modules[parent]
