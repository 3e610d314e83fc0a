"""The frameworks' own functions: of installed packages, and of checkouts in the folder that
``FRAMEWORK_SOURCES`` names.
"""

import ast
import importlib
import importlib.metadata
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mam_kernels.integrations.examples.loading import submodule


class _Hollow(ModuleType):
    """A module in which every name is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        empty = {
            "__init__": lambda self, *args, **options: None,
            "__getattr__": lambda self, name: lambda *args, **options: None,
        }
        return type(name, (), empty)


class _Hollowing(MetaPathFinder, Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if any(name == hollow or name.startswith(hollow + ".") for hollow in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def hollow(*names: str) -> Iterator[None]:
    """While active, these modules are empty: a function needs less than its file imports."""
    finder, before = _Hollowing(names), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], _Hollow):
                del sys.modules[name]


def installed(package: str) -> None:
    """Skip where a package is not in this environment."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not in this environment")


def module_of(package: str, name: str, *without: str) -> ModuleType:
    """A module of an installed package, with the modules ``without`` hollow."""
    installed(package)
    with hollow(*without):
        return submodule(name)


def checkout(name: str) -> Path:
    """A checkout of a repository that is no package; skip where there is none."""
    folder = Path(os.environ.get("FRAMEWORK_SOURCES", "/nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"no checkout of {name} in the folder that FRAMEWORK_SOURCES names")
    return folder


def functions_of(script: Path, names: set[str], known: dict[str, Any]) -> dict[str, Any]:
    """Functions of a script that trains when it is imported."""
    tree = ast.parse(script.read_text())
    tree.body = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name in names]
    found = {"torch": torch, "math": math, "reduce": reduce, **known}
    exec(compile(tree, str(script), "exec"), found)
    return found
