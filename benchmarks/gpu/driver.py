"""Runs stages one after the other, each in a process and with a time limit of its own.

Records are lines of JSON that the stages append to one file themselves. Whatever ends a stage, or
this driver, what was measured until then is on disk. Only the standard library is imported here.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECORDS = "MAM_GPU_RECORDS"
"""Environment variable: the file that a stage appends its records to."""

STAGE = "MAM_GPU_STAGE"
"""Environment variable: the name of the stage."""

LEAST_SECONDS = 3.0
"""A stage with less time left than this is not started."""


@dataclass(frozen=True)
class Background:
    """A command that runs beside the first stages, such as a build."""

    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    output_variable: str | None = None
    """Environment variable of the stages that need it: the last line that the command printed."""


@dataclass(frozen=True)
class Stage:
    """A process that measures or checks something."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    needs_background: bool = False


def append(path: Path, record: dict) -> None:
    """Append a record as one line, on disk when this returns."""
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def record(**values: object) -> None:
    """Called by a stage: append a record under its name."""
    append(Path(os.environ[RECORDS]), {"stage": os.environ[STAGE], **values})


def run(
    stages: Iterable[Stage], out: Path, seconds: float, background: Background | None = None
) -> list[dict]:
    """Run the stages within ``seconds``; the records that say how each of them ended.

    Args:
        stages: in their order. One that fails does not keep the next from running.
        out: folder of ``gpu.jsonl`` and of ``gpu.log``, what the processes printed.
        seconds: for all of them. Each gets the less of its own limit and what is left.
        background: started first. Stages that need it wait for it, and are left out if it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    records, log = out / "gpu.jsonl", out / "gpu.log"
    end = time.monotonic() + seconds
    build = None if background is None else _Build(background, out / "gpu_build.log")
    endings = []
    try:
        for stage in stages:
            ending = _run_stage(stage, records, log, end, build)
            endings.append(ending)
            append(records, ending)
            print(f"{ending['stage']}: {ending['ended']} ({ending['seconds']:.0f} s)", flush=True)
    finally:
        if build is not None:
            build.stop()
    return endings


def _run_stage(stage: Stage, records: Path, log: Path, end: float, build: "_Build | None") -> dict:
    began = time.monotonic()

    def ended(how: str) -> dict:
        return {"stage": stage.name, "ended": how, "seconds": time.monotonic() - began}

    environment = dict(stage.environment)
    if stage.needs_background:
        if build is None or not build.finished(end):
            return ended("left out: the build did not succeed")
        environment |= build.environment
    left = end - time.monotonic()
    if left < LEAST_SECONDS:
        return ended("left out: no time left")
    limit = min(stage.seconds, left)
    with open(log, "a") as file:
        file.write(f"== {stage.name}\n")
        file.flush()
        process = subprocess.Popen(
            stage.command,
            env={**os.environ, **environment, RECORDS: str(records), STAGE: stage.name},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            _kill(process)
            return ended(f"killed after {limit:.0f} s")
        finally:
            _kill(process)
    if status < 0:
        return ended(f"crashed: {signal.Signals(-status).name}")
    return ended("ok" if status == 0 else f"failed: exit status {status}")


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


class _Build:
    """A background command and how it ended."""

    def __init__(self, background: Background, log: Path) -> None:
        self.background, self.log = background, log
        self.end = time.monotonic() + background.seconds
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                background.command,
                env={**os.environ, **background.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finished(self, end: float) -> bool:
        """Wait for it, until ``end`` at the latest; whether it succeeded."""
        try:
            status = self.process.wait(max(0.0, min(self.end, end) - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(self.process)
            return False
        return status == 0

    @property
    def environment(self) -> dict[str, str]:
        """What the stages that need it are told."""
        if self.background.output_variable is None:
            return {}
        lines = self.log.read_text().splitlines()
        return {self.background.output_variable: lines[-1] if lines else ""}

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            _kill(self.process)


def read(path: Path) -> list[dict]:
    """All records; a last line that was cut short is left out."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
