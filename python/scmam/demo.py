"""The demo: a small study of 700 real blood cells, some minutes on two cores; its settings are in
``demo.yaml``.
"""

from pathlib import Path

from .config import load_config, with_settings
from .study.folder import Study

DEMO = load_config(Path(__file__).with_suffix(".yaml"))


def run(folder: str | Path, *, jobs: int | None = None, progress: bool = True) -> Study:
    """Compare the arms of the demo in `folder`, a study folder, whose finished runs are kept.

    Args:
        folder: new, empty, or a demo that was stopped.
        jobs: runs at a time; None: as the settings say.
        progress: show it.

    Raises:
        RunError: the folder is something else.
    """
    from .study.comparison import compare

    config = DEMO if jobs is None else with_settings(DEMO, study={"jobs": jobs})
    return compare(config, folder, progress=progress)
