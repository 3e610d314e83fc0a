"""The engine on real cells: validate the backends, time them against the paper computation, and see
which genes the masks hide.

    python -m scmam.engine_demo --out report

takes scanpy's 700 blood cells, or those of `--cells FILE.h5ad`, and writes a folder with a report
to read and the numbers behind it.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels.testing import measure
from mam_kernels.testing.side_by_side import Row, Variant, side_by_side

from .config import Data
from .data.reading import open_cells
from .data.sparse import SparseExpression, sparse_expression
from .engine_report import GeneMasks, Results, Sizing, write_report
from .errors import ScmamError

SHARP = 0.05  # a temperature at which the attention of untrained latents shows in the masks


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults take one to two minutes on two cores."""

    paper_cells: int = (
        32  # the paper computation takes this many of the cells at their own number of genes
    )
    published_positions: int = 19264
    published_density: float = 0.08
    published_cells: int = 32
    published_paper_cells: int = 2
    samples: int = 5
    seconds: float = 20.0  # for each direction and size
    draws: int = 20  # masks of each cell for the picture


def main(arguments: list[str] | None = None) -> int:
    """Run the demo from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scmam.engine_demo", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="folder to write (default: report)"
    )
    parser.add_argument(
        "--cells", type=Path, help="an .h5ad file (default: scanpy's pbmc68k_reduced)"
    )
    parser.add_argument(
        "--source",
        default="auto",
        help="X, raw or a layer of that file (default: where raw counts are found)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings(
        "ignore", "Sparse (CSR tensor support|invariant checks)"
    )  # torch's own, nothing to do about
    try:
        cells = open_cells(Data(path=options.cells, counts=options.source, backed="never"))
        report = write_report(options.out, run(sparse_expression(cells), device=options.device))
    except ScmamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nReport: {report}")
    return 0


def run(
    cells: SparseExpression, sizes: Sizes = Sizes(), *, device: str | None = None, seed: int = 0
) -> Results:
    """Everything but the writing: validation, timing and masks of `cells`."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    module = mam.MultinomialAttentionMasking().to(device)
    values = cells.values.to(device)
    print(
        f"{values.shape[0]} cells, {values.shape[1]} genes, {cells.density:.1%} non-zero, from {cells.source}",
        flush=True,
    )
    with _step("Validating every backend of this machine against the reference"):
        mam.testing.check()
    timings = []
    with _step(f"Timing on these cells ({values.shape[1]} genes)"):
        timings.append(_time_these_cells(module, values, sizes))
    with _step(f"Timing at the published size ({sizes.published_positions} genes)"):
        timings.append(_time_published_size(module, values, sizes))
    with _step(f"Drawing {sizes.draws} masks of every cell"):
        masks = [
            _gene_masks(module, values, temperature, sizes.draws) for temperature in (1.0, SHARP)
        ]
    print()
    for sizing in timings:
        print(sizing.as_text(), end="\n\n")
    return Results(
        cells, tuple(timings), tuple(masks), module.mask_ratio, measure.environment(device)
    )


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"  done in {time.perf_counter() - start:.1f} s", flush=True)


def _say(message: str) -> None:
    print(f"  {message}", flush=True)


def _time_these_cells(module: torch.nn.Module, values: Tensor, sizes: Sizes) -> Sizing:
    dense = values.to_dense()
    rows = _compare(module, dense, min(sizes.paper_cells, len(dense)), sizes)
    return Sizing(f"These cells: {len(dense)} cells, {dense.shape[1]} genes", dense.shape[1], rows)


def _time_published_size(module: torch.nn.Module, values: Tensor, sizes: Sizes) -> Sizing:
    count = min(sizes.published_cells, values.shape[0])
    spread = spread_out(values, count, sizes.published_positions, sizes.published_density)
    rows = _compare(module, spread, min(sizes.published_paper_cells, count), sizes)
    title = f"Published size: {count} cells, {sizes.published_positions} positions, {sizes.published_density:.0%} non-zero"
    return Sizing(title, sizes.published_positions, rows)


def spread_out(values: Tensor, count: int, positions: int, density: float) -> Tensor:
    """Real values on more genes: cell i takes `density * positions` of its own non-zero values,
    with repetition, at random places.
    """
    generator = torch.Generator().manual_seed(0)
    crow, stored = values.crow_indices().tolist(), values.values().cpu()
    spread = torch.zeros(count, positions)
    for cell in range(count):
        own = stored[crow[cell] : crow[cell + 1]]
        if not len(own):
            continue
        places = torch.randperm(positions, generator=generator)[: round(density * positions)]
        spread[cell, places] = own[torch.randint(len(own), places.shape, generator=generator)]
    return spread.to(values.device)


def _compare(module: torch.nn.Module, dense: Tensor, paper_cells: int, sizes: Sizes) -> list[Row]:
    device = dense.device.type
    sets = measure.input_sets(lambda index: dense.roll(index, dims=0), dense.nbytes, limit=16)
    few = [tokens[:paper_cells].clone() for tokens in sets[:2]]
    variants = []
    for name in dispatch.CHOICES[device]:
        if dispatch.obstacle(name, "value_mask", device, dense.dtype):
            continue
        if (
            name == "reference"
        ):  # loops over cells and holds their attention, as the paper computation does
            variants.append(Variant("reference, dense", name, few))
        else:
            variants.append(Variant(f"{name}, dense", name, sets))
            variants.append(
                Variant(f"{name}, sparse CSR", name, [tokens.to_sparse_csr() for tokens in sets])
            )
    return side_by_side(
        module, variants, few, samples=sizes.samples, seconds=sizes.seconds, progress=_say
    )


def _gene_masks(
    module: torch.nn.Module, values: Tensor, temperature: float, draws: int
) -> GeneMasks:
    """How often every gene is hidden, by attention and uniformly, and how far the distribution is
    from uniform.
    """
    cells, genes = values.shape
    sharpened = mam.MultinomialAttentionMasking(temperature=temperature).to(values.device)
    sharpened.load_state_dict(module.state_dict())
    hidden, uniform = torch.zeros(2, genes, dtype=torch.float64, device=values.device)
    entropy = 0.0
    flat = torch.ones(cells, genes, device=values.device)
    with torch.no_grad():
        for step in range(draws):
            out = sharpened(values, seed=0, step=step)
            hidden += out.mask.sum(dim=0)
            uniform += mam.sample_without_replacement(
                flat, int(out.mask[0].sum()), seed=1, step=step
            ).sum(dim=0)
            entropy += normalized_entropy(out.importance, module.eps, temperature)
    trials = cells * draws
    return GeneMasks(
        temperature, (hidden / trials).cpu(), (uniform / trials).cpu(), entropy / draws, trials
    )


def normalized_entropy(importance: Tensor, eps: float, temperature: float) -> float:
    """Entropy of the distribution that hidden positions are drawn from over its maximum, log L;
    mean over the cells. 1 is uniform.
    """
    log_weight = torch.log(importance.double() + eps) / temperature
    log_probability = log_weight - log_weight.logsumexp(dim=1, keepdim=True)
    entropy = -(log_probability.exp() * log_probability).sum(dim=1)
    return float((entropy / torch.log(torch.tensor(float(importance.shape[1])))).mean())


if __name__ == "__main__":
    raise SystemExit(main())
