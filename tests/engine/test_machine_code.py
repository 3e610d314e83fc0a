"""The count of the kernels' machine code counts what it should, and no bound grows unnoticed."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.machine_code import annotations, count, sass
from benchmarks.machine_code.__main__ import RESULT
from benchmarks.machine_code.device import H200, Count, limits, resident
from benchmarks.machine_code.paths import PATHS

ALLOWED_GROWTH = 1.03

needs_tools = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None
    or not (os.environ.get("NVCC") or shutil.which("nvcc")),
    reason="needs nvcc, and the disassembler of the package triton",
)

LISTING = """
	.section	.text.loops,"ax",@progbits
	//## File "{file}", line 2
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
	//## File "{file}", line 3
        /*0010*/                   FADD R1, R1, R2 ;
.L_x_1:
	//## File "{file}", line 4
        /*0020*/                   DFMA R2, R2, R4, R6 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
	//## File "{file}", line 3
        /*0040*/              @!P1 BRA `(.L_x_0) ;
	//## File "{file}", line 7
        /*0050*/                   STG.E [R2.64], R1 ;
	//## File "{file}", line 9
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2) ;
"""

SOURCE = """__global__ void loops_kernel() {
  int thread = 0;
  for (int i = 0; i < n; ++i) {  // trips: rows
    for (int j = 0; j < m; ++j) {  // trips: columns / 2
    }
  }
  write();  // share: 0
  // phase: end
  return;
}
"""


@pytest.fixture
def function(tmp_path):
    """Two loops, one in the other, and a statement that is never executed."""
    file = tmp_path / "loops.cu"
    file.write_text(SOURCE)
    (parsed,) = sass.parse(LISTING.replace("{file}", str(file)))
    return parsed


def test_loops_times_their_trips(function):
    counted = count.count(function, {"rows": 5, "columns": 6})
    assert not counted.unstated
    # S2R and EXIT once, FADD and the outer branch 5 times, the inner loop 15 times
    assert counted.total.issue == 2 + 2 * 5 + 2 * 15
    assert counted.total.float64 == 15
    assert counted.total.memory == 0
    assert counted.phases["end"].issue == 1


def test_a_loop_that_nobody_states_is_reported(function, tmp_path):
    (tmp_path / "loops.cu").write_text(SOURCE.replace("trips: rows", "rows"))
    annotations.notes.cache_clear()
    counted = count.count(function, {"columns": 6})
    assert len(counted.unstated) == 1


def test_a_wrong_formula_names_itself(function):
    with pytest.raises(ValueError, match="columns / 2"):
        count.count(function, {"rows": 5})


def test_limits_are_those_of_the_units():
    seconds = limits(Count(issue=4.0, float64=2.0, shared=128.0), 4.3e12, 1, H200)
    clock = 1 / H200.clock
    assert seconds["issue"] == seconds["float64"] == seconds["shared"] == pytest.approx(clock)
    assert seconds["bytes"] == pytest.approx(1.0)
    assert limits(Count(issue=4.0), 0.0, 264, H200)["issue"] == pytest.approx(clock / 132)


def test_blocks_of_a_multiprocessor():
    assert resident(H200, 128, 128, 54 * 1024) == 4
    assert resident(H200, 128, 128, 1024) == 4
    assert resident(H200, 1024, 32, 1024) == 2


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_no_bound_grows(path, backend):
    from benchmarks.machine_code import report

    committed = json.loads(Path(RESULT).read_text())
    rows = list(report.rows(path, backend, 90))
    if not rows:
        pytest.skip(f"{path.name} has no entry for {backend}")
    assert not [line for row in rows if row.counted for line in row.counted.unstated]
    bound = sum(row.launches * row.microseconds for row in rows)
    assert bound <= ALLOWED_GROWTH * committed["bounds_us"][path.name][backend]
    launches = sum(row.launches for row in rows)
    assert launches <= committed["launches"][path.name][backend]
