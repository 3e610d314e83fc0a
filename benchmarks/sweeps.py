"""How the cost of a masking step grows: with the positions, the cells, the density, the latents'
heads and the share that is hidden.

    python -m benchmarks.sweeps             # some minutes on two cores; writes results/sweeps.*
    python -m benchmarks.sweeps --help

One size changes at a time, the others are the published ones. Values dense and sparse, forward and
with gradients, in one process and in turns. The rates of the machine are measured beside them:
bytes copied, exponentials and multiply-adds a second.
"""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import mam_kernels as mam
from mam_kernels.testing import machine, measure
from mam_kernels.testing.agreement import forward, forward_backward
from mam_kernels.testing.measure import Contender

from . import results, workloads

LAYOUTS = ("dense", "CSR")
DIRECTIONS = {"forward": forward, "forward + backward": forward_backward}


@dataclass(frozen=True)
class Point:
    """The sizes of a masking step; by default the published ones."""

    positions: int = 19264
    cells: int = 8
    density: float = 0.08
    slopes: int = 1024  # latents times heads, of which there are eight
    ratio: float = 0.3

    @property
    def nonzeros(self) -> float:
        """Values of a cell that are not zero, about."""
        return self.positions * self.density


AXES: dict[str, tuple[str, tuple]] = {
    "positions": ("positions L", (256, 1024, 4096, 10000, 19264, 40000, 60000)),
    "cells": ("cells a call B", (1, 2, 4, 8, 16, 32, 64)),
    "density": ("share of the values that is not zero", (0.02, 0.05, 0.08, 0.16, 0.32, 0.64, 1.0)),
    "slopes": ("latents × heads", (64, 256, 1024, 4096)),
    "ratio": ("share that is hidden", (0.02, 0.15, 0.3, 0.6, 0.9)),
}


def points(axis: str, base: Point, most_positions: int) -> list[Point]:
    """The points of an axis; a `base` of few positions bounds those of every axis, for tests."""
    values = [value for value in AXES[axis][1] if axis != "positions" or value <= most_positions]
    return [replace(base, **{axis: value}) for value in values]


def contenders(point: Point, backend: str | None) -> dict[tuple[str, str], Contender]:
    """What is timed at a point, by layout and direction; input sets take turns, two of them at
    least.
    """
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        None, 256, point.slopes // 8, 8, mask_ratio=point.ratio, backend=backend
    )
    dense = measure.input_sets(
        lambda seed: (workloads.cells(point.cells, point.positions, point.density, seed=seed),),
        point.cells * point.positions * 4,
        limit=4,
    )
    inputs = {"dense": dense, "CSR": [(tokens.to_sparse_csr(),) for (tokens,) in dense]}
    return {
        (layout, what): Contender(step(module), inputs[layout])
        for layout in LAYOUTS
        for what, step in DIRECTIONS.items()
    }


def measured(axis: str, point: Point, backend: str | None, samples: int) -> list[dict[str, Any]]:
    """The times of a point, as plain data."""
    timed = {
        f"{layout}, {what}": contender
        for (layout, what), contender in contenders(point, backend).items()
    }
    timings = measure.time_interleaved(timed, samples=samples)
    return [
        {
            "axis": axis,
            "value": getattr(point, axis),
            "what": name,
            **vars(point),
            **timing.record(point.cells),
        }
        for name, timing in timings.items()
    ]


def ceilings(seconds: float = 0.5) -> dict[str, float]:
    """What this machine reaches on torch's threads: bytes a second copied in memory, exponentials
    and multiply-adds a second in cache.
    """
    large, small, square = torch.zeros(2**26), torch.linspace(-1, 1, 2**15), torch.rand(768, 768)
    target, out, product = (
        torch.empty_like(large),
        torch.empty_like(small),
        torch.empty_like(square),
    )
    calls = {
        "copied_bytes": (lambda: target.copy_(large), 2 * large.nbytes),
        "exponentials": (lambda: torch.exp(small, out=out), small.numel()),
        "multiply_adds": (lambda: torch.mm(square, square, out=product), 768**3),
    }
    timings = measure.time_interleaved(
        {name: Contender(lambda call=call: call()) for name, (call, _) in calls.items()},
        seconds=seconds,
    )
    return {name: units / timings[name].median for name, (_, units) in calls.items()}


def slope_of(rows: list[dict[str, Any]], size: str) -> dict[str, float]:
    """Least squares of microseconds a call by ``a + b size``: the fixed cost a, b, and how much of
    the variance the line explains.
    """
    x = torch.tensor([float(row[size]) for row in rows], dtype=torch.float64)
    y = torch.tensor([row["median_us"] * row["cells"] for row in rows], dtype=torch.float64)
    # Relative errors, so that small sizes count as well.
    design = torch.stack([torch.ones_like(x), x], dim=1) / y[:, None]
    fixed, each = torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution[:, 0].tolist()
    worst = float(((fixed + each * x) / y - 1).abs().max())
    return {"fixed_us": fixed, "us_each": each, "largest_relative_error": worst}


def lines(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """For the axes along which the cost should be a line, its fit for each layout and direction."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for axis in ("positions", "cells"):
        for name in dict.fromkeys(row["what"] for row in rows):
            some = [row for row in rows if row["axis"] == axis and row["what"] == name]
            if len(some) > 2:
                found.setdefault(axis, {})[name] = slope_of(some, axis)
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The curves, an axis each: microseconds a cell, on logarithmic scales; the bars are the middle
    60 % of the samples.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(AXES), figsize=(4 * len(AXES), 3.6), sharey=True, layout="constrained"
    )
    for panel, (axis, (label, _)) in zip(panels, AXES.items(), strict=True):
        for name in dict.fromkeys(row["what"] for row in rows):
            some = [row for row in rows if row["axis"] == axis and row["what"] == name]
            middle = [row["median_us"] for row in some]
            spread = [
                [row["median_us"] - row["p20_us"] for row in some],
                [row["p80_us"] - row["median_us"] for row in some],
            ]
            style = {
                "linestyle": "-" if name.endswith("forward") else "--",
                "marker": "o",
                "markersize": 3,
                "capsize": 2,
            }
            color = "#1b6ca8" if name.startswith("dense") else "#c8553d"
            panel.errorbar(
                [row["value"] for row in some], middle, spread, label=name, color=color, **style
            )
        panel.set(xlabel=label, xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both", linewidth=0.4)
    panels[0].set_ylabel("µs a cell")
    panels[-1].legend(frameon=False, fontsize=8)
    plt.rcParams["svg.hashsalt"] = "mam-kernels"
    unfinished = path.with_suffix(".partial")
    figure.savefig(unfinished, format="svg", metadata={"Date": None})
    os.replace(unfinished, path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Sweep from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: $OUT, or benchmarks/results)"
    )
    parser.add_argument("--backend", help="default: the first that runs")
    parser.add_argument("--axes", default=",".join(AXES), help="default: all")
    parser.add_argument("--samples", type=int, default=7, help="of each time, in turns; default: 7")
    parser.add_argument(
        "--most-positions",
        type=int,
        default=60000,
        help="larger sizes are left out; default: 60000",
    )
    options = parser.parse_args(arguments)
    target = results.folder(options.out)
    base = replace(Point(), positions=min(Point.positions, options.most_positions))
    chosen = options.axes.split(",")
    if unknown := sorted({*chosen} - {*AXES}):
        parser.error(f"--axes: expected some of {', '.join(AXES)}; got {', '.join(unknown)}")
    rows = []
    for axis in chosen:
        for point in points(axis, base, options.most_positions):
            rows += measured(axis, point, options.backend, options.samples)
            last = {row["what"]: f"{row['median_us']:,.1f}" for row in rows[-4:]}
            print(
                f"{axis} {getattr(point, axis):>8}: "
                + "; ".join(f"{name} {time} us a cell" for name, time in last.items()),
                flush=True,
            )
    target.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": machine.environment(),
        "ceilings": ceilings(),
        "lines": lines(rows),
        "rows": rows,
    }
    unfinished = target / "sweeps.partial"
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, target / "sweeps.json")
    if {*chosen} == {*AXES}:
        draw(rows, target / "sweeps.svg")
    print(json.dumps({"ceilings": content["ceilings"], "lines": content["lines"]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
