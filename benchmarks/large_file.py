"""Pretraining from a file that is too large to be held: how fast cells come, how long a step waits
for them, and how much memory it takes.

    python -m benchmarks.large_file              # 300,000 cells of 20,000 genes, three files of 4
    GiB together; about 15 minutes python -m benchmarks.large_file --help

The file is generated, a few cells at a time, once without compression and once for each of HDF5's
usual ones. Every measurement is made in a process of its own, from a file that the system was asked
to forget.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mam_kernels as mam
from mam_kernels.testing import machine

from . import results

COMPRESSIONS = ("none", "lzf", "gzip")
WRITTEN_TOGETHER = 512  # cells
TYPES = 12  # of cells, each with genes of its own
LARGEST_COUNT = 255
# 16 is what large files are read with by default.
READERS = (
    {"block": 1},
    {"block": 16},
    {"block": 64},
    {"block": 16, "workers": 2},
)
PACKAGES = ("anndata", "h5py", "lightning", "scipy")
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    cells: int = 300_000
    genes: int = 20_000
    batch_size: int = 32
    steps: int = 140  # of training: what is read at once lasts for 128
    seconds: float = 15.0  # of reading, for each way of it


def write_files(paths: Mapping[str, Path], cells: int, genes: int, *, seed: int = 0) -> None:
    """The same cells in several `.h5ad` files, laid out as anndata's `write_h5ad` lays them out.

    Cells have 2 to 8 % of their genes, about 5 % on average, drawn in proportion to how common a
    gene is in cells of their type; counts are geometric. No more than `WRITTEN_TOGETHER` cells are
    in memory.

    Args:
        paths: compression ("none", "lzf" or "gzip") to the file.
        cells, genes: how many.
        seed: of everything.
    """
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    random = np.random.default_rng(seed)
    detected = np.clip(
        random.lognormal(np.log(0.046 * genes), 0.35, cells), 0.02 * genes, 0.08 * genes
    ).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(detected)])
    common = torch.from_numpy(random.lognormal(0, 1.5, (TYPES, genes)).astype(np.float32))
    types = random.integers(0, TYPES, cells)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(types, [f"type {i}" for i in range(TYPES)])},
        index=_names("cell", cells),
    )
    with contextlib.ExitStack() as open_files:
        files = []
        for compression, path in paths.items():
            file = open_files.enter_context(h5py.File(path, "w"))
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            write_elem(file, "obs", obs)
            write_elem(file, "var", pd.DataFrame(index=_names("gene", genes)))
            matrix = file.create_group("X")
            matrix.attrs.update(
                {
                    "encoding-type": "csr_matrix",
                    "encoding-version": "0.1.0",
                    "shape": np.array([cells, genes]),
                }
            )
            stored = {
                "shape": (int(ends[-1]),),
                "maxshape": (None,),
                "compression": None if compression == "none" else compression,
            }
            matrix.create_dataset("data", dtype=np.float32, **stored)
            matrix.create_dataset("indices", dtype=np.int32, **stored)
            matrix.create_dataset(
                "indptr", data=ends.astype(np.int32 if ends[-1] < 2**31 else np.int64)
            )
            files.append(matrix)
        for start in range(0, cells, WRITTEN_TOGETHER):
            stop = min(start + WRITTEN_TOGETHER, cells)
            weights, number = (
                common[torch.from_numpy(types[start:stop])],
                torch.from_numpy(detected[start:stop]),
            )
            drawn = mam.sample_without_replacement(
                weights, number, seed=seed, sample_ids=torch.arange(start, stop)
            )
            genes_drawn = drawn.nonzero()[:, 1].numpy().astype(np.int32)
            counts = np.minimum(random.geometric(0.55, len(genes_drawn)), LARGEST_COUNT).astype(
                np.float32
            )
            for matrix in files:
                matrix["data"][ends[start] : ends[stop]] = counts
                matrix["indices"][ends[start] : ends[stop]] = genes_drawn


def reading(path: Path, sizes: Sizes) -> dict[str, Any]:
    """Cells a second of the loader, for each of `READERS`, when nothing else is done."""
    from scmam.data import CellLoader, open_cells
    from scmam.data.loader import READ_AHEAD
    from scmam.settings import Data

    _forget(path)
    began, before = time.perf_counter(), peak_mebibytes()
    cells = open_cells(Data(path=path, backed="always"))
    seconds, (number, genes) = time.perf_counter() - began, cells.counts.shape
    record = {
        "open_seconds": seconds,
        "density": cells.counts.matrix.stored / (number * genes),
        "ways": [],
    }
    for way in READERS:
        _forget(path)
        workers = way.get("workers", 0)
        loader = CellLoader(
            replace(cells, block=way["block"]), sizes.batch_size, sparse=True, workers=workers
        )
        began = time.perf_counter()
        batches, read, together = (
            iter(loader),
            0,
            max(1, READ_AHEAD // sizes.batch_size) * sizes.batch_size,
        )
        for batch in batches:
            if not read:
                first = time.perf_counter()
            read += len(batch.cell_ids)
            if (
                read % together == 0 and time.perf_counter() - began > sizes.seconds
            ):  # whole requests, and the time of the first as well
                break
        seconds = time.perf_counter() - began
        record["ways"].append(
            {
                "shuffle_block": way["block"],
                "workers": workers,
                "cells_per_second": read / seconds,
                "first_batch_seconds": first - began,
            }
        )
        batches.close()
        loader.close()
    largest_worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        **record,
        "peak_mebibytes": peak_mebibytes(),
        "of_which_before": before,
        "largest_worker_mebibytes": largest_worker,
    }


def training(path: Path, sizes: Sizes) -> dict[str, Any]:
    """A pretraining run of the smallest model with Multinomial Attention Masking, as `scmam
    pretrain` does it.
    """
    import scmam

    _forget(path)
    settings = {
        "data.path": str(path),
        "data.backed": "always",
        "data.shuffle_block": 16,
        "training.steps": sizes.steps,
        "training.batch_size": sizes.batch_size,
        "training.validation": min(1.0, 512 / sizes.cells),
        "training.validate_every": sizes.steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        record = scmam.pretrain(
            scmam.load_config(None, settings), Path(folder) / "run", progress=False
        ).record
    wanted = (
        "device",
        "threads",
        "steps",
        "seconds",
        "step_ms",
        "masking_ms",
        "loader_ms",
        "waiting_share",
        "cells_per_second",
    )
    return {
        "model": "tiny",
        **{name: record[name] for name in wanted},
        "peak_mebibytes": peak_mebibytes(),
    }


def peak_mebibytes() -> float:
    """The most memory this process held at a time."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


MEASUREMENTS = {"reading": reading, "training": training}


def measured(what: str, path: Path, sizes: Sizes) -> dict[str, Any]:
    """A measurement in a process of its own, so that its peak of memory is its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.large_file",
        *_flags(sizes),
        "--measure",
        what,
        "--file",
        str(path),
    ]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def _forget(path: Path) -> None:
    """Ask the system to drop a file from its cache, where it can."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _names(what: str, number: int) -> list[str]:
    return [f"{what} {index}" for index in range(number)]


def _flags(sizes: Sizes) -> Iterator[str]:
    return itertools.chain.from_iterable(
        (f"--{name.replace('_', '-')}", str(value)) for name, value in vars(sizes).items()
    )


def table(files: Sequence[Mapping[str, Any]]) -> str:
    """The measurements in short."""
    lines = [
        f"{'file':<6}{'GiB':>6}{'block':>7}{'workers':>9}{'cells/s':>10}"
        f"{'step, ms':>10}{'waiting':>9}{'peak, MiB':>11}"
    ]
    for file in files:
        name = f"{file['compression']:<6}{file['gibibytes']:>6.2f}"
        for way in file["reading"]["ways"]:
            peak = file["reading"]["peak_mebibytes"]
            sizes = f"{name}{way['shuffle_block']:>7}{way['workers']:>9}"
            lines.append(f"{sizes}{way['cells_per_second']:>10,.0f}{'':>19}{peak:>11,.0f}")
        run = file["training"]
        sizes = f"{name}{16:>7}{0:>9}{run['cells_per_second']:>10,.0f}"
        lines.append(
            f"{sizes}{run['step_ms']:>10,.0f}{run['waiting_share']:>9.1%}"
            f"{run['peak_mebibytes']:>11,.0f}  training"
        )
    return "\n".join(lines)


def options() -> argparse.ArgumentParser:
    """The command line: a flag for every size."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_file", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, help="folder for large_file.json (default: $OUT, or benchmarks/results)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the files are written, and kept (default: a temporary folder)",
    )
    parser.add_argument(
        "--compression", nargs="+", choices=COMPRESSIONS, default=COMPRESSIONS, help="default: all"
    )
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    for name, default in vars(Sizes()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"default: {default}",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Generate and measure from the command line; returns the exit status."""
    given = vars(options().parse_args(arguments))
    sizes = Sizes(**{name: given[name] for name in vars(Sizes())})
    if given["measure"]:
        print(json.dumps(MEASUREMENTS[given["measure"]](given["file"], sizes)))
        return 0
    busy = machine.load_average() > 1.0
    with contextlib.ExitStack() as stack:
        folder = given["folder"] or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            name: folder / f"{sizes.cells}x{sizes.genes}-{name}.h5ad"
            for name in given["compression"]
        }
        missing = {name: path for name, path in paths.items() if not path.is_file()}
        if missing:
            print(
                f"writing {sizes.cells:,} cells of {sizes.genes:,} genes: {', '.join(missing)}",
                flush=True,
            )
            unfinished = {name: path.with_suffix(".partial") for name, path in missing.items()}
            write_files(unfinished, sizes.cells, sizes.genes)
            for name, path in missing.items():
                os.replace(unfinished[name], path)
        files = []
        for name, path in paths.items():
            files.append({"compression": name, "gibibytes": path.stat().st_size / 2**30})
            for what in MEASUREMENTS:
                print(f"{name}: {what}", flush=True)
                files[-1][what] = measured(what, path, sizes)
    environment = machine.environment()
    environment["versions"] |= {name: version(name) for name in PACKAGES}
    target = results.save(
        results.folder(given["out"]),
        "large_file",
        {},
        sizes=vars(sizes),
        environment=environment,
        busy=busy,
        files=files,
    )
    print(f"written to {target}\n\n{table(files)}")
    if busy:
        print("other programs were running when this began: the rates are lower bounds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
