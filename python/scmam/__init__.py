"""The study layer over `mam_kernels`: real cells in; pretraining, evaluation, interpretation and a
report out::

    import scmam

    config = scmam.load_config("study.yaml")
    cells = scmam.open_cells(config.data)
    run = scmam.pretrain(config, "runs/mam", cells=cells)
    scores = scmam.evaluate(run, cells, config.evaluation)

Names are looked up when they are used: `import scmam` loads neither torch nor Lightning.
"""

from .lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".config": ("Config", "load_config"),
        ".data": (
            "CellLoader",
            "Cells",
            "folds",
            "from_anndata",
            "holdout",
            "inspect",
            "open_cells",
        ),
        ".errors": ("CellsError", "ConfigError", "ReportError", "RunError", "ScmamError"),
        ".evaluation.baselines": ("baseline",),
        ".evaluation.folder": ("evaluate",),
        ".evaluation.scores": ("Evaluation",),
        ".interpretation.folder": ("Interpretation", "interpret"),
        ".masking": ("build_strategy",),
        ".model": ("CellModel", "build_model"),
        ".objective": ("Losses", "Pretraining", "build_pretraining"),
        ".report.page": ("write_report",),
        ".runs": ("Run", "open_run"),
        ".sequences": ("CellBatch", "expression"),
        ".study.arms": ("ARMS", "arm_config"),
        ".study.comparison": ("compare",),
        ".study.folder": ("Study", "open_study"),
        ".study.statistics": ("summarize",),
        ".training": ("pretrain",),
        ".weights": ("ExportedModel", "export_model", "load_model"),
    },
)
