"""How row kernels are launched: what was measured nearest, the default where nothing was, and no
other masks whatever is taken.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mam_kernels._core import row_configurations
from mam_kernels._core.row_configurations import Measured, RowConfiguration, nearest, read, write

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL, LARGE, OTHER = (
    RowConfiguration(4, 64, 512),
    RowConfiguration(8, 128, 1024),
    RowConfiguration(16, 64, 4096, 1024),
)
MEASURED = [
    Measured("value", "NVIDIA H200", "sm_90", 2000, SMALL, 10.0, "2026-11-22"),
    Measured("value", "NVIDIA H200", "sm_90", 20000, LARGE, 40.0, "2026-11-22"),
    Measured("value", "NVIDIA H100 PCIe", "sm_90", 20000, OTHER, 60.0, "2026-11-22"),
]


@pytest.mark.parametrize(
    ("device", "architecture", "positions", "expected"),
    [
        ("NVIDIA H200", "sm_90", 20000, LARGE),
        ("NVIDIA H200", "sm_90", 6000, SMALL),  # 3 times 2000, but less than a third of 20000
        ("NVIDIA H200", "sm_90", 7000, LARGE),
        ("NVIDIA H200", "sm_90", 0, SMALL),
        (
            "NVIDIA H100 PCIe",
            "sm_90",
            100,
            OTHER,
        ),  # its own comes before a nearer one of another device
        ("NVIDIA GH200 480GB", "sm_90", 2000, SMALL),  # the architecture's
        ("NVIDIA A100-SXM4-80GB", "sm_80", 2000, RowConfiguration()),
    ],
)
def test_takes_what_was_measured_nearest(device, architecture, positions, expected):
    assert nearest(MEASURED, "value", device, architecture, positions) == expected


def test_takes_the_default_for_a_kernel_that_was_not_measured():
    assert nearest(MEASURED, "selection", "NVIDIA H200", "sm_90", 2000) == RowConfiguration()


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "configurations.json"
    write(MEASURED, path)
    assert sorted(read(path)) == sorted(MEASURED)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ['[{"kernel": "value"}]', '{"value": 1}', "[3]"])
def test_a_wrong_file_is_named(text, tmp_path):
    path = tmp_path / "configurations.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"configurations\.json: expected a list of measured configurations"
    ):
        read(path)


def test_the_file_of_the_package_can_be_launched():
    for measured in read():
        assert measured.kernel in row_configurations.KERNELS
        chosen = measured.configuration
        assert 32 * chosen.warps * chosen.registers <= 65536
        assert all(
            size & (size - 1) == 0 for size in (chosen.warps, chosen.block, chosen.series_block)
        )


def test_the_cpu_has_the_default():
    assert (
        row_configurations.row_configuration("value", torch.device("cpu"), 1000)
        == RowConfiguration()
    )


TUNE = """
import json
from benchmarks import tune
from mam_kernels._core.row_configurations import RowConfiguration, Measured
tune.CELLS = 3
found = {}
for kernel in ("value", "selection"):
    default, *others = tune.candidates()
    assert default == RowConfiguration() and default not in others and len(others) == len(set(others))
    best, microseconds = tune.fastest(kernel, 300, "cpu", [default, RowConfiguration(4, 64, 256, 128)], 0.1)
    assert microseconds > 0
    found[kernel] = best
merged = tune.merged([Measured("value", "a", "x", 9, default, 1.0, "old"), Measured("value", "b", "x", 9, default, 1.0, "old")],
                     [Measured("value", "a", "x", 9, default, 2.0, "new")])
assert [(m.device, m.date) for m in merged] == [("a", "new"), ("b", "old")]
print(json.dumps({kernel: best._asdict() for kernel, best in found.items()}))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_tuning_finds_a_configuration_and_every_candidate_draws_the_same_masks():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", TUNE],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {tuple(best.values()) for best in found.values()} <= {
        (16, 128, 2048, 512),
        (4, 64, 256, 128),
    }


def test_tuning_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tune"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 2
    assert done.stderr == "error: torch sees no GPU; on the CPU there is nothing to tune\n"
