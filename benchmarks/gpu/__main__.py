"""Check and measure every GPU kernel: python -m benchmarks.gpu [--out FOLDER] [--seconds 420].

Triton comes first, since it needs no build; the CUDA kernels are built meanwhile. With --rehearse
all of it runs on a CPU at tiny sizes: Triton by its interpreter, CUDA on the host shim.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .. import evidence
from . import PATHS, driver, launch_shapes
from .driver import Background, Stage

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REHEARSAL = ROOT / "build" / "gpu_rehearsal"


SECONDS = 420.0
"""For all stages together: what is planned of them adds up to less."""

SLACK = 2.5
"""A stage may take so many times as long as it is planned to before it is ended."""

INTERPRETED = 20
"""So many times as long again where interpreters stand in for the device."""


def plan(rehearse: bool) -> tuple[list[Stage], Background]:
    """The stages in their order, and the build beside them."""
    where = ["--device=cpu", "--tiny"] if rehearse else ["--device=cuda"]
    environment = {
        "triton": {"TRITON_INTERPRET": "1"} if rehearse else {},
        "cuda": {},
    }

    def stage(
        title: str, name: str, planned: float, backend: str = "triton", **options: str
    ) -> Stage:
        command = [sys.executable, "-m", "benchmarks.gpu.stages", name, f"--backend={backend}"]
        command += [*where, *(f"--{key}={value}" for key, value in options.items())]
        tests = {"MAM_TEST_BACKENDS": backend, "MAM_TEST_DEVICE": "cpu" if rehearse else "cuda"}
        return Stage(
            title,
            command,
            planned,
            SLACK * planned * (INTERPRETED if rehearse else 1),
            environment[backend] | tests,
            needs_background=backend == "cuda",
            waits=True,
        )

    stages = [stage("machine", "machine", 15)]
    for backend in ("triton", "cuda"):
        stages += [
            stage(f"{path}, {backend}", "kernel", _seconds(path), backend, path=path)
            for path in PATHS
        ]
    stages.append(stage("rivals", "rivals", 20))
    stages += [
        stage(f"profile, {path}, {backend}", "profile", 8, backend, path=path)
        for backend in ("triton", "cuda")
        for path in ("value_path_forward_backward", "token_path_forward_backward")
    ]
    stages += [
        stage(f"launch shape {n}, {path}", "shape", 6, path=path, alternative=str(n))
        for path, alternatives in launch_shapes.ALTERNATIVES.items()
        for n in range(len(alternatives))
    ]
    stages += [
        stage(f"ncu, {path}", "under_tool", 12, "cuda", path=path, tool="ncu")
        for path in ("selection", "value_path", "token_path_forward")
    ]
    for backend in ("triton", "cuda"):
        stages += [
            stage(f"{tool}, {backend}", "under_tool", 14, backend, tool=tool)
            for tool in ("memcheck", "racecheck")
        ]
        stages.append(stage(f"two runs, {backend}", "twice", 8, backend))
    stages += [
        stage(f"conformance, {backend}", "conformance", 35, backend)
        for backend in ("triton", "cuda")
    ]
    return stages, _build(rehearse)


def _seconds(path: str) -> float:
    """What checking and timing a path is planned to take."""
    by_kind = {"inclusion": 5.5, "token": 10.0}
    return next((seconds for kind, seconds in by_kind.items() if path.startswith(kind)), 8.0)


def _build(rehearse: bool) -> Background:
    if rehearse:
        command = [sys.executable, str(ROOT / "tests" / "cuda_shim" / "build.py")]
        return Background(command, 600, output_variable="MAM_CUDA_EXTENSION")
    archs = os.environ.get("MAM_CUDA_ARCHS") or _capability()
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return Background(command, 240, {"MAM_WITH_CUDA": "1", "MAM_CUDA_ARCHS": archs})


def _capability() -> str:
    if shutil.which("nvidia-smi") is None:
        return "90"
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return found[0].replace(".", "") if found else "90"


def table(records: list[dict]) -> str:
    """What was measured, a line each."""
    lines = [f"{'path':32}{'backend':10}{'replayed':>10}{'called':>10}{'bound':>9}{'over':>7}"]
    timed = [record for record in records if "as_called_us" in record]
    # the last record of a path holds what those before it held
    last = {
        (record["path"], record["backend"]): record
        for record in timed
        if "path" in record and "shape" not in record
    }
    for (path, backend), record in last.items():
        cells = [
            _number(record.get(key), unit)
            for key, unit in (
                ("replayed_us", 10), ("as_called_us", 10), ("bound_us", 9), ("over_bound", 7)
            )
        ]  # fmt: skip
        lines.append(f"{path:32}{backend:10}{''.join(cells)}")
    for title, times in [
        *((record["rival"], record) for record in timed if "rival" in record),
        *_shapes(timed).items(),
    ]:
        replayed, called = (_number(times.get(f"{x}_us"), 10) for x in ("replayed", "as_called"))
        lines.append(f"{title:72}{replayed}{called}")
    bad = [record for record in records if record.get("ended", "ok") != "ok"]
    lines += [f"{record['stage']}: {record['ended']}" for record in bad]
    return "\n".join(lines)


def _shapes(timed: list[dict]) -> dict[str, dict]:
    """The last record of each launch shape."""
    return {
        f"{record['path']}, {record['kernel']} {record['shape']}": record
        for record in timed
        if "shape" in record
    }


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.1f}"


def main(arguments: list[str] | None = None) -> int:
    """Run every stage; 1 if one of them did not end well."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder (default: $OUT, or benchmarks/results; of a rehearsal build/gpu_rehearsal)",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all (default: 420)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--only", default="", help="stages whose name has this in it")
    chosen = parser.parse_args(arguments)
    usual = REHEARSAL if chosen.rehearse else Path(os.environ.get("OUT") or RESULTS)
    out = (chosen.out or usual).resolve()
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    stages, background = plan(chosen.rehearse)
    stages = [stage for stage in stages if chosen.only in stage.name]
    needed = any(stage.needs_background for stage in stages)
    (out / "gpu.jsonl").unlink(missing_ok=True)
    endings = driver.run(stages, out, chosen.seconds, background if needed else None)
    records = driver.read(out / "gpu.jsonl")
    (out / "gpu.json").write_text(json.dumps(records, indent=1) + "\n")
    if out == RESULTS and not chosen.only:
        evidence.write()
    print("\n" + table(records))
    return int(any(ending["ended"] != "ok" for ending in endings))


if __name__ == "__main__":
    raise SystemExit(main())
