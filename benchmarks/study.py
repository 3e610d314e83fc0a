"""The side-by-side study: the masking step and the paper computation on the same cells, in the same
process.

    python -m benchmarks.study              # the published size; a few minutes on two cores
    python -m benchmarks.study --help

It refuses to report a ratio when the results disagree with the paper computation.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import mam_kernels as mam
from mam_kernels.testing import machine, measure
from mam_kernels.testing.agreement import Disagreement, forward
from mam_kernels.testing.measure import Contender
from mam_kernels.testing.side_by_side import (
    COMPILED,
    DIRECTIONS,
    SDPA,
    Row,
    Variant,
    measure_against,
    side_by_side,
)
from mam_kernels.testing.tolerances import misplaced

from . import results, workloads

MULTINOMIAL = "torch.multinomial"
RIVALS = (COMPILED, SDPA)


@dataclass(frozen=True)
class Sizes:
    """What is measured; by default the published sizes."""

    positions: int = 19264
    density: float = 0.08
    latents: int = 128
    heads: int = 8
    width: int = 256
    cells: int = 32
    paper_cells: int = 2
    token_positions: int = 2048
    token_cells: int = 2
    selection_positions: int = 20000
    selection_rows: int = 32
    samples: int = 7
    seconds: float = 60.0  # for each comparison


def say(message: str) -> None:
    """Progress, a line at a time."""
    print(message, flush=True)


def masking_module(sizes: Sizes, input_dim: int | None = None) -> mam.MultinomialAttentionMasking:
    """The module at the study's sizes, with the same random weights every time."""
    torch.manual_seed(0)
    return mam.MultinomialAttentionMasking(input_dim, sizes.width, sizes.latents, sizes.heads)


def value_path(sizes: Sizes) -> list[Row]:
    """Values to mask and context, dense and sparse."""
    dense = measure.input_sets(
        lambda seed: workloads.cells(sizes.cells, sizes.positions, sizes.density, seed=seed),
        sizes.cells * sizes.positions * 4,
        limit=16,
    )
    few = [tokens[: sizes.paper_cells].clone() for tokens in dense[:2]]
    variants = []
    for name in workloads.backends_on("cpu", "value_mask", torch.float32):
        # The specification loops over cells, and holds their attention.
        sets = few if name == "reference" else dense
        variants.append(Variant(f"{name}, dense", name, sets))
        variants.append(
            Variant(f"{name}, sparse CSR", name, [tokens.to_sparse_csr() for tokens in sets])
        )
    module = masking_module(sizes)
    return side_by_side(
        module,
        variants,
        few,
        rivals=RIVALS,
        samples=sizes.samples,
        seconds=sizes.seconds,
        progress=say,
    )


def token_path(sizes: Sizes) -> list[Row]:
    """Embeddings to mask and context."""
    shape = (sizes.token_cells, sizes.token_positions, sizes.width)
    tokens = [workloads.embeddings(*shape, seed=seed) for seed in range(4)]
    names = workloads.backends_on("cpu", "latent_attention", torch.float32)
    module = masking_module(sizes, input_dim=sizes.width)
    variants = [Variant(name, name, tokens) for name in names]
    return side_by_side(
        module,
        variants,
        tokens,
        rivals=RIVALS,
        samples=sizes.samples,
        seconds=sizes.seconds,
        progress=say,
    )


def selection(sizes: Sizes) -> list[Row]:
    """Weights to mask, beside `torch.multinomial`."""
    rows, positions = sizes.selection_rows, sizes.selection_positions
    weights = measure.input_sets(
        lambda seed: (workloads.near_uniform_weights(rows, positions, seed=seed),),
        rows * positions * 4,
        limit=16,
    )
    contenders = {
        MULTINOMIAL: Contender(workloads.select_by_multinomial, weights),
        "topk of weight / exponential": Contender(workloads.select_by_exponential_topk, weights),
        "topk alone, of given keys": Contender(workloads.topk_of_keys, weights),
    }
    for name in workloads.backends_on("cpu", "sample_without_replacement", torch.float32):
        say(f"{name}: checking its draw")
        require_right_draw(name, *weights[0])
        contenders[name] = Contender(workloads.select_with(name), weights)
    return measure_against(
        MULTINOMIAL, contenders, what="draw", samples=sizes.samples, seconds=sizes.seconds
    )


def require_right_draw(backend: str, weights: torch.Tensor) -> None:
    """The draw of a backend is the race in float64, or `Disagreement`."""
    count = workloads.num_selected(weights)
    mask = mam.sample_without_replacement(weights, count, seed=0, backend=backend)
    counts = torch.full((len(weights),), count, device=weights.device)
    wrong = misplaced(mask, weights, counts)
    if wrong:
        raise Disagreement(
            f"{backend}: {wrong} positions of its draw are on the wrong side of the race in float64"
        )


def host_cost() -> dict[str, dict]:
    """Microseconds that the host spends on a call whose arithmetic is nothing: one cell of sixteen
    positions.
    """
    tokens = workloads.cells(1, 16, 0.5)
    torch.manual_seed(0)
    tiny = mam.MultinomialAttentionMasking(latent_dim=2, num_latents=1, num_heads=1)
    calls = {
        "sample_without_replacement": Contender(workloads.select_with(None), [(tokens,)]),
        "masking step, forward": Contender(forward(tiny), [(tokens,)]),
    }
    return {name: measure.host_seconds(call, "cpu").record() for name, call in calls.items()}


def by_batch(sizes: Sizes) -> list[dict]:
    """What a cell takes when a call holds few of them: the fixed cost of a call, shared by ever
    more cells.
    """
    module = masking_module(sizes)
    records = []
    for cells in sorted({1, 2, 4, 8, 16, sizes.cells}):
        tokens = (workloads.cells(cells, sizes.positions, sizes.density, seed=cells),)
        for what, step in DIRECTIONS.items():
            timing = measure.host_seconds(Contender(step(module), [tokens]), "cpu", calls=60)
            records.append({"what": what, "cells_per_call": cells, **timing.record(cells)})
    return records


def import_seconds() -> dict[str, float]:
    """What `import mam_kernels` adds to `import torch`, in a fresh process; the least of three."""
    program = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); "
        "import mam_kernels; c = time.perf_counter(); print(b - a, c - b)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    torch_alone, added = (
        min(times) for times in zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    )
    return {"torch": torch_alone, "mam_kernels_adds": added}


def options() -> argparse.ArgumentParser:
    """The command line: a flag for every size."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, help="folder for study.json (default: $OUT, or benchmarks/results)"
    )
    for name, default in vars(Sizes()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"default: {default}",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the study from the command line; returns the exit status."""
    chosen = vars(options().parse_args(arguments))
    target = results.folder(chosen.pop("out"))
    sizes = Sizes(**chosen)
    ratio = workloads.SELECTION_RATIO
    titles = {
        f"Value path: L = {sizes.positions}, {sizes.density:.0%} non-zero": value_path,
        f"Token path: L = {sizes.token_positions}, D = {sizes.width}": token_path,
        f"Selection: L = {sizes.selection_positions}, k = {ratio:.0%}": selection,
    }
    busy = machine.load_average() > 1.0
    sections = {}
    try:
        for title, section in titles.items():
            say(f"\n{title}")
            sections[title] = section(sizes)
    except Disagreement as error:
        print(f"no ratios: {error}", file=sys.stderr)
        return 1
    if busy:
        say("\nother programs were running when this began: the ratios below are not to be trusted")
    more = {"batches": by_batch(sizes), "host": host_cost(), "imports": import_seconds()}
    path = results.save(
        target,
        "study",
        sections,
        sizes=vars(sizes),
        environment=machine.environment(),
        busy=busy,
        **more,
    )
    print(f"\nwritten to {path}\n\n{results.table(sections)}\n")
    for record in more["batches"]:
        print(
            f"{record['cells_per_call']:>3} cells a call, {record['what']}: "
            f"{record['median_us']:.0f} us a cell"
        )
    for name, record in more["host"].items():
        print(f"host cost of a call, {name}: {record['median_us']:.0f} us")
    imports = more["imports"]
    print(
        f"import mam_kernels adds {imports['mam_kernels_adds']:.2f} s to import torch "
        f"({imports['torch']:.2f} s)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
