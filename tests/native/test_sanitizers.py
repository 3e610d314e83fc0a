"""The CPU kernels under the sanitizers of memory and undefined behaviour, for every instruction set
here, and under that of threads.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",  # lines of code; names of variables take a third of the time
    "-pthread",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-DMAM_BACKEND=cpu",
]
SANITIZERS = {
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


def build_script() -> ModuleType:
    """setup.py as a module, for what it knows of the instruction sets."""
    spec = importlib.util.spec_from_file_location("mam_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return build_script()


@pytest.fixture(scope="module")
def cxx() -> str:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return compiler


def compile_all(cxx: str, sets: dict[str, list[str]], folder: Path, extra: list[str]) -> list[Path]:
    """Every source of csrc/cpu, the kernels once for each instruction set;
    compiled side by side.
    """
    flags = [
        *FLAGS,
        f"-DMAM_X86={int(len(sets) > 1)}",
        f"-I{ROOT / 'csrc' / 'include'}",
        f"-I{ROOT / 'csrc'}",
        *extra,
    ]
    jobs = {
        f"kernels_{name}": ("kernels", [f"-DMAM_ISA={name}", *isa]) for name, isa in sets.items()
    }
    jobs |= {
        path.stem: (path.stem, [])
        for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
        if path.stem != "kernels"
    }
    running = {}
    for name, (source, isa) in jobs.items():
        command = [
            cxx,
            *flags,
            *isa,
            "-c",
            str(ROOT / "csrc" / "cpu" / f"{source}.cpp"),
            "-o",
            str(folder / f"{name}.o"),
        ]
        running[name] = subprocess.Popen(command)
    assert all(process.wait() == 0 for process in running.values())
    return [folder / f"{name}.o" for name in running]


@pytest.fixture(scope="module", params=SANITIZERS)
def driver(
    request: pytest.FixtureRequest,
    cxx: str,
    build: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The program that calls everything, named by what is looked for in it."""
    folder = tmp_path_factory.mktemp("sanitizers")
    sanitizers = SANITIZERS[request.param]
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    if subprocess.run(
        [cxx, *sanitizers, str(probe), "-o", str(folder / "probe")], capture_output=True
    ).returncode:
        pytest.skip("this compiler has no such sanitizer")
    sets = build.instruction_sets()
    if request.param == "threads":  # they meet outside of the kernels of an instruction set
        sets = {"baseline": []}
    objects = compile_all(cxx, sets, folder, sanitizers)
    program = folder / request.param
    source = str(ROOT / "tests" / "native" / "driver.cpp")
    include = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(
        [cxx, *FLAGS, *sanitizers, *include, source, *map(str, objects), "-o", str(program)],
        check=True,
    )
    return program


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_kernels_under_sanitizers(driver: Path, instruction_set: str):
    command = [str(driver)]
    if driver.name == "threads":
        if instruction_set != "baseline":
            pytest.skip("threads meet outside of the kernels of an instruction set")
        # its shadow memory needs the addresses that this leaves free
        command = [
            *(["setarch", "--addr-no-randomize"] if shutil.which("setarch") else []),
            *command,
        ]
    options = {"MAM_CPU_ISA": instruction_set, "ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | options)
    active = run.stdout.strip()
    if "unexpected memory mapping" in run.stderr or "failed to set personality" in run.stderr:
        pytest.skip(
            "the sanitizer of threads does not run here: " + run.stderr.strip().splitlines()[-1]
        )
    assert run.returncode == 0, run.stderr[-4000:]
    if active != instruction_set:
        pytest.skip(f"this machine runs {active}")


def test_instruction_sets_share_no_code(cxx: str, build: ModuleType, tmp_path: Path):
    """Merged inline functions would run AVX-512 code on machines without it: the kernels' objects
    must define nothing that is merged.
    """
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    # The objects of the installation, where they are of these sources; else they are compiled.
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"MAM_WITH_CUDA": "0"}, check=True)
    objects = f"build/temp.*-{sys.implementation.cache_tag}/mam_kernels._cpu"
    for name in build.instruction_sets():
        (target,) = ROOT.glob(f"{objects}/kernels_{name}.o")
        symbols = subprocess.run(
            ["nm", "--defined-only", str(target)], capture_output=True, text=True, check=True
        ).stdout
        merged = [line for line in symbols.splitlines() if line.split()[-2] in "WVuvw"]
        assert "draw_fused" in symbols
        assert not merged
