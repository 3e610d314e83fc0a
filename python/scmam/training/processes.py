"""Which process of a run this is, from what torchrun, SLURM or Lightning's own launcher leave in
the environment.

Lightning finds out the same when it starts. This is asked before: a finished run and a bad setting
are seen without importing it.
"""

import os

from ..errors import ConfigError
from ..settings import Training

SLURM_SHELLS = ("bash", "interactive")  # names of SLURM jobs in which processes are started by hand


def num_processes(training: Training) -> int:
    """How many processes the configuration asks for."""
    return training.devices * training.num_nodes


def global_rank(training: Training) -> int:
    """The number of this process among all; 0 does the writing."""
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"])
    if _under_slurm():
        return int(os.environ.get("SLURM_PROCID", 0))
    # Started by hand, or by Lightning: the first process of a machine starts the others, and sets
    # their environment.
    node, local = (int(os.environ.get(name, 0)) for name in ("NODE_RANK", "LOCAL_RANK"))
    return node * training.devices + local


def check_processes(training: Training) -> None:
    """Refuse processes that the configuration does not count: each would train a run of the folder.

    Raises:
        ConfigError: with the settings that fit.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        launcher, started = "torchrun", int(os.environ["WORLD_SIZE"])
    elif _under_slurm():
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"])
        launcher, started = "SLURM", int(tasks)
    else:
        return
    if started != num_processes(training):
        raise ConfigError(
            f"training.devices × training.num_nodes: {launcher} started {started} processes, and"
            f" the configuration asks for {training.devices} × {training.num_nodes}; set them to"
            " the processes of a machine and the number of machines"
        )


def _under_slurm() -> bool:
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in SLURM_SHELLS
