"""What `make gpu` measures: both paths and the selection on a GPU, beside the paper computation and
torch's own kernels.

    python -m benchmarks.gpu [--out FOLDER] [--seconds 150]

Every contender is timed as called and, where it can be captured, as the replay of a CUDA graph,
which is the time of its kernels alone.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mam_kernels as mam
from mam_kernels.testing import measure
from mam_kernels.testing.agreement import (
    Disagreement,
    forward,
    forward_backward,
    paper_twin,
    require_agreement,
)
from mam_kernels.testing.measure import Contender
from mam_kernels.testing.side_by_side import PAPER, Row, measure_against, with_backend

from . import results, workloads
from .study import MULTINOMIAL, require_right_draw, say

FLASH = "flash attention, forward alone"
TOPK = "torch.topk of given keys"


@dataclass(frozen=True)
class Sizes:
    """What is measured: sizes of a large training step."""

    cells: int = 512
    positions: int = 20000
    density: float = 0.08
    paper_cells: int = 4
    token_cells: int = 64
    token_positions: int = 2048
    width: int = 256
    latents: int = 128
    heads: int = 8
    samples: int = 30


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches on the simplest programs: the floors are taken against these."""

    copy_bytes_a_second: float
    matmul_flops_a_second: float

    def floor_us(self, byte_count: float, flops: float = 0.0) -> float:
        """The larger of the two times, in microseconds."""
        return 1e6 * max(byte_count / self.copy_bytes_a_second, flops / self.matmul_flops_a_second)


def ceilings(device: str) -> Ceilings:
    """A copy of 1 GiB, counted read and written, and a bfloat16 product of 8192 x 8192 matrices of
    random numbers.
    """
    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    timings = measure.time_interleaved(
        {
            "copy": Contender(lambda: target.copy_(source)),
            "product": Contender(lambda: left @ right),
        },
        device=device,
        samples=15,
    )
    return Ceilings(2 * 2**30 / timings["copy"].median, 2 * 8192**3 / timings["product"].median)


def value_path(sizes: Sizes, device: str, seconds: float) -> Iterator[Row]:
    """Values to mask and context, dense and sparse, forward and with the backward pass."""
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(None, sizes.width, sizes.latents, sizes.heads).to(
        device
    )
    dense = [
        workloads.cells(sizes.cells, sizes.positions, sizes.density, seed=seed, device=device)
        for seed in range(3)
    ]
    layouts = {"dense": dense, "sparse CSR": [tokens.to_sparse_csr() for tokens in dense]}
    few = [tokens[: sizes.paper_cells].clone() for tokens in dense]
    for step in (forward, forward_backward):
        contenders = {PAPER: Contender(step(paper_twin(module)), [(tokens,) for tokens in few])}
        for backend in workloads.backends_on(device, "value_mask", torch.float32):
            for layout, tokens in layouts.items():
                if backend == "reference":
                    continue
                checked = few[0].to_sparse_csr() if layout == "sparse CSR" else few[0]
                require_agreement(with_backend(module, backend), checked)
                contenders[f"{backend}, {layout}"] = Contender(
                    step(with_backend(module, backend)), [(one,) for one in tokens]
                )
        yield from both_ways(
            PAPER, contenders, step.__name__.replace("_", " + "), sizes.samples, seconds / 2
        )


def token_path(sizes: Sizes, device: str, seconds: float) -> Iterator[Row]:
    """Embeddings in bfloat16 to mask and context, beside the paper computation and flash attention
    of the same sizes.
    """
    dtype = torch.bfloat16
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        sizes.width, sizes.width, sizes.latents, sizes.heads
    ).to(device, dtype)
    shape = (sizes.token_cells, sizes.token_positions, sizes.width)
    tokens = [
        workloads.embeddings(*shape, seed=seed, device=device, dtype=dtype) for seed in range(3)
    ]
    few = tokens[0][:2].detach()
    for step in (forward, forward_backward):
        contenders = {PAPER: Contender(step(paper_twin(module)), [(one,) for one in tokens])}
        if step is forward:
            contenders[FLASH] = Contender(flash_attention(sizes), [(one,) for one in tokens])
        for backend in workloads.backends_on(device, "latent_attention", dtype):
            if backend == "reference":
                continue
            require_agreement(with_backend(module, backend), few)
            contenders[backend] = Contender(
                step(with_backend(module, backend)), [(one,) for one in tokens]
            )
        yield from both_ways(
            PAPER, contenders, step.__name__.replace("_", " + "), sizes.samples, seconds / 2
        )


def flash_attention(sizes: Sizes) -> Callable[[Tensor], Tensor]:
    """Torch's flash kernel on a cross-attention of the same sizes, projections not included: it
    takes the tokens as keys and values.
    """
    queries: dict[torch.device, Tensor] = {}

    def run(tokens: Tensor) -> Tensor:
        batch, positions, width = tokens.shape
        heads = (
            tokens.detach()
            .view(batch, positions, sizes.heads, width // sizes.heads)
            .transpose(1, 2)
        )
        if tokens.device not in queries:
            queries[tokens.device] = torch.randn(
                1, sizes.heads, sizes.latents, heads.shape[-1], device=tokens.device
            ).to(tokens.dtype)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(
                queries[tokens.device].expand(batch, -1, -1, -1), heads, heads
            )

    return run


def selection(sizes: Sizes, device: str, seconds: float) -> Iterator[Row]:
    """Weights to mask, beside `torch.multinomial`, `torch.topk` on the usual keys, and `torch.topk`
    alone.
    """
    weights = [
        (workloads.near_uniform_weights(sizes.cells, sizes.positions, seed=seed, device=device),)
        for seed in range(4)
    ]
    contenders = {
        TOPK: Contender(workloads.topk_of_keys, weights),
        MULTINOMIAL: Contender(workloads.select_by_multinomial, weights),
        "topk of weight / exponential": Contender(workloads.select_by_exponential_topk, weights),
    }
    for backend in workloads.backends_on(device, "sample_without_replacement", torch.float32):
        if backend != "reference":
            require_right_draw(backend, weights[0][0][:8])
            contenders[backend] = Contender(workloads.select_with(backend), weights)
    yield from both_ways(TOPK, contenders, "draw", sizes.samples, seconds)


def both_ways(
    baseline: str, contenders: dict[str, Contender], what: str, samples: int, seconds: float
) -> Iterator[Row]:
    """The contenders as called, then as CUDA graphs; those that cannot be captured are timed as
    called in both.
    """
    called = measure_against(
        baseline, contenders, what=f"{what}, as called", samples=samples, seconds=seconds / 2
    )
    yield from called
    replays = {name: _captured(name, contender) for name, contender in contenders.items()}
    device = contenders[baseline].inputs[0][0].device
    timings = measure.time_interleaved(
        {name: replay for name, replay in replays.items() if replay},
        device=device,
        samples=samples,
        seconds=seconds / 2,
    )
    base = next(row for row in called if row.contender == baseline)
    base_time = timings.get(baseline, base.timing)
    for row in called:
        if row.contender in timings:
            timing = timings[row.contender]
            ratio = (
                None
                if row.ratio is None
                else base_time.median / base.cells / (timing.median / row.cells)
            )
            yield replace(row, what=f"{what}, graph replay", timing=timing, ratio=ratio)


def _captured(name: str, contender: Contender) -> Contender | None:
    try:
        return measure.as_cuda_graph(contender)
    except RuntimeError as error:
        say(f"  {name} cannot be captured in a CUDA graph: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
        return None


def floors(sizes: Sizes, reached: Ceilings) -> dict[str, float]:
    """The least microseconds that each path could take on this device: see docs/performance.md for the bytes
    and the operations.
    """
    entries = sizes.cells * sizes.positions
    tokens = sizes.token_cells * sizes.token_positions
    projections = 2 * tokens * sizes.width * 2 * sizes.width
    attention = 2 * 2 * tokens * sizes.latents * sizes.width
    return {
        "value path, dense": reached.floor_us(9 * entries),
        "value path, sparse CSR": reached.floor_us((5 + 12 * sizes.density) * entries),
        "token path": reached.floor_us(tokens * (2 * sizes.width + 5), projections + attention),
        "selection": reached.floor_us(5 * entries),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, help="folder for gpu.json (default: $OUT, or benchmarks/results)"
    )
    parser.add_argument(
        "--seconds", type=float, default=150.0, help="about how long to measure (default: 150)"
    )
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: torch sees no GPU; `make bench` measures the CPU", file=sys.stderr)
        return 2
    device, sizes = "cuda", Sizes()
    reached = ceilings(device)
    say(
        f"copy {reached.copy_bytes_a_second / 1e12:.2f} TB/s (read and written),"
        f" bfloat16 product {reached.matmul_flops_a_second / 1e12:.0f} TFLOP/s"
    )
    sections, failures = _sections(sizes, device, chosen.seconds)
    lowest = floors(sizes, reached)
    path = results.save(
        results.folder(chosen.out),
        "gpu",
        sections,
        sizes=vars(sizes),
        ceilings=vars(reached),
        floors_us=lowest,
        failures=failures,
        environment=measure.environment(device),
    )
    print(f"\nwritten to {path}\n\n{results.table(sections)}\n")
    for name, microseconds in lowest.items():
        print(f"floor of the {name}, bytes and products alone: {microseconds:.1f} us a call")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _sections(sizes: Sizes, device: str, seconds: float) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of each path; a path that fails does not keep the others from being measured."""
    titles = {
        f"Value path: B = {sizes.cells}, L = {sizes.positions}, {sizes.density:.0%} non-zero": (
            value_path,
            0.4,
        ),
        f"Token path: B = {sizes.token_cells}, L = {sizes.token_positions}, D = {sizes.width}, bfloat16": (
            token_path,
            0.35,
        ),
        f"Selection: B = {sizes.cells}, L = {sizes.positions}, k = {workloads.SELECTION_RATIO:.0%}": (
            selection,
            0.25,
        ),
    }
    sections, failures = {}, []
    for title, (section, share) in titles.items():
        start = time.perf_counter()
        sections[title] = []
        try:
            for row in section(sizes, device, share * seconds):
                sections[title].append(row)
        except (Disagreement, RuntimeError, ValueError) as error:
            failures.append(f"{title}: {error}")
        torch.cuda.empty_cache()
        say(f"{title}: {math.ceil(time.perf_counter() - start)} s")
    return sections, failures


if __name__ == "__main__":
    raise SystemExit(main())
