"""The CPU kernels execute no more instructions than they did: the guard against losing speed that
needs no clock.
"""

import json

import pytest

from benchmarks import instructions


@pytest.mark.slow
def test_no_kernel_executes_more_instructions_than_are_kept():
    kept = json.loads(instructions.KEPT.read_text())
    try:
        if instructions.compiler()[1] != kept["compiler"]:
            pytest.skip(
                f"the counts are of {kept['compiler']}; this is {instructions.compiler()[1]}"
            )
        now = instructions.count_all()
    except instructions.Uncountable as reason:
        pytest.skip(str(reason))
    different = instructions.changes(kept, now)
    assert not different, (
        "; ".join(different) + "; if that is meant: python -m benchmarks.instructions --save"
    )


def test_a_change_beyond_the_tolerance_is_named():
    kept = {"instructions": {name: {"selection": 1000, "gone": 10} for name in instructions.SETS}}
    now = {"instructions": {name: {"selection": 1029, "new": 10} for name in instructions.SETS}}
    assert instructions.changes(kept, kept) == []
    assert instructions.changes(kept, now) == [
        line
        for name in instructions.SETS
        for line in (f"{name}, gone: no longer counted", f"{name}, new: not kept yet")
    ]
    now = {"instructions": {name: {"selection": 1040, "gone": 10} for name in instructions.SETS}}
    assert instructions.changes(kept, now)[0] == "avx2, selection: 1,040 instructions, +4.0%"
    fewer = {"instructions": {name: {"selection": 900, "gone": 10} for name in instructions.SETS}}
    # What was won is kept too.
    assert len(instructions.changes(kept, fewer)) == len(instructions.SETS)


def test_counts_are_kept_of_every_call():
    kept = json.loads(instructions.KEPT.read_text())
    assert set(kept["instructions"]) == set(instructions.SETS)
    for counts in kept["instructions"].values():
        assert len(counts) >= 6
        assert min(counts.values()) > 10_000
