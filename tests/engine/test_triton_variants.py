"""Rows of other lengths, batches of other sizes and other counts do not make Triton compile anew: a
kernel exists once for a type, and once more where rows are a multiple of 16 long.
"""

import collections
import importlib.util
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.machine_code.launches import Variant, recording
from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") == "1", reason="the interpreter compiles nothing"
    ),
]
LENGTHS = range(1000, 1101)
LATENTS, HEADS, WIDTH = 128, 8, 256
CHOSEN = torch.arange(38)


def source() -> Draw:
    return Draw(torch.tensor(5), torch.tensor(5), None)


def select(rows: int, length: int, count: int) -> None:
    from mam_kernels.ops.selection import triton

    counts, valid = torch.full((rows,), count), torch.ones(rows, length, dtype=torch.bool)
    triton.select(torch.ones(rows, length), counts.int(), valid, source(), Weighting(1e-8, 1.0))


def mask_values(rows: int, length: int, count: int, stored: int | None = None) -> None:
    """``stored``: entries of a CSR matrix, or None for dense rows."""
    from mam_kernels.ops.value_attention import triton

    valid = torch.ones(rows, length, dtype=torch.bool)
    if stored is None:
        cells = Cells(torch.ones(rows, length), None, None, valid, length)
    else:
        indices = torch.ones(rows + 1, dtype=torch.int64), torch.ones(stored, dtype=torch.int64)
        cells = Cells(torch.ones(stored), *indices, valid, length)
    counts = torch.full((rows,), count, dtype=torch.int32)
    choice = Choice(valid, counts, 0.0, CHOSEN, len(CHOSEN))
    triton.mask(cells, torch.ones(LATENTS, HEADS), choice, Weighting(1e-8, 1.0), source())


def mask_sparse_values(rows: int, length: int, count: int) -> None:
    mask_values(rows, length, count, stored=rows * 50 + count)


def mask_tokens(rows: int, length: int, _: int) -> None:
    """The step with its gradient, on tensors without content."""
    from mam_kernels.ops.latent_attention import triton

    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = ((LATENTS, WIDTH), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,))
        parameters = Parameters(*(torch.ones(x) for x in (*shapes, (WIDTH, WIDTH), (WIDTH,))))
        tokens = torch.ones(rows, length, WIDTH, dtype=torch.bfloat16)
        choice = Choice(None, None, 0.3, None, len(CHOSEN))
        given = tokens, torch.ones(rows, length, dtype=torch.bool), parameters, HEADS
        parts = choice, Weighting(1e-8, 1.0), source(), False, True
        *_, context, penalty, state = triton.step(*given, *parts)
        triton.step_backward(context, penalty, *given, state, True)


def variants(call, sizes) -> dict[str, set[Variant]]:
    """Kernel -> what would be compiled of it in calls with these sizes."""
    found: dict[str, set[Variant]] = collections.defaultdict(set)
    with recording() as launches:
        for size in sizes:
            call(*size)
    for launch in launches:
        found[launch.variant.kernel].add(launch.variant)
    return found


@pytest.mark.parametrize("call", [select, mask_values, mask_sparse_values])
def test_lengths_rows_and_counts_do_not_compile_anew(call):
    sizes = [(1 + length % 5, length, length // 3) for length in LENGTHS]
    found = variants(call, sizes)
    assert found
    assert max(len(kinds) for kinds in found.values()) == 2
    regular = [size for size in sizes if size[1] % 16]
    assert all(len(kinds) == 1 for kinds in variants(call, regular).values())


def test_lengths_of_tokens_do_not_compile_anew():
    sizes = [(64, length, 0) for length in LENGTHS[::7]]
    found = variants(mask_tokens, sizes)
    both_passes = {"prepare_kernel", "context_kernel"}
    for name, kinds in found.items():
        assert len(kinds) <= (3 if name in both_passes else 2), name
    regular = variants(mask_tokens, [size for size in sizes if size[1] % 16])
    for name, kinds in regular.items():
        assert len(kinds) == (2 if name in both_passes else 1), name


def test_the_recorder_tells_variants_apart():
    sizes = [(2, 1001, 5), (2, 1008, 5)]  # the second is a multiple of 16 long
    assert len(variants(select, sizes)["select_kernel"]) == 2
