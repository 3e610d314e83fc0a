"""One computation at a time in a folder: a lock that outlives its owner for as long as one of the
processes it started is alive.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError

PATIENCE = 15.0  # seconds; processes whose study was killed need a moment to end


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[int]:
    """Hold the folder; yields the descriptor, which processes that work for the owner have to
    inherit.

    Raises:
        RunError: another process still holds it after `patience` seconds.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(descriptor, folder, patience)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, folder: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                owner = os.pread(descriptor, 32, 0).decode() or "unknown"
                raise RunError(
                    f"{folder}: another process (started by {owner}) computes this study; wait for it, or end it and start again"
                ) from None
            time.sleep(0.2)
