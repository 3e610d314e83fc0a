"""Runs the tests that need no GPU, in groups that need processes of their own, two at a time;
then sums up.

    python tests/run_groups.py [GROUP ...] [--jobs 2]

Triton decides at its import whether to interpret, so its kernels are interpreted in one process and
compiled in another; the CUDA kernels, compiled for the host, take the place of the real ones in a
third, and once more with a detector of races (tests/cuda_shim/races.cpp).

A group computes with one thread, and the kernels of the CPU with two.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ("passed", "failed", "error", "errors", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True)
class Group:
    """One pytest process: what it runs, and in which environment."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a group ended."""

    group: Group
    status: int
    counts: dict[str, int]
    seconds: float
    failed: tuple[str, ...] = ()  # the tests that failed, as pytest's summary names them

    @property
    def good(self) -> bool:
        """Whether nothing failed; a group without a single test does not end with 0."""
        return self.status == 0


RACES = " and ".join(  # each kernel once, on small rows: the detector is slow
    f"not {name}"
    for name in ("float16", "bfloat16", "registered", "proportion", "compiles", "two_runs")
)
TRITON_COMPILED = "tests/engine/test_triton_aot.py"
CUDA_COMPILED = "tests/engine/test_cuda_compile.py"
COUNTED = "tests/engine/test_machine_code.py"  # takes what the tests before it compiled
GROUPS = (  # the longest first, so that both cores end at about the same time
    Group("single-cell layer", ("tests/scmam",)),
    Group("triton, compiled", (TRITON_COMPILED, COUNTED, "-k", "not cuda")),
    Group(
        "engine",
        (
            "tests/engine",
            *(f"--ignore={path}" for path in (TRITON_COMPILED, CUDA_COMPILED, COUNTED)),
        ),
    ),
    Group(
        "repository",
        (
            "tests",
            *(f"--ignore=tests/{name}" for name in ("conformance", "engine", "fuzz")),
            *(f"--ignore=tests/{name}" for name in ("integrations", "scmam")),
        ),
    ),
    Group(
        "triton, interpreted",
        ("tests/conformance",),
        {"TRITON_INTERPRET": "1", "MAM_TEST_BACKENDS": "triton"},
    ),
    Group("cuda, compiled", (CUDA_COMPILED, COUNTED, "-k", "cuda")),
    Group(
        "cuda, races",
        ("tests/conformance", "-k", RACES),
        {"MAM_TEST_BACKENDS": "cuda-shim", "MAM_SHIM_RACES": "1"},
    ),
    Group("cuda, on the host", ("tests/conformance",), {"MAM_TEST_BACKENDS": "cuda-shim"}),
    Group("fuzz", ("tests/fuzz",)),
    Group("integrations", ("tests/integrations",)),
    Group(
        "reference and cpu",
        ("tests/conformance",),
        {"MAM_TEST_BACKENDS": "reference,cpu", "OMP_NUM_THREADS": "2"},
    ),
)
QUICK = Group(
    "quick",
    (
        *(f"tests/engine/test_{name}.py" for name in ("modules", "dispatch", "errors", "import")),
        "tests/conformance",
        *("-m", "not slow", "-k", "not float16 and not bfloat16"),
    ),
    {"OMP_NUM_THREADS": "2"},
)
"""For the loop of work; every test of it is in another group too."""

_printing = threading.Lock()


def run(group: Group) -> Outcome:
    """Run a group, passing on its output line by line under its name."""
    command = [sys.executable, "-m", "pytest", "-q", "--durations=3", *group.arguments]
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            # No test needs a plugin, and those that are installed take a second of every start.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **os.environ,
            **group.environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last, failed = "", []
    for line in process.stdout:
        last = line if line.strip() else last
        if line.startswith(("FAILED ", "ERROR ")):
            failed.append(line.strip())
        with _printing:
            print(f"[{group.name}] {line}", end="", flush=True)
    status, seconds = process.wait(), time.monotonic() - start
    return Outcome(group, status, counted(last), seconds, tuple(failed))


def counted(summary: str) -> dict[str, int]:
    """The counts in pytest's closing line, such as "3 failed, 40 passed, 2 skipped in 7.1s"."""
    return {
        name: int(count) for count, name in re.findall(rf"(\d+) ({'|'.join(COUNTS)})\b", summary)
    }


def report(outcomes: list[Outcome]) -> str:
    """A line for each group, one for each test that failed, and the sum of all."""
    lines = []
    for outcome in outcomes:
        counts = (
            ", ".join(f"{count} {name}" for name, count in outcome.counts.items()) or "no test ran"
        )
        verdict = "ok    " if outcome.good else f"FAILED (exit status {outcome.status})"
        lines.append(f"{verdict} {outcome.group.name}: {counts} in {outcome.seconds:.0f} s")
        lines += [f"    {line}" for line in outcome.failed]
    total = {name: sum(outcome.counts.get(name, 0) for outcome in outcomes) for name in COUNTS}
    # A group that ended without a failing test, in a crash say, still counts as one failure.
    silent = sum(
        not outcome.good and not (set(outcome.counts) & {"failed", "error", "errors"})
        for outcome in outcomes
    )
    failed = total["failed"] + total["error"] + total["errors"] + silent
    return "\n".join(
        [*lines, f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped"]
    )


def main() -> int:
    """Run the groups named on the command line, or all; returns the exit status."""
    names = "; ".join(group.name for group in (*GROUPS, QUICK))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"any of: {names}; default: all but the last",
    )
    parser.add_argument("--jobs", type=int, default=2, help="groups at a time (default: 2)")
    options = parser.parse_args()
    unknown = set(options.groups) - {group.name for group in (*GROUPS, QUICK)}
    if unknown:
        parser.error(f"unknown group: {', '.join(sorted(unknown))}")
    if options.groups:
        chosen = [group for group in (*GROUPS, QUICK) if group.name in options.groups]
    else:
        chosen = list(GROUPS)
    # Started in the background of a script, this process ignores Ctrl-C, and so would the tests of
    # it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(run, chosen))
    print("\n" + report(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
