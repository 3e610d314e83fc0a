"""Masking's share of a pretraining step, at several sizes of the model: real steps of `scmam
pretrain`, on cells made up for it.

    python -m benchmarks.share                    # the sizes below; the published takes minutes
    python -m benchmarks.share --sizes tiny base

Target: at most 2 % on the CPU, 1 % on a GPU.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse
import scmam

from mam_kernels.testing import machine

from . import results

DENSITY = 0.08


@dataclass(frozen=True)
class Case:
    """What is pretrained: a size of the model, its genes, and the cells of a step."""

    size: str
    genes: int
    cells: int
    steps: int


CASES = (
    Case("tiny", 300, 32, 60),
    Case("small", 2000, 16, 20),
    Case("base", 2000, 8, 12),
    Case("paper", 19264, 1, 2),
)


def counts(cells: int, genes: int) -> anndata.AnnData:
    """Counts of which 8 % are not zero, most of them 1."""
    generator = np.random.default_rng(0)
    matrix = scipy.sparse.random(cells, genes, DENSITY, format="csr", random_state=generator)
    matrix.data = np.ceil(generator.exponential(2.0, matrix.nnz)).astype(np.float32)
    data = anndata.AnnData(matrix.astype(np.float32))
    data.var_names = [f"gene {i}" for i in range(genes)]
    return data


def measured(case: Case, folder: Path) -> dict[str, object]:
    """Medians over the steps of a run: milliseconds of a step, and of masking in it, forward and
    backward.
    """
    path = folder / "cells.h5ad"
    counts(max(64, 4 * case.cells), case.genes).write_h5ad(path)
    config = scmam.Config.model_validate(
        {
            "data": {"path": str(path), "genes": "all"},
            "model": {"size": case.size},
            "masking": {"strategy": "mam", "injection": "decoder"},
            "training": {
                "steps": case.steps,
                "batch_size": case.cells,
                "validation": 0.0,
                "device": "auto",
            },
        }
    )
    run = scmam.pretrain(config, folder / "run", progress=False)
    return {
        **vars(case),
        **{name: run.record[name] for name in ("step_ms", "masking_ms", "masking_share")},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.share", description=__doc__.partition("\n")[0]
    )
    names = [case.size for case in CASES]
    parser.add_argument("--sizes", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument(
        "--out", type=Path, help="folder for share.json (default: $OUT, or benchmarks/results)"
    )
    chosen = parser.parse_args(arguments)
    records = []
    for case in CASES:
        if case.size not in chosen.sizes:
            continue
        with tempfile.TemporaryDirectory() as folder:
            record = measured(case, Path(folder))
        records.append(record)
        print(
            f"{case.size:6} {case.genes:>6} genes, {case.cells:>3} cells a step: masking "
            f"{record['masking_ms']:.2f} of {record['step_ms']:,.1f} ms, "
            f"{record['masking_share']:.3%}",
            flush=True,
        )
    path = results.save(
        results.folder(chosen.out), "share", {}, shares=records, environment=machine.environment()
    )
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
