"""What each stage does. A stage is one call of this module, in a process of its own:

python -m benchmarks.gpu.stages STAGE [--backend NAME] [--path NAME] [--device cuda] [--tiny]
"""

import argparse
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
from mam_kernels.testing.machine import environment
from mam_kernels.testing.measure import Contender
from mam_kernels.testing.side_by_side import with_backend
from mam_kernels.testing.tolerances import FLOORS, row_error

from .. import evidence, workloads
from ..study import require_right_draw
from . import PATHS, driver, launch_shapes

CHECKED_ROWS = 4

OURS = (
    "^(attention|finish|importance|inclusion|project|select|token_importance|tokens|value"
    "|.*_backward)_"
)
"""The CUDA kernels that ncu looks at, beside torch's own."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a large training step."""

    cells: int = 512
    positions: int = 20000
    density: float = 0.08
    token_cells: int = 64
    token_positions: int = 2048
    width: int = 256
    latents: int = 128
    heads: int = 8
    samples: int = 30
    input_sets: int = 3


TINY = Sizes(4, 96, 0.2, 2, 40, 32, 6, 2, samples=2, input_sets=2)
"""For rehearsals on a CPU."""


def work(
    path: str, backend: str, sizes: Sizes, device: str
) -> tuple[Contender, Callable[[], None]]:
    """One path as something to time, and a check of it on a few rows against float64."""
    seeds = range(sizes.input_sets)
    if path in OF_WEIGHTS:
        with_backend_of, require_right = OF_WEIGHTS[path]
        weights = [
            (
                workloads.near_uniform_weights(
                    sizes.cells, sizes.positions, seed=seed, device=device
                ),
            )
            for seed in seeds
        ]
        few = weights[0][0][:CHECKED_ROWS]
        if path.endswith("backward"):
            weights = [(one, torch.randn_like(one)) for (one,) in weights]
        return Contender(with_backend_of(backend), weights), lambda: require_right(backend, few)
    module = masking_module(path, sizes, device)
    if path.startswith("value_path"):
        tokens = [
            workloads.cells(sizes.cells, sizes.positions, sizes.density, seed=seed, device=device)
            for seed in seeds
        ]
        if path == "value_path_sparse":
            tokens = [one.to_sparse_csr() for one in tokens]
        few = workloads.cells(CHECKED_ROWS, sizes.positions, sizes.density, device=device)
        few = few.to_sparse_csr() if path == "value_path_sparse" else few
    else:
        shape = (sizes.token_positions, sizes.width)
        tokens = [
            workloads.embeddings(
                sizes.token_cells, *shape, seed=seed, device=device, dtype=torch.bfloat16
            )
            for seed in seeds
        ]
        few = tokens[0][:CHECKED_ROWS].detach()
    step = forward_backward if path.endswith("backward") else forward
    ours = with_backend(module, backend)
    return Contender(step(ours), [(one,) for one in tokens]), lambda: require_agreement(ours, few)


def require_right_inclusion(backend: str, weights: Tensor) -> None:
    """Inclusion probabilities and their gradient are those of float64, or `Disagreement`."""
    gradient = torch.cos(torch.arange(weights.shape[1], device=weights.device)).expand_as(weights)
    found = workloads.include_with_gradient(backend)(weights, gradient)
    right = workloads.include_with_gradient("reference")(weights.double(), gradient.double())
    for name, ours, theirs in zip(("probabilities", "gradient"), found, right, strict=True):
        error = row_error(ours, theirs)
        if not error <= FLOORS[torch.float32]:
            raise Disagreement(f"{backend}: the error of its inclusion {name} is {error}")


OF_WEIGHTS: dict[str, tuple[Callable, Callable[[str, Tensor], None]]] = {
    "selection": (workloads.select_with, require_right_draw),
    "inclusion": (workloads.include_with, require_right_inclusion),
    "inclusion_forward_backward": (workloads.include_with_gradient, require_right_inclusion),
}
"""Path -> what it computes of weights, by backend, and its check."""


def masking_module(path: str, sizes: Sizes, device: str) -> mam.MultinomialAttentionMasking:
    """The module of a path, with the same weights every time."""
    torch.manual_seed(0)
    of_tokens = path.startswith("token_path")
    module = mam.MultinomialAttentionMasking(
        sizes.width if of_tokens else None, sizes.width, sizes.latents, sizes.heads
    )
    return module.to(device, torch.bfloat16 if of_tokens else torch.float32)


def timed(contender: Contender, sizes: Sizes, device: str, **named: object) -> dict:
    """Microseconds of a call, as called and, on a GPU, of its kernels by graph replay. The first is
    recorded under ``named`` before the second is tried: a capture that fails spoils its process.
    """
    found = _time("as_called", contender, sizes, device)
    driver.record(**named, **found)
    if device == "cuda":
        found |= _time("replayed", measure.as_cuda_graph(contender), sizes, device)
    return found


def _time(name: str, contender: Contender, sizes: Sizes, device: str) -> dict:
    timing = measure.time_interleaved(
        {name: contender}, device=device, samples=sizes.samples, seconds=8.0
    )[name]
    return {f"{name}_us": 1e6 * timing.median, f"{name}_p80_us": 1e6 * timing.p80}


# The stages


def machine(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """Versions, and the two ceilings: a large copy, counted read and written, and a large product.

    The floors of all paths are taken against these.
    """
    device, size = chosen.device, 256 if chosen.tiny else 8192
    driver.record(environment=environment(device))
    source = torch.randint(0, 255, (2**20 if chosen.tiny else 2**30,), dtype=torch.uint8)
    source = source.to(device)
    target = torch.empty_like(source)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    timings = measure.time_interleaved(
        {
            "copy": Contender(lambda: target.copy_(source)),
            "product": Contender(lambda: left @ right),
        },
        device=device,
        samples=15,
        seconds=8.0,
    )
    driver.record(
        copied_bytes_a_second=2 * source.numel() / timings["copy"].median,
        product_flops_a_second=2 * size**3 / timings["product"].median,
    )


def kernel(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """Check one path on one backend, then time it beside its bound."""
    named = {"path": chosen.path, "backend": chosen.backend}
    contender, check = work(chosen.path, chosen.backend, sizes, chosen.device)
    check()
    driver.record(**named, right=True)
    found = timed(contender, sizes, chosen.device, **named)
    bound = evidence.bounds().get(chosen.path, {}).get(chosen.backend)
    taken = found.get("replayed_us", found["as_called_us"])
    over = None if bound is None else taken / bound
    driver.record(**named, bound_us=bound, over_bound=over, **found)


def rivals(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """What others take at the same sizes."""
    device = chosen.device
    weights = [(workloads.near_uniform_weights(sizes.cells, sizes.positions, device=device),)]
    few = [(workloads.cells(CHECKED_ROWS, sizes.positions, sizes.density, device=device),)]
    tokens = workloads.embeddings(
        sizes.token_cells, sizes.token_positions, sizes.width, device=device, dtype=torch.bfloat16
    )
    by_value, by_token = (
        paper_twin(masking_module(path, sizes, device)) for path in ("value_path", "token_path")
    )
    others = {
        "torch.topk of given keys": (Contender(workloads.topk_of_keys, weights), sizes.cells),
        "torch.multinomial": (Contender(workloads.select_by_multinomial, weights), sizes.cells),
        "paper computation, value path": (Contender(forward(by_value), few), CHECKED_ROWS),
        "paper computation, value path, with backward": (
            Contender(forward_backward(by_value), few),
            CHECKED_ROWS,
        ),
        "paper computation, token path": (
            Contender(forward(by_token), [(tokens,)]),
            sizes.token_cells,
        ),
        "paper computation, token path, with backward": (
            Contender(forward_backward(by_token), [(tokens,)]),
            sizes.token_cells,
        ),
    }
    if device == "cuda":
        flash = Contender(flash_attention(sizes), [(tokens.detach(),)])
        others["flash attention, forward alone"] = (flash, sizes.token_cells)
    for name, (contender, cells) in others.items():
        timing = measure.time_interleaved(
            {name: contender}, device=device, samples=sizes.samples, seconds=4.0
        )[name]
        driver.record(rival=name, cells=cells, as_called_us=1e6 * timing.median)


def flash_attention(sizes: Sizes) -> Callable[[Tensor], Tensor]:
    """Torch's flash kernel on a cross-attention of the same sizes, without projections."""
    head_dim = sizes.width // sizes.heads
    queries = torch.randn(1, sizes.heads, sizes.latents, head_dim, device="cuda")

    def run(tokens: Tensor) -> Tensor:
        heads = tokens.view(*tokens.shape[:2], sizes.heads, head_dim).transpose(1, 2)
        query = queries.to(tokens.dtype).expand(len(tokens), -1, -1, -1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, heads, heads)

    return run


def profile(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """The kernels of a whole step and what each takes, by torch's profiler."""
    from torch.profiler import ProfilerActivity

    contender, _ = work(chosen.path, chosen.backend, sizes, chosen.device)
    contender.function(*contender.inputs[0])
    activities = [ProfilerActivity.CPU]
    if chosen.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    calls = 3
    with torch.profiler.profile(activities=activities) as found:
        for arguments in itertools.islice(itertools.cycle(contender.inputs), calls):
            contender.function(*arguments)
        if chosen.device == "cuda":
            torch.cuda.synchronize()
    events = [
        (event.key, event.count, getattr(event, "self_device_time_total", 0.0))
        for event in found.key_averages()
    ]
    on_device = sorted((e for e in events if e[2] > 0), key=lambda e: -e[2])
    driver.record(
        profile=chosen.path,
        backend=chosen.backend,
        kernels=[
            {"kernel": name[:120], "launches": count / calls, "us": time / calls}
            for name, count, time in on_device[:20]
        ],
    )
    print(found.key_averages().table(row_limit=30))


def shape(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """The path with one other launch shape of its Triton kernels, checked and timed."""
    kernel, options = launch_shapes.ALTERNATIVES[chosen.path][chosen.alternative]
    named = {"path": chosen.path, "kernel": kernel, "shape": str(options)}
    try:
        with launch_shapes.applied(kernel, options) as launches:
            contender, check = work(chosen.path, "triton", sizes, chosen.device)
            check()
            if not launches:
                raise RuntimeError("the path does not launch this kernel")
            driver.record(**named, **timed(contender, sizes, chosen.device, **named))
    except Exception as error:  # a shape that does not fit is a result too
        driver.record(**named, error=f"{type(error).__name__}: {error}"[:300])


def twice(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """Two runs of every path with the same seed are the same bits."""
    for path in PATHS:
        contender, _ = work(path, chosen.backend, sizes, chosen.device)
        runs = []
        for _ in range(2):
            torch.manual_seed(0)  # modules that are given no seed take it from torch's generator
            runs.append(_tensors(contender.function(*contender.inputs[0])))
        same = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        driver.record(path=path, backend=chosen.backend, same_bits=same)
        if not same:
            raise SystemExit(f"{path}, {chosen.backend}: two runs differ")


def once(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """One call of a path, or of every path; what other tools look at."""
    for path in PATHS if chosen.path is None else (chosen.path,):
        contender, _ = work(path, chosen.backend, sizes, chosen.device)
        contender.function(*contender.inputs[0])
    if chosen.device == "cuda":
        torch.cuda.synchronize()


def under_tool(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """``once`` under compute-sanitizer or ncu, where they are."""
    tool, *flags = {
        "memcheck": ["compute-sanitizer", "--tool=memcheck", "--error-exitcode=9"],
        "racecheck": ["compute-sanitizer", "--tool=racecheck", "--error-exitcode=9"],
        "ncu": [
            "ncu", "--set=basic", "--clock-control=none", f"--kernel-name=regex:{OURS}kernel",
            "--launch-count=4", "--csv",
        ],
    }[chosen.tool]  # fmt: skip
    if shutil.which(tool) is None:
        driver.record(tool=chosen.tool, missing=f"{tool} is not on the PATH")
        return
    line = [tool, *flags, sys.executable, "-m", "benchmarks.gpu.stages", "once"]
    line += ["--backend", chosen.backend, "--device", chosen.device]
    line += ["--path", chosen.path] if chosen.path else []
    line += ["--tiny"] if chosen.tiny or chosen.tool != "ncu" else []
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    tail = [text for text in done.stdout.splitlines() if text.strip()][-40:]
    driver.record(tool=chosen.tool, backend=chosen.backend, status=done.returncode, tail=tail)
    if done.returncode:
        raise SystemExit(f"{chosen.tool}: exit status {done.returncode}")


def conformance(chosen: argparse.Namespace, sizes: Sizes) -> None:
    """The conformance suite on the device."""
    import pytest

    root = Path(__file__).parents[2]
    arguments = ["-q", "--maxfail=20", "-p", "no:cacheprovider", str(root / "tests/conformance")]
    arguments += ["-k", "selection and float32 and not statistics"] if chosen.tiny else []
    status = pytest.main(arguments)
    driver.record(conformance=chosen.backend, status=int(status))
    if status:
        raise SystemExit(int(status))


def _tensors(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found.detach()]
    return [tensor for part in found for tensor in _tensors(part)] if found is not None else []


STAGES = {
    function.__name__: function
    for function in (
        machine, kernel, rivals, profile, shape, twice, once, under_tool, conformance
    )
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.stages")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--path", choices=PATHS)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--tool", choices=("memcheck", "racecheck", "ncu"))
    parser.add_argument("--alternative", type=int, help="which launch shape of the path")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args(arguments)
    driver.wait_for_turn()
    STAGES[chosen.stage](chosen, TINY if chosen.tiny else Sizes())


if __name__ == "__main__":
    main()
