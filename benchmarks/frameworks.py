"""Masking's share of a framework's own training step: its real class at its published width and
length, two layers deep, with the masking of its page and without.

    python -m benchmarks.frameworks scgpt scvi-tools        # installed in this environment
    python -m benchmarks.frameworks scbert --sources FOLDER # checkouts, each under its own name

A published model has more layers, so its share is smaller: what is measured is a bound. The step
is forward and backward; steps with and without masking, and masking alone, take turns in one
process on one thread. Cells are made up: a tenth of their genes is expressed.
"""

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mam_kernels.integrations.core import PENALTY
from mam_kernels.testing import machine

from . import results
from .framework_steps import CASES, Case

ROUNDS, SECONDS = 9, 150


def measured(case: Case) -> dict[str, Any]:
    """Median milliseconds of a step with masking and without, and of masking alone."""
    fixed, made = case.mask()
    fixed = fixed._replace(encoder_shift=None, decoder_shift=None, penalty=torch.zeros(()))
    parameters = [*case.model.parameters(), *case.masking.parameters()]

    def backward(loss: Tensor) -> None:
        loss.backward()
        for parameter in parameters:
            parameter.grad = None

    def without() -> None:
        backward(case.loss(fixed, made))

    def with_masking() -> None:
        masked, read = case.mask()
        places: AbstractContextManager = masked.injected(**case.places)
        with places:
            loss = case.loss(masked, read)
        backward(loss + PENALTY * masked.penalty)

    def alone() -> None:
        masked, _ = case.mask()
        shifts = [x for x in (masked.encoder_shift, masked.decoder_shift) if x is not None]
        backward(PENALTY * masked.penalty + sum(shift.sum() for shift in shifts))

    contenders = {"step": without, "masked_step": with_masking, "masking": alone}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    end = time.perf_counter() + SECONDS
    while len(taken["step"]) < 3 or (len(taken["step"]) < ROUNDS and time.perf_counter() < end):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            taken[name].append((time.perf_counter() - start) * 1e3)
    medians = {f"{name}_ms": statistics.median(times) for name, times in taken.items()}
    return {
        "what": case.what, **medians, "share": medians["masking_ms"] / medians["step_ms"],
        "ratio": statistics.median(
            ours / theirs for ours, theirs in zip(taken["masked_step"], taken["step"], strict=True)
        ),
        "rounds": len(taken["step"]),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frameworks", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help="default: all")
    parser.add_argument("--sources", type=Path, default=Path(), help="a folder of checkouts")
    parser.add_argument("--out", type=Path, help="folder for frameworks.json")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    target = results.folder(chosen.out)
    path = target / "frameworks.json"
    measured_now = {}
    for name in chosen.frameworks or CASES:
        build, checkout = CASES[name]
        torch.manual_seed(0)
        record = measured(build(None if checkout is None else chosen.sources / checkout))
        measured_now[name] = record
        print(
            f"{name:14} {record['what']}: masking {record['masking_ms']:.1f} ms, step "
            f"{record['step_ms']:,.0f} ms, {record['share']:.2%}; with masking x "
            f"{record['ratio']:.3f}",
            flush=True,
        )
    before = json.loads(path.read_text())["frameworks"] if path.exists() else {}
    records = before | measured_now
    results.save(target, "frameworks", {}, frameworks=records, environment=machine.environment())
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
