"""Counts the kernels; prints a table, and with ``--write`` commits the bounds to results/, and to
the package, which chooses by them.
"""

import argparse
import json
import sys
from pathlib import Path

from .. import evidence
from . import report, token_path
from .paths import PATHS
from .token_path import TOKEN_BOTH

RESULT = Path(__file__).parents[1] / "results" / "machine_code.json"
ARCHITECTURES = (90, 80, 100)


def bounds(names: list[str], backends: list[str], arch: int, with_loops: bool) -> dict:
    """``bounds_us`` and ``launches`` by path and backend; prints what they are made of."""
    found: dict[str, dict] = {"bounds_us": {}, "launches": {}}
    for path in PATHS:
        if names and path.name not in names:
            continue
        for backend in backends:
            rows = list(report.rows(path, backend, arch))
            if not rows:
                continue
            for row in rows:
                print(report.describe(row, path.sizes[path.batch], with_loops), flush=True)
            total = sum(row.launches * row.microseconds for row in rows)
            found["bounds_us"].setdefault(path.name, {})[backend] = round(total, 2)
            launches = sum(row.launches for row in rows)
            found["launches"].setdefault(path.name, {})[backend] = launches
            print(f"{path.name} {backend} sm_{arch}: {total:.2f} us, {launches} launches\n")
            if any(row.counted is not None and row.counted.unstated for row in rows):
                found.setdefault("unstated", []).append(f"{path.name} {backend}")
    return found


def other_sizes(arch: int) -> dict[str, dict]:
    """The token path by Triton at other sizes: its bound, and what a token costs there in bounds,
    products and bytes, over what it costs at the target size.
    """
    found: dict[str, dict] = {}
    for passes, with_gradient in (("token_path_forward", False), (TOKEN_BOTH.name, True)):
        usual: dict[str, float] = {}
        for name, path in token_path.other_sizes(with_gradient).items():
            rows = list(report.rows(path, "triton", arch))
            unstated = [x for row in rows if row.counted for x in row.counted.unstated]
            if unstated:
                raise ValueError(f"{name}: loops whose trips nobody states: {unstated}")
            tokens = path.sizes["B"] * path.sizes["L"]
            bound = sum(row.launches * row.microseconds for row in rows)
            costs = {
                "bound": bound / tokens,
                "products": report.total(rows, "tensor") / tokens,
                "bytes": report.total(rows, "bytes") / tokens,
            }
            usual = usual or costs
            found.setdefault(passes, {})[name] = {
                "bound_us": round(bound, 2),
                **{unit: round(cost / usual[unit], 3) for unit, cost in costs.items()},
                "launches": sum(row.launches for row in rows),
                "spilled_bytes": sum(row.local for row in rows),
            }
            print(f"{passes}, {name}: {found[passes][name]}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine_code", description=__doc__)
    parser.add_argument("paths", nargs="*", help="paths to count (default: all)")
    parser.add_argument("--backend", choices=("cuda", "triton"), action="append")
    parser.add_argument("--arch", type=int, default=90, help="90, 80 or 100; bounds are an H200's")
    parser.add_argument(
        "--other-sizes", action="store_true", help="the token path at other sizes alone"
    )
    parser.add_argument("--loops", action="store_true", help="print each loop and its trips")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    chosen = parser.parse_args()
    backends = chosen.backend or ["triton", "cuda"]
    if chosen.other_sizes:
        found = {"other_sizes": other_sizes(chosen.arch)}
    else:
        found = bounds(chosen.paths, backends, chosen.arch, chosen.loops)
    if found.get("unstated"):
        print("loops whose trips nobody states:", *found["unstated"], sep="\n  ")
        return 1
    if chosen.write:
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        for key, by_path in found.items():
            for path, by_backend in by_path.items():
                kept.setdefault(key, {}).setdefault(path, {}).update(by_backend)
        RESULT.write_text(json.dumps(kept, indent=2) + "\n")
        evidence.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
