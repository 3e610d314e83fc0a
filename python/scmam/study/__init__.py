"""A study: arms times seeds, each pretrained and evaluated, compared with intervals and differences
paired by seed.
"""

from .arms import ARMS, arm_config
from .comparison import compare
from .folder import Failure, Study, is_study, open_study
from .statistics import summarize
from .table import summary_text

__all__ = [
    "ARMS",
    "Failure",
    "Study",
    "arm_config",
    "compare",
    "is_study",
    "open_study",
    "summarize",
    "summary_text",
]
