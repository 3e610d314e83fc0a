"""The count of the kernels' machine code counts what it should, and no bound grows unnoticed."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.machine_code import annotations, count, sass
from benchmarks.machine_code.__main__ import RESULT
from benchmarks.machine_code.compiled import recorded
from benchmarks.machine_code.device import H200, Count, limits, resident
from benchmarks.machine_code.paths import PATHS
from benchmarks.machine_code.token_path import OTHER_SIZES
from benchmarks.machine_code.torch_operations import operations

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


MIXED = """
	.section	.text.mixed,"ax",@progbits
	//## File "{file}", line 1
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
{lines}
	//## File "{file}", line {last}
        /*0f00*/              @!P0 BRA `(.L_x_0) ;
        /*0f10*/                   EXIT ;
"""
TWO_LOOPS = """__global__ void mixed_kernel() {
  for (int i = 0; i < n; ++i) {  // trips: rows
    first();
  }
  for (int j = 0; j < m; ++j) {  // trips: columns
    second();
  }
  other();
}
"""


def parsed_in(listing: str, folder: Path) -> sass.Function:
    """The function of a listing whose "{file}" is a source with TWO_LOOPS."""
    file = folder / "mixed.cu"
    file.write_text(TWO_LOOPS)
    annotations.notes.cache_clear()
    (parsed,) = sass.parse(listing.replace("{file}", str(file)))
    return parsed


def mixed_loop(folder: Path, lines: list[int], last: int = 8) -> count.Counted:
    """The count of a loop with an instruction of each of these lines of TWO_LOOPS, and a branch
    back of the `last`.
    """
    listed = [
        f'\t//## File "{{file}}", line {line}\n        /*{16 * n:04x}*/    FADD R1, R1, R2 ;'
        for n, line in enumerate(lines, 1)
    ]
    listing = MIXED.replace("{lines}", "\n".join(listed)).replace("{last}", str(last))
    return count.count(parsed_in(listing, folder), {"rows": 5, "columns": 7})


def test_a_loop_takes_the_note_that_most_of_its_lines_lie_in(tmp_path):
    counted = mixed_loop(tmp_path, [3] * 6 + [8] * 3)
    assert not counted.unstated
    assert counted.total.issue == 2 + 5 * 10


def test_a_fifth_of_the_lines_states_a_loop_whose_others_lie_in_none(tmp_path):
    counted = mixed_loop(tmp_path, [3] * 3 + [8] * 6)
    assert not counted.unstated
    assert counted.total.issue == 2 + 5 * 10
    assert len(mixed_loop(tmp_path, [3] * 2 + [8] * 8).unstated) == 1


def test_no_note_states_a_loop_of_which_others_hold_as_much(tmp_path):
    assert len(mixed_loop(tmp_path, [3] * 4 + [6] * 4 + [8] * 2).unstated) == 1
    assert mixed_loop(tmp_path, [3] * 5 + [6] * 4 + [8] * 2).total.issue == 2 + 5 * 12


def test_the_branch_back_states_a_loop_that_its_lines_do_not(tmp_path):
    assert mixed_loop(tmp_path, [3] + [8] * 8, last=5).total.issue == 2 + 7 * 10


LEFTOVERS = """
	.section	.text.nested,"ax",@progbits
	//## File "{file}", line 1
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
	//## File "{file}", line 6
        /*0010*/                   FADD R1, R1, R2 ;
        /*0020*/                   FADD R1, R1, R2 ;
        /*0030*/                   FADD R1, R1, R2 ;
        /*0040*/                   FADD R1, R1, R2 ;
	//## File "{file}", line 3
        /*0050*/                   FADD R1, R1, R2 ;
        /*0060*/                   FADD R1, R1, R2 ;
        /*0070*/                   FADD R1, R1, R2 ;
.L_x_1:
	//## File "{file}", line 6
        /*0080*/                   FADD R1, R1, R2 ;
        /*0090*/              @!P0 BRA `(.L_x_1) ;
	//## File "{file}", line 8
        /*00a0*/              @!P1 BRA `(.L_x_0) ;
        /*00b0*/                   EXIT ;
"""


def test_what_is_left_of_a_loop_inside_does_not_state_the_one_around_it(tmp_path):
    parsed = parsed_in(LEFTOVERS, tmp_path)
    counted = count.count(parsed, {"rows": 5, "columns": 7})
    assert not counted.unstated
    assert counted.total.issue == 2 + 5 * 8 + 5 * 7 * 2


FAR = """
	.section	.text.far,"ax",@progbits
	//## File "{file}", line 8
        /*0000*/              @!P1 CALL.REL.NOINC `(.L_x_1) ;
        /*0010*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   FADD R1, R1, R2 ;
        /*0030*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_rn_f64_full) ;
.L_x_0:
        /*0040*/                   EXIT ;
$__internal_0_$__cuda_sm20_div_rn_f64_full:
        /*0050*/                   DADD R2, R2, R2 ;
        /*0060*/                   RET.REL.NODEC R4 `(far) ;
"""


def test_a_call_of_a_label_of_the_kernel_is_a_branch(tmp_path):
    parsed = parsed_in(FAR, tmp_path)
    assert count.count(parsed, {}).total.issue == 5


DIVERGED = """
	.section	.text.shuffle,"ax",@progbits
	//## File "{file}", line 8
        /*0000*/                   BRA.DIV UR4, `(.L_x_1) ;
        /*0010*/                   SHFL.BFLY PT, R2, R1, 0x1, 0x1f ;
.L_x_0:
        /*0020*/                   FADD R1, R1, R2 ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/                   WARPSYNC.COLLECTIVE R3, `(.L_x_2) ;
        /*0050*/                   SHFL.BFLY P1, R2, R1, R4, R5 ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_0) ;
"""


def test_a_shuffle_is_counted_once(tmp_path):
    parsed = parsed_in(DIVERGED, tmp_path)
    assert count.count(parsed, {}).total.issue == 4
    assert count.count(parsed, {}).total.shared == 128


WAITING = """
	.section	.text.waits,"ax",@progbits
	//## File "{file}", line 8
        /*0000*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P5, [UR13], R36 ;
        /*0010*/              @!P5 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   UTCHMMA gdesc[UR4], gdesc[UR8], tmem[UR20], idesc[UR11], UPT ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P5, [UR13], R36 ;
        /*0050*/              @!P5 BRA `(.L_x_1) ;
        /*0060*/                   BRA `(.L_x_0) ;
"""


def test_a_loop_that_waits_is_counted_once(tmp_path):
    parsed = parsed_in(WAITING, tmp_path)
    counted = count.count(parsed, {})
    assert not counted.unstated
    assert counted.total.issue == 7
    assert counted.total.tensor_instructions == 1


def test_launches_are_those_of_the_architecture():
    pytest.importorskip("triton")
    both = next(path for path in PATHS if path.name == "token_path_forward_backward")
    names = {
        arch: [launch.variant.kernel for launch in recorded(both.triton, arch)]
        for arch in (80, 90, 100)
    }
    assert "gradient_kernel" in names[90]
    assert "key_value_gradient_kernel" in names[80]  # without wgmma, block by block
    options = [
        dict(launch.variant.options)["num_warps"]
        for arch in (90, 100)
        for launch in recorded(both.triton, arch)
        if launch.variant.kernel == "context_kernel"
    ]
    assert options == [4, 4, 8, 8]


def test_operations_of_torch_are_recorded():
    import torch

    def call() -> None:
        left = torch.empty(8, 4, 16, device="meta", dtype=torch.bfloat16)
        right = torch.empty(16, 32, device="meta", dtype=torch.bfloat16)
        for _ in range(2):
            product = left.view(32, 16) @ right
        (product.float() @ torch.empty(32, 8, device="meta")).t()
        torch.tensor(1.0).add(1)  # on the host

    product, copy, exact = operations(call)
    assert (product.launches, copy.launches, exact.launches) == (2, 1, 1)
    assert product.operations == exact.operations32 * 2 == 2 * 32 * 16 * 32
    assert product.operations32 == exact.operations == copy.operations == copy.operations32 == 0
    assert product.bytes == 2 * (32 * 16 + 16 * 32 + 32 * 32)
    assert copy.bytes == (2 + 4) * 32 * 32
    assert "mm [32, 16] x [16, 32] bfloat16" in product.name


@pytest.mark.parametrize("passes", ["token_path_forward", "token_path_forward_backward"])
def test_other_sizes_cost_what_the_target_size_costs(passes):
    """Bytes, products and bounds of a token, as they were counted."""
    counted = json.loads(Path(RESULT).read_text())["other_sizes"][passes]
    assert list(counted) == list(OTHER_SIZES)
    for name, found in counted.items():
        for unit in ("bound", "products", "bytes"):
            assert 0.5 < found[unit] <= 1.3, (name, unit)


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
