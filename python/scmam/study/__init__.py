"""A study: arms times seeds, each pretrained and evaluated, compared with intervals and differences
paired by seed.
"""

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".arms": ("ARMS", "arm_config"),
        ".comparison": ("compare",),
        ".folder": ("Failure", "Study", "is_study", "open_study"),
        ".statistics": ("summarize",),
        ".table": ("summary_text",),
    },
)
