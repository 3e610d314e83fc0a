"""Hide messages of Lightning that concern developers of a Trainer, not its users."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
WARNINGS = (  # beginnings of messages, each with the reason why it needs no action
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own code
    r"GPU available but not used",  # the user said so
    r"Checkpoint directory .* exists and is not empty",  # a run that goes on
    # 16-mixed leaves out its first steps to find a scale
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop Lightning's remarks (level INFO: devices found, tips, arguments that were set) and the
    warnings above, and nothing else.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
