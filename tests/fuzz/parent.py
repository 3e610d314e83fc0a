"""Drives children through the families, counts what they tried, and makes failures small."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .families import FAMILIES, PLANTED

ROOT = Path(__file__).resolve().parents[2]
CHUNK_SECONDS = 2.0  # a child answers this often
HANG_SECONDS = 120.0  # a case that takes longer is a failure
SHRINK_SECONDS = 20.0  # to make the first failure of a kind small


class Crash(Exception):
    """A child ended, or was ended after a time without an answer."""

    def __init__(self, ending: str, printed: str) -> None:
        super().__init__(ending)
        self.ending = ending
        self.printed = printed


class Child:
    """A process that runs cases; started when it is needed, and again after it had to be ended."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.process: subprocess.Popen | None = None
        self.current = folder / "current"
        self.errors = folder / "errors"

    def _start(self) -> None:
        self.current.write_bytes(bytes(8))
        paths = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": paths,
                "TMPDIR": str(self.folder),
                **self.environment,
            },
            start_new_session=True,  # so that it can be ended with the server that it forks
        )

    def ask(self, request: dict[str, Any], patience: float = HANG_SECONDS) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            Crash: what it ran ended the process, or took too long.
        """
        if self.process is None:
            self._start()
            patience += HANG_SECONDS  # torch is being imported
        printed_before = self.errors.stat().st_size
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line, until = b"", time.monotonic() + patience
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0.0))
            part = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not part:
                self.stop()
                ending = "ended" if ready else f"no answer within {HANG_SECONDS:.0f} s"
                raise Crash(ending, self._printed(printed_before))
            line += part
        answer = json.loads(line)
        if "crash" in answer:
            raise Crash(answer["crash"], self._printed(printed_before))
        return answer

    def _printed(self, start: int) -> str:
        return self.errors.read_bytes()[start:].decode(errors="replace")

    def number(self) -> int:
        """Of the case that was being run."""
        return int.from_bytes(self.current.read_bytes()[:8], "little")

    def stop(self) -> None:
        """End the process, and the server that it forked."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


@dataclass
class Failure:
    """What went wrong, the first time that it did."""

    family: str
    number: int
    error: str
    told: list[str] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    traceback: str = ""
    count: int = 1
    small: bool = False

    def __str__(self) -> str:
        lines = [f"FAILED {self.family}, {self.count} x: {self.error}", *self.told]
        lines.append(f"  python -m tests.fuzz --case {self.family}:{self.number}")
        if self.choices:
            which = "made smaller" if self.small else "by its choices"
            lines.append(f"  the same, {which}: --case {self.family}:{short(self.choices)}")
        return "\n".join(lines)


def short(choices: Iterable[int]) -> str:
    """Choices as one word, without the zeros at its end."""
    listed = list(choices)
    while listed and listed[-1] == 0:
        listed.pop()
    return ".".join(map(str, listed)) + "."


class Run:
    """All that was tried and found."""

    def __init__(self, seed: int, environment: dict[str, str], *, shrink: bool = True) -> None:
        self.seed = seed
        self.shrink = shrink
        self.tried: Counter[str] = Counter()
        self.endings: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failures: dict[tuple[str, str], Failure] = {}
        self.chunks = 0
        self.label = ""
        self._next: dict[str, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="mam-fuzz-")
        self.child = Child(Path(self._folder.name), environment)

    def close(self) -> None:
        """End the child."""
        self.child.stop()
        self._folder.cleanup()

    def use(self, environment: dict[str, str]) -> None:
        """From now on in a child with this environment."""
        self.child.stop()
        self.child = Child(Path(self._folder.name), environment)

    def go(
        self, names: Iterable[str], seconds: float, *, label: str = "", say: bool = True
    ) -> None:
        """Run the families in turn, each for its share of the time, and at least once.

        Args:
            names: of the families.
            seconds: in all.
            label: put before their names in the table.
            say: print a line now and then.
        """
        names = list(names)
        self.label = label
        nothing = {"family": names[0], "first": 0, "seconds": 0.0, "most": 0}
        self.child.ask(nothing, 5 * HANG_SECONDS)  # its start is on nobody's account
        start = time.monotonic()
        shares = {name: {**FAMILIES, **PLANTED}[name][1] for name in names}
        said = start
        chunk = min(CHUNK_SECONDS, seconds / (2 * len(names)))
        # every family at least once, however slow the machine is
        while (now := time.monotonic()) - start < seconds or not all(
            self.tried[label + name] for name in names
        ):
            # the family that is furthest behind its share
            name = min(names, key=lambda each: self.seconds[label + each] / shares[each])
            self._chunk(name, min(chunk, max(seconds - (now - start), 0.1)))
            if say and time.monotonic() - said > 15:
                said = time.monotonic()
                print(self.progress(said - start), flush=True)

    def _chunk(self, name: str, seconds: float) -> None:
        first = self._next.setdefault(name, self.seed)
        # one chunk of four runs with more threads than one
        threads = 3 if self.chunks % 4 == 3 else 1
        self.chunks += 1
        request = {
            "family": name, "first": first, "seconds": seconds, "most": 10**9, "threads": threads
        }  # fmt: skip
        start = time.monotonic()
        try:
            answer = self.child.ask(request, seconds + HANG_SECONDS)
        except Crash as crash:
            number = max(self.child.number(), first)
            self._next[name] = number + 1
            self.tried[self.label + name] += number + 1 - first
            self.endings[self.label + name, "crashed"] += 1
            self._crashed(name, number, crash)
        else:
            self._next[name] = answer["next"]
            self.tried[self.label + name] += answer["next"] - first
            for ending, count in answer["endings"].items():
                self.endings[self.label + name, ending] += count
            for kind, entry in answer["failures"].items():
                self._failed(name, kind, entry)
        self.seconds[self.label + name] += time.monotonic() - start

    def _failed(self, name: str, kind: str, entry: dict[str, Any]) -> None:
        known = self.failures.get((name, kind))
        if known is not None:
            known.count += entry["count"]
            return
        failure = Failure(name, **entry)
        self.failures[name, kind] = failure
        self._found(failure, kind)

    def _crashed(self, name: str, number: int, crash: Crash) -> None:
        kind = crash_kind(crash)
        known = self.failures.get((name, kind))
        if known is not None:
            known.count += 1
            return
        watched = self.child.folder / "watched"
        watched.unlink(missing_ok=True)
        again, *_ = self._outcome({"family": name, "number": number})
        error = f"{kind}" + ("" if again == kind else " (not when it is run by itself)")
        failure = Failure(name, number, error, traceback=crash.printed[-3000:])
        if watched.exists():
            seen = json.loads(watched.read_text())
            failure.told, failure.choices = seen["told"], seen["choices"]
        self.failures[name, kind] = failure
        self._found(failure, kind)

    def _found(self, failure: Failure, kind: str) -> None:
        if self.shrink and failure.choices:
            small = self._shrunk(failure, kind)
            _, failure.told, said = self._outcome({"family": failure.family, "choices": small})
            failure.choices, failure.small = small, True
            failure.error = said or failure.error
        print(failure, flush=True)
        if failure.traceback:
            print(failure.traceback, flush=True)

    def _outcome(self, request: dict[str, Any]) -> tuple[str, list[str], str]:
        """The kind of failure of one case, or how it ended; what it called; and the error."""
        watched = self.child.folder / "watched"
        try:
            answer = self.child.ask(request)
        except Crash as crash:
            calls = json.loads(watched.read_text())["told"] if watched.exists() else []
            return crash_kind(crash), calls, ""
        for kind, entry in answer["failures"].items():
            return kind, answer["told"], entry["error"]
        return answer["ending"], answer["told"], ""

    def _shrunk(self, failure: Failure, kind: str) -> list[int]:
        """Smaller choices that fail in the same way."""
        until = time.monotonic() + SHRINK_SECONDS
        best = list(failure.choices)

        def fails(choices: list[int]) -> bool:
            if time.monotonic() > until:
                return False
            return self._outcome({"family": failure.family, "choices": choices})[0] == kind

        for smaller in (lambda x: 0, lambda x: x // 2, lambda x: x - 1):
            for i in range(len(best)):
                while best[i] and fails([*best[:i], smaller(best[i]), *best[i + 1 :]]):
                    best[i] = smaller(best[i])
        return best

    def progress(self, seconds: float) -> str:
        """One line while it runs."""
        total = sum(self.tried.values())
        rate = total / max(sum(self.seconds.values()), 1e-9)
        kinds = len(self.failures)
        return f"{seconds:6.0f} s: {total:,} inputs, {rate:,.0f} a second; {kinds} kinds of failure"

    def table(self) -> str:
        """What was tried, family by family."""
        lines = []
        for name in sorted(self.tried):
            endings = {e: n for (family, e), n in self.endings.items() if family == name}
            spelled = ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))
            rate = self.tried[name] / max(self.seconds[name], 1e-9)
            lines.append(f"{name:28}{self.tried[name]:>12,} inputs {rate:>7,.0f}/s   {spelled}")
        lines.append(f"{'in all':28}{sum(self.tried.values()):>12,} inputs")
        return "\n".join(lines)


def crash_kind(crash: Crash) -> str:
    """What crashes have in common: the signal, and what the sanitizer says."""
    lines = [line for line in crash.printed.splitlines() if "ERROR: AddressSanitizer" in line]
    frames = [line.split(" in ")[-1].split("(")[0].strip() for line in crash.printed.splitlines()
              if line.lstrip().startswith("#0")]  # fmt: skip
    words = lines[0].split("AddressSanitizer:")[-1].split()[0] if lines else ""
    return " ".join(["crash", crash.ending, words, *frames[:1]]).strip()
