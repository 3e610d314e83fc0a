"""Installing with and without compilers, loading lazily, and instruction sets that agree."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mam_kernels._core import extension

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "/nonexistent/compiler"


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, where the environment variables are as given."""
    full = {
        key: value for key, value in os.environ.items() if not key.startswith("MAM_")
    } | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=full, capture_output=True, text=True
    )


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """``setup.py build_ext`` into ``folder``."""
    pytest.importorskip("setuptools")
    where = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    return python("setup.py", "build_ext", *where, **environment)


def test_no_compiler_is_no_failure(tmp_path: Path):
    run = build(tmp_path, MAM_WITH_CUDA="0", CXX=NOWHERE)
    assert run.returncode == 0, run.stderr
    assert "_cpu" in run.stderr + run.stdout  # the warning names what was left out
    assert not list(tmp_path.rglob("*.so"))


def test_cuda_wanted_but_no_nvcc_is_a_failure(tmp_path: Path):
    run = build(tmp_path, MAM_WITH_CUDA="1", CXX=NOWHERE, NVCC=NOWHERE)
    assert run.returncode != 0
    assert "nvcc was not found" in run.stderr


def test_unknown_wish_is_refused(tmp_path: Path):
    run = build(tmp_path, MAM_WITH_CUDA="maybe")
    assert run.returncode != 0
    assert "MAM_WITH_CUDA: expected 0, 1 or auto; got 'maybe'" in run.stderr


def test_what_was_not_built_is_reported(tmp_path: Path):
    shutil.copytree(
        ROOT / "mam_kernels",
        tmp_path / "mam_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    script = """
import json, sys
# An editable installation finds the modules of its own folder, whatever package asks for them.
sys.meta_path = [
    finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")
]
import mam_kernels as mam
print(json.dumps({name: str(state) for name, state in mam.backends().items()}))
"""
    run = python("-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    states = json.loads(run.stdout)
    assert "mam_kernels._cpu was not built" in states["cpu"]
    assert "mam_kernels._cuda was not built" in states["cuda"]
    assert states["reference"].startswith("Available")


def test_file_named_by_the_environment_must_exist():
    run = python(
        "-c",
        "from mam_kernels._core import extension; extension.cpu()",
        MAM_CPU_EXTENSION="/nonexistent/_cpu.so",
    )
    assert "ImportError: /nonexistent/_cpu.so is not an extension module" in run.stderr


ANSWERS = """
import sys, torch
import mam_kernels as mam
from mam_kernels._core import extension
torch.manual_seed(0)
values = torch.rand(6, 3000).mul_(6) * (torch.rand(6, 3000) < 0.1)
valid = torch.rand(6, 3000) < 0.9
moments = mam.value_attention(values, torch.randn(16, 4), valid=valid, backend="cpu")
drawn = [
    mam.sample_without_replacement(torch.rand(5, n) ** 3, n // 3, seed=1, backend="cpu")
    for n in (1, 17, 2500)
]
torch.save((extension.cpu().build_info["active"], tuple(moments), drawn), sys.argv[1])
"""


def answers(instruction_set: str, target: Path) -> tuple:
    run = python("-c", ANSWERS, str(target), MAM_CPU_ISA=instruction_set)
    assert run.returncode == 0, run.stderr
    return torch.load(target)


@pytest.fixture
def built():
    try:
        return extension.cpu()
    except ImportError as error:
        pytest.skip(str(error))


def test_instruction_sets_agree(built, tmp_path: Path):
    _, moments, drawn = answers("baseline", tmp_path / "baseline.pt")
    for name in ("avx2", "avx512"):
        active, other_moments, other_drawn = answers(name, tmp_path / f"{name}.pt")
        if active != name:
            continue  # this machine lacks it
        torch.testing.assert_close(other_moments, moments, rtol=3e-7, atol=3e-7)
        # Their logarithms round alike to a few 1e-7. No two of these keys are that close at the
        # threshold.
        assert all(torch.equal(a, b) for a, b in zip(other_drawn, drawn, strict=True))


def test_unknown_instruction_set_is_an_import_error(built):
    run = python(
        "-c", "from mam_kernels._core import extension; extension.cpu()", MAM_CPU_ISA="sse9"
    )
    assert "MAM_CPU_ISA: expected baseline, avx2 or avx512; got sse9" in run.stderr
    assert "ImportError" in run.stderr


def test_build_info_says_what_was_built(built):
    info = extension.build_info()["cpu"]
    assert info["version"] == "0.1.0"
    assert info["active"] in info["targets"].split(",")
    assert built.device == "cpu"
