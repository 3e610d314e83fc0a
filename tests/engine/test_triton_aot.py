"""Every Triton kernel compiles ahead of time, without a GPU, for the GPUs it is written for: no
spills, shared memory within bounds.

The launches are the launchers' own: they are called with tensors on the CPU, and what they would
launch is recorded and compiled. It runs in a process of its own, because Triton decides when it is
imported whether to interpret. The tests compile variants with every tile, type, stride and flag;
`PYTHONPATH=. python tests/engine/test_triton_aot.py` compiles all, and prints the table.
"""

import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.machine_code.launches import Variant, recording

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = 2


class Target(NamedTuple):
    """A GPU to compile for, and the shared memory that one program may have there."""

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}


def title(variant: Variant) -> str:
    """A kernel, its types and what it was compiled with."""
    flags = [
        f"{name}={value}"
        for name, value in variant.constants
        if name.isupper() and value is not False
    ]
    indices = ("*i1", "*i64", "*i32")
    types = {kind for _, kind in variant.signature if kind.startswith("*") and kind not in indices}
    named = " ".join(flags).replace("=True", "")
    return f"{variant.kernel} [{' '.join(sorted(types))}] {named}"


class Resources(NamedTuple):
    """What the compiled kernel uses."""

    title: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    serialized: bool  # whether the assembler runs products one by one that should overlap


LAUNCHES = {
    "selection": ["select_kernel"],
    "latents": ["draw_latents_kernel"],
    "inclusion probabilities": ["probabilities_kernel"],
    "inclusion probabilities, backward": ["inclusion_gradient_kernel"],
    "moments": ["value_kernel"],
    "masking step": ["value_kernel"],
    "value step": ["project_kernel", "value_kernel", "finish_kernel"],
    "value step, visible": ["project_kernel", "value_kernel", "value_kernel", "finish_kernel"],
    "value step, backward": [
        "rows_gradient_kernel",
        "sum_parts_kernel",
        "parameters_gradient_kernel",
    ],
    "attention, many cells": ["forward_kernel"],
    "gradients, many cells": ["statistics_kernel", "gradient_kernel"],
    "importance, many cells": ["importance_kernel"],
    "attention, one cell": ["forward_kernel", "merge_kernel"],
    "gradients, one cell": ["statistics_kernel", "gradient_kernel"],
    "gradients, float32": [
        "statistics_kernel",
        "key_value_gradient_kernel",
        "query_gradient_kernel",
    ],
    "importance, one cell": ["importance_kernel"],
    "token step": [
        "prepare_kernel",
        "draw_latents_kernel",
        "project_and_attend_kernel",
        "importance_kernel",
        "select_kernel",
        "context_kernel",
    ],
    "token step, padded, visible": [
        "prepare_kernel",
        "attended_kernel",
        "project_and_attend_kernel",
        "importance_kernel",
        "select_kernel",
        "attended_kernel",
        "project_and_attend_kernel",
        "context_kernel",
    ],
    "token step, backward": [
        "prepare_kernel",
        "context_kernel",
        "output_gradient_kernel",
        "gradient_kernel",
    ],
}
"""What each operation launches.

One more kernel in a call is some 5 us more of host time and a pass more over memory.
"""


def backend_module(folder: str, name: str = "triton") -> object:
    return importlib.import_module(f"mam_kernels.ops.{folder}.{name}")


def call_selection(dtype: object, flags: bool) -> None:
    """Selection of one type, with everything optional there or absent."""
    import torch

    from mam_kernels._core.call import Draw, Weighting

    selection = backend_module("selection")
    word = torch.tensor(5)
    ids, valid = (
        (torch.arange(2), torch.ones(2, 20000, dtype=torch.bool)) if flags else (None, None)
    )
    selection.select(
        torch.ones(2, 20000, dtype=dtype),
        torch.ones(2, dtype=torch.int32),
        valid,
        Draw(word, word, ids),
        Weighting(0.0, 0.5 if flags else 1.0),
    )
    selection.draw_latents(128, 38, Draw(word, word, None), torch.device("cpu"))


def call_inclusion(dtype: object, flags: bool) -> None:
    """Inclusion probabilities of one type, and their gradient."""
    import torch

    inclusion = backend_module("inclusion")
    weights = torch.ones(2, 20000, dtype=dtype)
    valid = torch.ones(2, 20000, dtype=torch.bool) if flags else None
    found, time = inclusion.probabilities(weights, torch.ones(2, dtype=torch.int32), valid)
    inclusion.backward(found, weights, found, time)


def call_value(dtype: object, csr: object, flags: bool) -> None:
    """The value path: moments alone, and the masking step; `csr` is the type of the indices, or
    None for dense values.
    """
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Weighting

    value = backend_module("value_attention")
    word, slope, positions = torch.tensor(5), torch.ones(128, 8), 20000
    ids, valid = (
        (torch.arange(2), torch.ones(2, positions, dtype=torch.bool)) if flags else (None, None)
    )
    counts, latents = torch.ones(2, dtype=torch.int32), torch.arange(38)
    dense = (torch.ones(2, positions, dtype=dtype), None, None)
    sparse = (
        torch.ones(8, dtype=dtype),
        torch.ones(3, dtype=csr or torch.int64),
        torch.ones(8, dtype=csr or torch.int64),
    )
    cells = Cells(*(dense if csr is None else sparse), valid, positions)
    value.moments(cells, slope)
    value.mask(
        cells,
        slope,
        Choice(valid, counts, 0.0, latents, 38),
        Weighting(1e-8, 0.5 if flags else 1.0),
        Draw(word, word, ids),
    )


def call_value_step(csr: bool, visible: bool = False, temperature: float = 1.0) -> None:
    """The whole step of scalar values, and where the context is of all of them its gradient."""
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting

    value, word, width = backend_module("value_attention"), torch.tensor(5), 256
    shapes = ((128, width), (3 * width, width), (3 * width,), (width, 1), (width,), (width, width))
    parameters = Parameters(*(torch.ones(x) for x in (*shapes, (width,))))
    index = torch.ones(3, dtype=torch.int64)
    cells = Cells(torch.ones(2, 20000), None, None, None, 20000)
    if csr:
        cells = Cells(torch.ones(8), index, torch.ones(8, dtype=torch.int64), None, 20000)
    choice, draw = Choice(None, None, 0.3, None, 38), Draw(word, word, None)
    weighting = Weighting(1e-8, 1 / temperature)
    *_, context, penalty, state = value.step(cells, parameters, 8, choice, weighting, draw, visible)
    if not visible:
        value.step_backward(context, penalty, parameters, 8, state, 2)


def call_token(dtype: object, width: int, flags: bool, latents: int = 128) -> None:
    """The token path, forward and backward; a small batch, whose rows are split, where `flags`."""
    import torch

    token = backend_module("latent_attention")
    batch, positions, heads = (1 if flags else 16), 2048, 8
    query = torch.ones(latents, heads, width, dtype=dtype)
    key = torch.ones(batch, positions, heads, width, dtype=dtype)
    valid = torch.ones(batch, positions, dtype=torch.bool) if flags else None
    logsumexp = torch.zeros(batch, latents, heads)
    output = torch.ones(batch, *query.shape, dtype=dtype)
    token.forward(query, key, key, valid, 0.1)
    token.logsumexp(query, key, valid, 0.1)
    token.backward(
        output, logsumexp if flags else None, query, key, key, valid, output, logsumexp, 0.1
    )
    token.importance(query, key, logsumexp, torch.arange(38), valid, 0.1)


def call_step(
    dtype: object, heads: int, padded: bool = False, visible: bool = False, backward: bool = True
) -> None:
    """The whole step on tokens, 256 wide, and its gradient."""
    import torch

    from mam_kernels._core.call import Choice, Draw, Parameters, Weighting

    token, word, width = backend_module("latent_attention"), torch.tensor(5), 256
    shapes = ((128, width), (3 * width, width), (3 * width,), (width, width), (width,))
    parameters = Parameters(*(torch.ones(x) for x in (*shapes, (width, width), (width,))))
    tokens = torch.ones(8, 256, width, dtype=dtype)
    valid = torch.ones(8, 256, dtype=torch.bool) if padded else None
    # Torch reads the queries of the chosen latents, which no kernel draws here.
    choice = Choice(None, None, 0.3, torch.arange(38) if visible else None, 38)
    parts = (choice, Weighting(1e-8, 1.0), Draw(word, word, None), visible, backward)
    *_, context, penalty, state = token.step(tokens, valid, parameters, heads, *parts)
    if backward:
        token.step_backward(context, penalty, tokens, valid, parameters, heads, state, True)


def launches(target_name: str) -> list[Variant]:
    """The launches of every launcher, over the types, widths and options that lead to different
    code.
    """
    import torch

    from mam_kernels._core import triton_launch

    target = TARGETS[target_name]
    triton_launch.is_amd = lambda: target.backend == "hip"
    if target.backend == "cuda":
        triton_launch.architecture = lambda _: target.arch
    with recording() as recorded:
        call_selection(torch.float32, flags=True)
        call_selection(torch.bfloat16, flags=False)
        call_inclusion(torch.float32, flags=True)
        call_inclusion(torch.bfloat16, flags=False)
        call_value(torch.float32, None, flags=True)
        call_value(torch.bfloat16, None, flags=False)
        call_value(torch.float32, torch.int32, flags=True)
        call_value(torch.float16, torch.int64, flags=False)
        call_value_step(csr=False, visible=True)
        call_value_step(csr=True, temperature=0.5)
        for width in (32, 64, 96, 256):
            call_token(torch.bfloat16, width, flags=True)
            call_token(torch.float32, width, flags=True)
        call_token(torch.float16, 16, flags=False)
        call_token(torch.float32, 32, flags=False, latents=40)  # no whole number of blocks
        for heads in (16, 8, 4, 2):
            call_step(torch.bfloat16, heads)
            call_step(torch.bfloat16, heads, padded=True, backward=heads == 8)
        call_step(torch.bfloat16, 8, visible=True, backward=False)
        call_step(torch.float16, 8, backward=False)
        call_step(torch.float32, 8)
    return list(dict.fromkeys(launch.variant for launch in recorded))


def launched() -> dict[str, list[str]]:
    """The kernels that each operation launches, in order: what a call costs the host and the device
    beside its arithmetic.
    """
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Weighting

    value, token, selection, inclusion = (
        backend_module(folder)
        for folder in ("value_attention", "latent_attention", "selection", "inclusion")
    )

    def of(call: Callable, *arguments: object) -> list[str]:
        with recording() as launches:
            call(*arguments)
        return [launch.variant.kernel for launch in launches]

    word, slope, chosen = torch.tensor(5), torch.ones(128, 8), torch.arange(38)
    weights, counts = torch.ones(64, 20000), torch.ones(64, dtype=torch.int32)
    cells, draw = Cells(weights, None, None, None, 20000), Draw(word, word, torch.arange(64))
    found = {
        "selection": of(selection.select, weights, counts, None, draw),
        "latents": of(selection.draw_latents, 128, 38, draw, torch.device("cpu")),
        "inclusion probabilities": of(inclusion.probabilities, weights, counts, None),
        "inclusion probabilities, backward": of(
            inclusion.backward, weights, weights, weights, torch.ones(64, dtype=torch.float64)
        ),
        "moments": of(value.moments, cells, slope),
        "masking step": of(
            value.mask,
            cells,
            slope,
            Choice(None, counts, 0.0, chosen, 38),
            Weighting(1e-8, 1.0),
            draw,
        ),
    }
    for what, batch, heads in (("many cells", 64, 8), ("one cell", 1, 1)):
        query, key = torch.ones(128, heads, 32), torch.ones(batch, 4096, heads, 32)
        query, key = query.bfloat16(), key.bfloat16()
        output, logsumexp = query.new_ones(batch, *query.shape), torch.zeros(batch, 128, heads)
        found |= {
            f"attention, {what}": of(token.forward, query, key, key, None, 0.1),
            f"gradients, {what}": of(
                token.backward, output, None, query, key, key, None, output, logsumexp, 0.1
            ),
            f"importance, {what}": of(token.importance, query, key, logsumexp, chosen, None, 0.1),
        }
    query, key, output = (x.float() for x in (query, key, output))
    found["gradients, float32"] = of(
        token.backward, output, None, query, key, key, None, output, logsumexp, 0.1
    )
    found["value step, visible"] = of(call_value_step, False, True)
    both = of(call_value_step, False)
    found["value step"] = both[:3]
    found["value step, backward"] = both[3:]
    found["token step"] = of(call_step, torch.bfloat16, 8, False, False, False)
    found["token step, padded, visible"] = of(call_step, torch.bfloat16, 8, True, True, False)
    both = of(call_step, torch.bfloat16, 8)
    found["token step, backward"] = both[len(found["token step"]) :]
    return found


def compile_one(variant: Variant, target_name: str) -> Resources:
    """Compile one kernel for one target and read what it uses."""
    from triton.backends.compiler import GPUTarget

    target = TARGETS[target_name]
    compiled = variant.compiled(GPUTarget(target.backend, target.arch, target.warp_size))
    registers, spilled = (nvidia_usage if target.backend == "cuda" else amd_usage)(compiled)
    shared = compiled.metadata.shared
    serialized = target_name == "sm_90" and is_serialized(compiled)
    return Resources(title(variant), target_name, registers, spilled, shared, serialized)


def is_serialized(compiled: object) -> bool:
    """Whether the assembler's log has a warning of the kind "Potential Performance Loss:
    wgmma.mma_async instructions are serialized" (C7510 to C7515): every product of the kernel then
    waits for the one before.
    """
    if "wgmma" not in compiled.asm["ptx"]:
        return False
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"])
        output = Path(folder) / "kernel.cubin"
        command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", source, "-o", output]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return re.search(r"C751[0-8]|Potential Performance Loss", log) is not None


def nvidia_usage(compiled: object) -> tuple[int, int]:
    """(registers a thread, bytes of local memory a thread): spills and stack frames both live in
    local memory.
    """
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def amd_usage(compiled: object) -> tuple[int, int]:
    """(vector registers a thread, bytes of scratch a thread)."""
    text = compiled.asm["amdgcn"]
    fields = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        for name in ("vgpr_count", "vgpr_spill_count")
    }
    return fields["vgpr_count"], 4 * fields["vgpr_spill_count"]


def traits(variant: Variant) -> set[tuple]:
    """What a variant has that others may have too: its tile, types and options together, the
    strides that it was compiled with, and the value of each flag.
    """
    constants = [(name, x) for name, x in variant.constants if name.isupper()]
    tile = [(name, x) for name, x in constants if not isinstance(x, bool) and "STRIDE" not in name]
    types = [kind for _, kind in variant.signature if kind in ("*fp32", "*fp16", "*bf16")]
    together = (tuple(tile), tuple(sorted(set(types))), variant.options)
    return {(variant.kernel, x) for x in (together, *constants) if x not in tile}


def covering(variants: list[Variant]) -> list[Variant]:
    """As few of the variants as have every trait of all of them; of two that add the same, the one
    with more flags, which needs more registers.
    """
    left = set().union(*map(traits, variants))
    chosen = []
    while left:
        best = max(
            variants,
            key=lambda x: (len(traits(x) & left), sum(value is True for _, value in x.constants)),
        )
        chosen.append(best)
        left -= traits(best)
    return chosen


def compile_everything(every: bool) -> list[Resources]:
    """Launches for every target, two compilations at a time: all of them, or those that cover."""
    jobs = [
        (launch, name)
        for name in TARGETS
        for launch in (launches(name) if every else covering(launches(name)))
    ]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_one, *zip(*jobs, strict=True)))


@functools.cache
def elsewhere() -> dict[str, Any]:
    """What this file prints with --json, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, __file__, "--json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def compiled_elsewhere() -> list[Resources]:
    """`compile_everything`, once."""
    return [Resources(*row) for row in elsewhere()["compiled"]]


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


@needs_triton
def test_number_of_launches() -> None:
    assert elsewhere()["launches"] == LAUNCHES


def test_few_variants_have_every_trait_of_all() -> None:
    def variant(types: str, **constants: object) -> Variant:
        signature = (("x", types),)
        return Variant("module", "kernel", signature, tuple(constants.items()), (), ())

    plain = variant("*fp32", BLOCK=16, A=False, B=False)
    both = variant("*fp32", BLOCK=16, A=True, B=True)
    one = variant("*fp32", BLOCK=16, A=True, B=False)
    wide = variant("*fp32", BLOCK=32, A=True, B=False)
    half = variant("*fp16", BLOCK=16, A=True, B=False)
    assert covering([plain, one, both]) == [both, plain]
    assert covering([plain, one, both, wide, half]) == [both, wide, half, plain]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_spills(target: str) -> None:
    spilling = [
        kernel
        for kernel in compiled_elsewhere()
        if kernel.target == target and kernel.spilled_bytes > 0
    ]
    assert not spilling, table(spilling)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_is_empty(target: str) -> None:
    """Triton has made nothing but a trap of a kernel, without a word."""
    empty = [k for k in compiled_elsewhere() if k.target == target and k.registers < 8]
    assert not empty, table(empty)


@needs_triton
@pytest.mark.slow
def test_products_are_not_serialized() -> None:
    serialized = [kernel for kernel in compiled_elsewhere() if kernel.serialized]
    assert not serialized, table(serialized)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_shared_memory_within_bounds(target: str) -> None:
    kernels = [kernel for kernel in compiled_elsewhere() if kernel.target == target]
    too_much = [kernel for kernel in kernels if kernel.shared_bytes > TARGETS[target].shared_bytes]
    assert kernels
    assert not too_much, table(too_much)


def table(kernels: list[Resources]) -> str:
    """Registers and spilled bytes a thread, and shared memory a program, by kernel and target."""
    lines = [f"{'target':<8}{'registers':>10}{'spilled B':>10}{'shared B':>10}  kernel"]
    lines += [
        f"{k.target:<8}{k.registers:>10}{k.spilled_bytes:>10}{k.shared_bytes:>10}  {k.title}"
        for k in kernels
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--json" in sys.argv:
        print(json.dumps({"launches": launched(), "compiled": compile_everything(every=False)}))
    else:
        print(table(compile_everything(every=True)))
