"""Finds the fastest configuration of the Triton kernels that give each row a program, on the GPU at
hand.

    python -m benchmarks.tune [--out FILE] [--seconds 60] [--positions 2048 20000 60000]

Every candidate must give the masks of the default; the fastest replaces what
`mam_kernels/_core/row_configurations.json` keeps of this GPU.
"""

import argparse
import datetime
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import row_configurations
from mam_kernels._core.row_configurations import KERNELS, Measured, RowConfiguration
from mam_kernels.testing import measure
from mam_kernels.testing.measure import Contender

from . import workloads

CELLS = 512
# Warps, and registers a thread such that a multiprocessor holds 1, 2, 2, 4 or 8 programs of them.
SHAPES = ((16, 128), (16, 64), (8, 128), (8, 64), (4, 64))


def candidates() -> Iterator[RowConfiguration]:
    """What is tried, the default first: few enough to be compiled within a minute."""
    default = RowConfiguration()
    yield default
    for (warps, registers), block in itertools.product(SHAPES, (1024, 2048)):
        configuration = RowConfiguration(warps, registers, block)
        if configuration != default:
            yield configuration


def calls(
    kernel: str, positions: int, device: str
) -> tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]:
    """A function from data to masks that is one launch of the kernel, and data that does not stay
    in the caches.
    """
    if kernel == "selection":
        weights = [
            (workloads.near_uniform_weights(CELLS, positions, seed=seed, device=device),)
            for seed in range(3)
        ]
        return lambda row: mam.sample_without_replacement(
            row, positions // 3, seed=1, backend="triton"
        ), weights
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(backend="triton").to(device).requires_grad_(False)
    cells = [
        (workloads.cells(CELLS, positions, 0.08, seed=seed, device=device),) for seed in range(3)
    ]
    return (lambda tokens: module(tokens, seed=1).mask), cells


def launched_as(configuration: RowConfiguration) -> mock._patch:
    """While active, kernels are launched so."""
    return mock.patch(
        "mam_kernels._core.triton_launch.row_configuration", return_value=configuration
    )


def fastest(
    kernel: str, positions: int, device: str, tried: Iterable[RowConfiguration], seconds: float
) -> tuple[RowConfiguration, float]:
    """The fastest of the configurations, the first of which is the default, and its time in
    microseconds.

    Raises:
        RuntimeError: one gives other masks than the first.
    """
    run, data = calls(kernel, positions, device)
    contenders, expected = {}, None
    for configuration in tried:
        with launched_as(configuration):
            try:
                mask = run(*data[0])
            # too little shared memory, or too few registers: not a candidate on this GPU
            except RuntimeError as error:
                print(f"  {configuration}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
        expected = mask if expected is None else expected
        differing = int((mask != expected).any(dim=1).sum())
        if (
            differing > CELLS // 100
        ):  # sums in another order may move a draw that hangs on the last bit
            raise RuntimeError(
                f"{kernel}, {positions} positions: {configuration} draws other masks in {differing} of {CELLS} rows"
            )
        contender = Contender(_as_launched(run, configuration), data)
        contenders[configuration] = (
            measure.as_cuda_graph(contender) if device == "cuda" else contender
        )  # the kernel without the host
    timings = measure.time_interleaved(contenders, device=device, samples=15, seconds=seconds)
    best = min(timings, key=lambda configuration: timings[configuration].median)
    return best, 1e6 * timings[best].median


def _as_launched(
    run: Callable[..., Tensor], configuration: RowConfiguration
) -> Callable[..., Tensor]:
    def launch(*data: Tensor) -> Tensor:
        with launched_as(configuration):
            return run(*data)

    return launch


def merged(kept: Iterable[Measured], found: Iterable[Measured]) -> list[Measured]:
    """What was kept, with what was found now in place of older entries of the same kernel, device
    and positions.
    """
    by_case = {(m.kernel, m.device, m.positions): m for m in (*kept, *found)}
    return list(by_case.values())


def main(arguments: list[str] | None = None) -> int:
    """Tune from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=row_configurations.FILE,
        help="the file to write (default: the package's own)",
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="about how long to measure (default: 60)"
    )
    parser.add_argument(
        "--positions",
        type=int,
        nargs="+",
        default=[2048, 20000, 60000],
        help="lengths of rows to measure at",
    )
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: torch sees no GPU; on the CPU there is nothing to tune", file=sys.stderr)
        return 2
    device, architecture = row_configurations.names_of(torch.device("cuda"))
    today = datetime.date.today().isoformat()
    found = []
    for kernel, positions in itertools.product(KERNELS, chosen.positions):
        share = chosen.seconds / (len(KERNELS) * len(chosen.positions))
        best, microseconds = fastest(kernel, positions, "cuda", candidates(), share)
        found.append(
            Measured(kernel, device, architecture, positions, best, round(microseconds, 2), today)
        )
        print(
            f"{kernel}, {positions} positions: {microseconds:.1f} us for {CELLS} rows, {best}",
            flush=True,
        )
    row_configurations.write(merged(row_configurations.read(), found), chosen.out)
    print(f"written to {chosen.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
