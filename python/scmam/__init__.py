"""The study layer over `mam_kernels`: real cells in; pretraining, evaluation, interpretation and a report out::

    import scmam

    config = scmam.load_config("study.yaml")
    cells = scmam.open_cells(config.data)
    run = scmam.pretrain(config, "runs/mam", cells=cells)
    scores = scmam.evaluate(run, cells, config.evaluation)

Names are looked up when they are used: `import scmam` loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    ".config": ("Config", "load_config"),
    ".data": ("CellLoader", "Cells", "folds", "from_anndata", "holdout", "inspect", "open_cells"),
    ".errors": ("CellsError", "ConfigError", "ReportError", "RunError", "ScmamError"),
    ".evaluation": ("Evaluation", "baseline", "evaluate"),
    ".interpretation": ("Interpretation", "interpret"),
    ".masking": ("Masking", "MaskingStrategy", "build_strategy"),
    ".model": ("CellModel", "build_model"),
    ".objective": ("Losses", "Pretraining", "build_pretraining"),
    ".report": ("write_report",),
    ".runs": ("Run", "open_run"),
    ".sequences": ("CellBatch", "Sequences", "expression", "gather"),
    ".study": ("ARMS", "Study", "arm_config", "compare", "open_study", "summarize"),
    ".training": ("pretrain",),
    ".weights": ("ExportedModel", "export_model", "load_model"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
