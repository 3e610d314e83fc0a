"""The wheel that `make wheel` builds installs beside torch and runs where there is no compiler."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60
"""An installation beside torch and a first mask take less than this, whatever else runs."""

FIRST_MASK = """
import shutil, sys, torch, mam_kernels as mam
assert "site-packages" in mam.__file__ and sys.prefix in mam.__file__, mam.__file__
assert not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cc", "nvcc"))
assert mam.backends()["cpu"], mam.backends()["cpu"]
masker = mam.MultinomialAttentionMasking(latent_dim=16, num_latents=4, num_heads=2, backend="cpu")
assert masker(torch.rand(2, 50), seed=0).mask.sum(dim=1).tolist() == [15, 15]
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        cwd=environment.get("HOME", ROOT),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel with the CPU kernels alone; those for CUDA take minutes, and need nvcc."""
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*command, "--wheel-dir", folder, ROOT, MAM_WITH_CUDA="0")
    (built,) = folder.glob("mam_kernels-*.whl")
    return built


def test_it_runs_where_there_is_no_compiler(wheel, tmp_path):
    assert wheel.stat().st_size < 10e6
    home = tmp_path / "home"
    home.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh")
    python = tmp_path / "fresh" / "bin" / "python"
    (packages,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    import torch  # which the fresh environment borrows, with what it needs

    borrowed = {sysconfig.get_paths()["purelib"], str(Path(torch.__file__).parents[1])}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")

    began = time.monotonic()
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", wheel)
    nowhere = {"PATH": str(python.parent), "HOME": str(home), "PYTHONPATH": ""}
    run(python, "-c", FIRST_MASK, **nowhere)
    assert time.monotonic() - began < SECONDS
    table = run(python, "-c", "import mam_kernels.testing as t; print(t.check())", **nowhere)
    assert "cpu" in table and "MISS" not in table
