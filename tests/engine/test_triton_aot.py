"""Every Triton kernel compiles ahead of time, without a GPU, for the GPUs it is written for: no
spills, shared memory within bounds.

The launches are the launchers' own: they are called with tensors on the CPU, and what they would
launch is recorded and compiled. It runs in a process of its own, because Triton decides when it is
imported whether to interpret. The tests compile variants with every tile, type, stride and flag for
sm_80 and sm_90, and with every tile for the others; with MAM_TEST_EVERY_VARIANT=1 in the
environment, all. `PYTHONPATH=. python tests/engine/test_triton_aot.py` prints the table of all.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.machine_code.launches import Variant
from tests.engine.triton_launches import (
    LAUNCHES,
    TARGETS,
    covering,
    launched,
    launches,
    tiles,
    traits,
)

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = max(1, (os.cpu_count() or 1) // 2)  # another group of tests runs beside this one


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


def counted() -> frozenset[Variant]:
    """What test_machine_code.py compiles: where these are taken, its kernels are there already."""
    from benchmarks.machine_code.compiled import recorded
    from benchmarks.machine_code.paths import PATHS

    calls = [path.triton for path in PATHS if path.triton is not None]
    return frozenset(launch.variant for call in calls for launch in recorded(call, 90))


def compile_everything(every: bool) -> list[Resources]:
    """Launches for every target, on half of the cores: all of them, or those that cover."""
    known = {"sm_90": counted()}
    jobs = []
    for name, target in TARGETS.items():
        chosen = launches(name)
        if not every:
            seen = traits if target.every_trait else tiles
            chosen = covering(chosen, known.get(name, frozenset()), seen)
        jobs += [(launch, name) for launch in chosen]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_one, *zip(*jobs, strict=True)))


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def compiled(elsewhere: dict[str, Any]) -> list[Resources]:
    """`compile_everything`, once."""
    return [Resources(*row) for row in elsewhere["compiled"]]


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


@needs_triton
def test_number_of_launches(elsewhere: dict[str, Any]) -> None:
    assert elsewhere["launches"] == LAUNCHES


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
    assert covering([plain, one, both, wide, half], traits=tiles) == [both, wide]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_spills(target: str, compiled: list[Resources]) -> None:
    spilling = [
        kernel for kernel in compiled if kernel.target == target and kernel.spilled_bytes > 0
    ]
    assert not spilling, table(spilling)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_is_empty(target: str, compiled: list[Resources]) -> None:
    """Triton has made nothing but a trap of a kernel, without a word."""
    empty = [k for k in compiled if k.target == target and k.registers < 8]
    assert not empty, table(empty)


@needs_triton
@pytest.mark.slow
def test_products_are_not_serialized(compiled: list[Resources]) -> None:
    serialized = [kernel for kernel in compiled if kernel.serialized]
    assert not serialized, table(serialized)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_shared_memory_within_bounds(target: str, compiled: list[Resources]) -> None:
    kernels = [kernel for kernel in compiled if kernel.target == target]
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
        every = os.environ.get("MAM_TEST_EVERY_VARIANT") == "1"
        print(json.dumps({"launches": launched(), "compiled": compile_everything(every)}))
    else:
        print(table(compile_everything(every=True)))
