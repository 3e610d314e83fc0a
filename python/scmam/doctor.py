"""Whether this installation works: versions, devices, backends against the reference, and a short
pretraining on real cells.
"""

import contextlib
import io
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from .settings import Config, Masking, Training

if TYPE_CHECKING:
    from .data import Cells
    from .runs import Run

PACKAGES = (
    *("mam-kernels", "torch", "triton", "lightning", "numpy", "scipy", "anndata", "scanpy"),
    *("scikit-learn", "pandas", "matplotlib", "jinja2", "distributed", "umap-learn", "pydantic"),
    *("typer", "tensorboard"),
)
# It works without these, or without their being installed.
OPTIONAL = ("mam-kernels", "triton", "umap-learn", "tensorboard")
LEAST_MEMORY, LEAST_DISK = 2.0, 1.0  # GiB

VALIDATION = Config(
    masking=Masking(strategy="mam", ratio=0.3, zero_ratio=None),
    training=Training(
        steps=24, batch_size=16, validation=0.0, warmup=0.0, checkpoint_every=24, device="cpu"
    ),
)


class Check(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool
    detail: str


def examine(*, validation: bool = True, progress: bool = True) -> list[Check]:
    """Run all checks.

    Args:
        validation: also compare the backends with the reference, and pretrain; a minute or less.
        progress: say what is looked at.
    """
    looks = {"versions": _versions, "devices": _devices, "backends": _backends}
    looks |= {"memory and disk": _room}
    if validation:
        looks |= {"backends against the reference": _agreement, "validation run": _validation_run}
    found: list[Check] = []
    for name, look in looks.items():
        if progress:
            print(f"{name} ...", flush=True)
        try:
            found.extend(look())
        except Exception as error:  # any failure is what the check reports
            found.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return found


def summary(checks: Sequence[Check]) -> str:
    """A line for each check, and a last one that sums up."""
    width = max(len(check.name) for check in checks)
    lines = [
        f"{'ok   ' if check.ok else 'WRONG'} {check.name:{width}}  {check.detail}"
        for check in checks
    ]
    wrong = ", ".join(check.name for check in checks if not check.ok)
    return "\n".join([*lines, f"wrong: {wrong}" if wrong else "everything is in order"])


def versions() -> dict[str, str | None]:
    """Python's and the packages' versions; None for what is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    yield Check("python", True, f"{platform.python_version()} on {platform.platform()}")
    for name, version in versions().items():
        if name != "python":
            yield Check(name, version is not None or name in OPTIONAL, version or "not installed")


def _devices() -> Iterator[Check]:
    import torch

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Check("cpu", True, f"{platform.processor() or platform.machine()}, {threads}")
    if not torch.cuda.is_available():
        yield Check("gpu", True, "none that torch can use")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Check(f"gpu {index}", True, f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")


def _backends() -> Iterator[Check]:
    import mam_kernels

    states = mam_kernels.backends()
    for name, state in states.items():
        if isinstance(state, mam_kernels.Available):
            yield Check(f"backend {name}", True, state.detail)
        else:
            yield Check(f"backend {name}", True, f"not here: {state.reason}")
    if not any(state for name, state in states.items() if name != "reference"):
        remedy = "reinstall with a C++ compiler, or with triton on a GPU"
        yield Check("backends", False, f"only the slow reference runs here; {remedy}")


def _room() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory().available / 2**30
    found = f"{memory:.1f} GiB (at least {LEAST_MEMORY:g})"
    yield Check("free memory", memory >= LEAST_MEMORY, found)
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check("free disk", disk >= LEAST_DISK, f"{disk:.1f} GiB here (at least {LEAST_DISK:g})")


def _agreement() -> Iterator[Check]:
    from mam_kernels import testing

    with contextlib.redirect_stdout(io.StringIO()):
        table = testing.check()
    for line in table.splitlines()[1:]:
        backend, rest = line.split(maxsplit=1)
        yield Check(f"check {backend}", True, " ".join(rest.split()))


def _validation_run() -> Iterator[Check]:
    from .data import open_cells
    from .training import pretrain

    cells = open_cells(VALIDATION.data)
    with tempfile.TemporaryDirectory(prefix="scmam-doctor-") as folder:
        first, second = (
            pretrain(VALIDATION, Path(folder) / name, cells=cells, progress=False)
            for name in ("first", "second")
        )
        losses, again = _losses(first), _losses(second)
        yield _falls(losses)
        said = f"other losses: {losses[-1:]} and {again[-1:]} last"
        if losses == again:
            said = f"the same {len(losses)} losses"
        yield Check("runs repeat", losses == again, f"two runs of the same seed have {said}")
        yield _masks_hold(first, cells)


def _losses(run: "Run") -> list[float]:
    return run.metrics().query("phase == 'train'")["loss"].tolist()


def _falls(losses: list[float]) -> Check:
    if not losses or not all(map(math.isfinite, losses)):
        return Check("loss falls", False, f"loss not finite in {len(losses)} steps")
    third = max(1, len(losses) // 3)
    before, after = (fmean(part) for part in (losses[:third], losses[-third:]))
    detail = f"loss {before:.3f} to {after:.3f} in {len(losses)} steps"
    return Check("loss falls", after < before, detail)


def _masks_hold(run: "Run", cells: "Cells") -> Check:
    """Masks of the trained latents: as many genes as the ratio says, the same ones when drawn
    again, others at another step.
    """
    import numpy as np
    import torch

    from mam_kernels.strategies import CellValues, Draw

    from .sequences import expression

    pretraining, batch = run.load(), cells.batch(np.arange(min(64, cells.num_cells)))
    values = expression(batch.counts, batch.depth, VALIDATION.data.transform)
    with torch.no_grad():
        draws = [
            pretraining.strategy(CellValues.of(values), Draw(0, step, batch.cell_ids)).mask
            for step in (0, 0, 1)
        ]
    expected = math.floor(VALIDATION.masking.ratio * cells.num_genes)
    counted = sorted(set(draws[0].sum(dim=1).tolist()))
    repeats = torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    said = f"{', '.join(map(str, counted))} of {cells.num_genes} genes hidden in each cell"
    return Check("masks hold", counted == [expected] and repeats, f"{said}, {expected} asked")
