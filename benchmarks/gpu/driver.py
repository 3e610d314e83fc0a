"""Runs stages one after the other, each in a process and with a time limit of its own.

Records are lines of JSON that the stages append to one file themselves. Whatever ends a stage, or
this driver, what was measured until then is on disk. Only the standard library is imported here.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECORDS = "MAM_GPU_RECORDS"
"""Environment variable: the file that a stage appends its records to."""

STAGE = "MAM_GPU_STAGE"
"""Environment variable: the name of the stage."""

WAITS = "MAM_GPU_WAITS"
"""Environment variable: set where a stage is started early, and waits for its turn."""

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
    planned: float  # seconds
    seconds: float  # after which it is ended
    environment: dict[str, str] = field(default_factory=dict)
    needs_background: bool = False
    waits: bool = False
    """Whether the process calls ``wait_for_turn``: it imports while the stage before it runs."""


def append(path: Path, record: dict) -> None:
    """Append a record as one line, on disk when this returns."""
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def record(**values: object) -> None:
    """Called by a stage: append a record under its name."""
    append(Path(os.environ[RECORDS]), {"stage": os.environ[STAGE], **values})


def wait_for_turn() -> None:
    """Called by a stage that has imported what it needs, before it touches the device."""
    if os.environ.pop(WAITS, None):
        sys.stdin.readline()


def run(
    stages: Sequence[Stage], out: Path, seconds: float, background: Background | None = None
) -> list[dict]:
    """Run the stages within ``seconds``; the records that say how each of them ended.

    Args:
        stages: in their order. One that fails does not keep the next from running.
        out: folder of ``gpu.jsonl`` and of ``gpu.log``, what the processes printed.
        seconds: for all of them. Each gets the less of its own limit and what is left.
        background: started first. Stages that need it wait for it, and are left out if it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = out / "gpu.jsonl"
    end = time.monotonic() + seconds
    build = None if background is None else _Build(background, out / "gpu_build.log")
    endings = []
    running: dict[int, _Process] = {}
    try:
        for n, stage in enumerate(stages):
            began = time.monotonic()
            how = _obstacle(stage, end, build)
            if how is None:
                process = running.pop(n, None) or _Process(stage, out, build)
                running[n] = process
                process.go()
                following = stages[n + 1] if n + 1 < len(stages) else None
                if following is not None and following.waits and _is_ready(following, build):
                    running[n + 1] = _Process(following, out, build)
                how = process.ended(min(stage.seconds, end - time.monotonic()))
            if n in running:
                running.pop(n).stop()
            ending = {"stage": stage.name, "ended": how, "seconds": time.monotonic() - began}
            endings.append(ending)
            append(records, ending)
            print(f"{ending['stage']}: {ending['ended']} ({ending['seconds']:.0f} s)", flush=True)
    finally:
        for process in running.values():
            process.stop()
        if build is not None:
            build.stop()
    return endings


def _obstacle(stage: Stage, end: float, build: "_Build | None") -> str | None:
    """Why a stage is left out, or None; waits for the build where the stage needs it."""
    if stage.needs_background and (build is None or not build.finished(end)):
        return "left out: the build did not succeed"
    return "left out: no time left" if end - time.monotonic() < LEAST_SECONDS else None


def _is_ready(stage: Stage, build: "_Build | None") -> bool:
    return not stage.needs_background or (build is not None and build.is_done())


class _Process:
    """The process of a stage."""

    def __init__(self, stage: Stage, out: Path, build: "_Build | None") -> None:
        self.stage = stage
        self.log = open(out / "gpu.log", "ab", buffering=0)  # noqa: SIM115  # `stop` closes it
        environment = {**os.environ, **stage.environment}
        if stage.needs_background and build is not None:
            environment |= build.environment
        environment |= {RECORDS: str(out / "gpu.jsonl"), STAGE: stage.name}
        if stage.waits:
            environment[WAITS] = "1"
        self.process = subprocess.Popen(
            stage.command,
            env=environment,
            stdin=subprocess.PIPE if stage.waits else subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def go(self) -> None:
        """It is its turn."""
        self.log.write(f"== {self.stage.name}\n".encode())
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended before; that is told below
                self.process.stdin.write(b"\n")
                self.process.stdin.close()

    def ended(self, seconds: float) -> str:
        """How it ended, within ``seconds``."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"killed after {seconds:.0f} s"
        if status < 0:
            return f"crashed: {signal.Signals(-status).name}"
        return "ok" if status == 0 else f"failed: exit status {status}"

    def stop(self) -> None:
        """End it and all that it started."""
        _kill(self.process)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.log.close()


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

    def is_done(self) -> bool:
        """Whether it has ended well by now."""
        return self.process.poll() == 0

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
