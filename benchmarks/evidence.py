"""Brings the committed counts and measurements of GPU kernels to the package, whose
``backend=None`` chooses by them: python -m benchmarks.evidence

`python -m benchmarks.machine_code --write` and `make gpu` do the same at their end.
"""

import json
from pathlib import Path

from mam_kernels._core import evidence

from .results import COMMITTED

BACKENDS = ("triton", "cuda")


def bounds(results: Path = COMMITTED) -> dict[str, dict[str, float]]:
    """Path -> backend -> the least microseconds, by the count of the machine code; {} where there
    is none.
    """
    file = results / "machine_code.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text())["bounds_us"]
    for path in ("value_path", "inclusion"):
        forward, backward = found.get(path, {}), found.get(f"{path}_backward", {})
        both = {x: round(forward[x] + backward[x], 2) for x in forward if x in backward}
        if both:
            found[f"{path}_forward_backward"] = both
    return found


def measured(results: Path = COMMITTED) -> tuple[str, dict[str, dict[str, float]]] | None:
    """The GPU, and path -> backend -> microseconds on it; None where nothing was measured.

    Kernels by graph replay where that worked, else the call. A path that disagreed with float64
    has no time: its stage ended before.
    """
    file = results / "gpu.json"
    if not file.is_file():
        return None
    records = json.loads(file.read_text())
    devices = [r["environment"]["gpu"] for r in records if "gpu" in r.get("environment", {})]
    times: dict[str, dict[str, float]] = {}
    for record in records:
        if "as_called_us" in record and "path" in record and "shape" not in record:
            taken = record.get("replayed_us", record["as_called_us"])
            times.setdefault(record["path"], {})[record["backend"]] = round(taken, 2)
    return (devices[0]["name"], times) if devices and times else None


def collected(results: Path = COMMITTED) -> dict:
    """The content of the package's file."""
    needed = set(evidence.PATHS.values())

    def wanted(by_path: dict) -> dict:
        kept = {
            path: {name: by_path[path][name] for name in BACKENDS if name in by_path[path]}
            for path in sorted(needed & set(by_path))
        }
        return {path: by_backend for path, by_backend in kept.items() if by_backend}

    content = {"bound": {"device": "sm_90", "microseconds": wanted(bounds(results))}}
    if found := measured(results):
        content["measured"] = {"device": found[0], "microseconds": wanted(found[1])}
    return content


def write() -> None:
    """Write the package's file anew."""
    evidence.FILE.write_text(json.dumps(collected(), indent=2) + "\n")


if __name__ == "__main__":
    write()
    print(evidence.FILE.read_text(), end="")
