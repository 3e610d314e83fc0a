"""Every family by its name. One is loaded when it is run."""

import importlib
import importlib.util
from collections.abc import Callable

from .source import Source

FAMILIES = {  # name: where its cases are made, and the share of the time that it gets
    "selection": ("selection:sample", 4),
    "value_attention": ("cells:attend", 3),
    "latent_attention": ("tokens:attend", 2),
    "attention_importance": ("tokens:importance", 2),
    "inclusion_probabilities": ("inclusion:probabilities", 2),
    "values_module": ("steps:values", 3),
    "embeddings_module": ("steps:embeddings", 2),
    "gradients_module": ("gradients:step", 2),
    "gradients_attention": ("gradients:attention", 2),
    "broken_csr": ("broken_csr:attend", 3),
    "operations": ("operations:call", 3),
    "objects": ("objects:call", 2),
    "h5ad_files": ("files:h5ad", 2),
    "weight_files": ("files:weights", 2),
    "run_folders": ("files:runs", 2),
    "settings_files": ("files:settings", 1),
}

PLANTED = {  # known faults: not part of a run, for the tests of the attack itself
    "planted_crash": ("planted:crash", 1),
    "planted_wrong": ("planted:wrong", 1),
}


NEEDED_BY_FILES = ("anndata", "lightning", "safetensors", "typer", "yaml")


def ready() -> tuple[list[str], list[str]]:
    """The families that can run here, and the packages that the others miss."""
    missing = [name for name in NEEDED_BY_FILES if importlib.util.find_spec(name) is None]
    of_files = [name for name, (where, _) in FAMILIES.items() if where.startswith("files:")]
    return [name for name in FAMILIES if not missing or name not in of_files], missing


def load(name: str) -> Callable[[Source], str]:
    """The function that runs one case and says how it ended.

    Raises:
        KeyError: there is no such family.
    """
    module, _, function = {**FAMILIES, **PLANTED}[name][0].partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)
