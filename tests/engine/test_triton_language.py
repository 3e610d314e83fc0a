"""The building blocks of the Triton kernels, in the interpreter: in a process of its own, since
Triton decides that when it is imported.
"""

import importlib.util
import itertools
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mam_kernels._core import dispatch, philox
from mam_kernels._core.call import Cells, Choice, Draw, Weighting
from mam_kernels.ops.selection import reference

INTERPRETING = dispatch.interpreting()
interpreted = pytest.mark.skipif(
    not INTERPRETING, reason="these run in the interpreter, started by the first test of the file"
)

if INTERPRETING:
    import triton
    import triton.language as tl
    from triton.runtime import interpreter

    from mam_kernels._core import triton_language as language
    from mam_kernels._core import triton_launch as launch
    from mam_kernels.ops.selection.triton import draw_latents, select
    from mam_kernels.ops.selection.triton.all_keys import kth_smallest
    from mam_kernels.ops.value_attention.triton import mask

    @triton.jit
    def bits_kernel(
        out_ptr,
        seed: tl.int64,
        sample_id: tl.int64,
        step: tl.int64,
        first,
        STREAM: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        bits = language.positional_bits(
            first, seed.to(tl.int64), sample_id.to(tl.int64), step.to(tl.int64), STREAM, BLOCK
        )
        tl.store(out_ptr + tl.arange(0, BLOCK), bits.to(tl.int64))

    @triton.jit
    def uniform_kernel(bits_ptr, out_ptr, BLOCK: tl.constexpr):
        lane = tl.arange(0, BLOCK)
        tl.store(out_ptr + lane, language.uniform(tl.load(bits_ptr + lane).to(tl.uint32)))

    @triton.jit
    def exponential_kernel(v_ptr, out_ptr, BLOCK: tl.constexpr):
        lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + lane, language.exponential(tl.load(v_ptr + lane)))

    @triton.jit
    def kth_kernel(keys_ptr, out_ptr, length, k, BLOCK: tl.constexpr):
        threshold, num_equal = kth_smallest(keys_ptr, length, k, BLOCK)
        tl.store(out_ptr, threshold)
        tl.store(out_ptr + 1, num_equal)


@pytest.mark.skipif(INTERPRETING, reason="this is the process with the interpreter")
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def words(
    seed: int, sample_id: int, step: int, first: int = 0, stream: int = 0, block: int = 64
) -> torch.Tensor:
    out = torch.empty(block, dtype=torch.int64)
    bits_kernel[(1,)](out, seed, sample_id, step, first, STREAM=stream, BLOCK=block)
    return out


@interpreted
def test_philox_known_answers() -> None:
    zeros = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words(0, 0, 0)[:4].tolist() == zeros


@interpreted
@pytest.mark.parametrize("seed", [0, 1, -1, 5 - 2**63, 2**62 + 12345])
@pytest.mark.parametrize("sample_id", [0, 7, -3, 2**40 + 9])
@pytest.mark.parametrize("stream", [0, 1])
def test_bits_are_the_references(seed: int, sample_id: int, stream: int) -> None:
    step, first = 2**32 - 1, 192
    expected = philox.random_bits(
        256, torch.tensor([sample_id]), torch.tensor(step), torch.tensor(seed), stream
    )[0, first:]
    assert torch.equal(words(seed, sample_id, step, first, stream), expected)


@interpreted
def test_uniforms_are_the_references() -> None:
    edges = torch.tensor([0, 1, 2**24, 2**24 + 1, 2**31, 2**32 - 2**8, 2**32 - 2, 2**32 - 1])
    out = torch.empty(8)
    uniform_kernel[(1,)](edges, out, BLOCK=8)
    assert torch.equal(out, philox.uniforms(edges))
    assert float(out.max()) < 1.0


@interpreted
def test_exponential_keeps_every_digit() -> None:
    """4 roundings of float32, from the smallest uniform to the largest."""
    generator = np.random.default_rng(0)
    spread = [
        10 ** generator.uniform(-10, 0, 2**19),
        1 - 10 ** generator.uniform(-7.2, 0, 2**19),
        generator.uniform(0, 1, 2**20),
    ]
    smallest, largest = 0.5 * 2.0**-32, philox.LARGEST_UNIFORM
    v = torch.from_numpy(np.concatenate(spread).clip(smallest, largest)).float().clamp(max=largest)
    v[:2] = torch.tensor([smallest, largest])
    out = torch.empty_like(v)
    exponential_kernel[(v.numel() // 2**16,)](v, out, BLOCK=2**16)
    exact = -torch.log1p(-v.double())
    assert float(((out.double() - exact) / exact).abs().max()) <= 2.4e-7


@interpreted
@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 300])
@pytest.mark.parametrize("distinct", [2, 10**9])
def test_kth_smallest(length: int, distinct: int) -> None:
    """Through the histogram, masked lanes too: a lane past the row or outside the candidates must
    not be counted.
    """
    generator = torch.Generator().manual_seed(length)
    keys = torch.randint(0, distinct, (length,), generator=generator).float() * 1e-3
    keys[length // 2] = torch.inf
    ordered = keys.sort().values
    for k in {1, (length + 1) // 2, length}:
        out = torch.empty(2, dtype=torch.int32)
        kth_kernel[(1,)](keys, out, length, k, BLOCK=64)
        threshold = out[:1].view(torch.float32)[0]
        assert threshold == ordered[k - 1]
        assert int(out[1]) == k - int((keys < threshold).sum())


@interpreted
def test_ties_go_to_the_lower_index() -> None:
    """Two positions of a long row whose uniforms are equal in float32: k is such that one of them
    is drawn.
    """
    word, positions = torch.tensor(3), 200_000
    bits = philox.random_bits(
        positions, torch.zeros(1, dtype=torch.int64), word, word, philox.STREAM_POSITIONS
    )
    keys = -torch.log1p(-philox.uniforms(bits).double())[0]
    ordered, order = keys.sort(stable=True)
    tie = int((ordered[1:] == ordered[:-1]).nonzero()[0])
    counts = torch.tensor([tie + 1], dtype=torch.int32)
    drawn = select(torch.ones(1, positions), counts, None, Draw(word, word, None))[0]
    lower, higher = order[tie : tie + 2].tolist()
    assert lower < higher
    assert bool(drawn[lower])
    assert not bool(drawn[higher])
    assert int(drawn.sum()) == tie + 1


@interpreted
@pytest.mark.parametrize(
    ("num_latents", "seed"),
    [*itertools.product([1, 5, 64, 65], [0, -7, 2**40]), (200, -7)],  # more take seconds each
)
def test_draw_latents(num_latents: int, seed: int) -> None:
    for size in {0, 1, num_latents // 3, num_latents}:
        draw = Draw(torch.tensor(seed), torch.tensor(11), None)
        arguments = (num_latents, size, draw, torch.device("cpu"))
        assert torch.equal(draw_latents(*arguments), reference.draw_latents(*arguments))


@interpreted
@pytest.mark.parametrize("seed", [3, -(2**62)])
def test_words_on_the_device_draw_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, counts = torch.rand(2, 300), torch.tensor([30, 100], dtype=torch.int32)
    draw = Draw(torch.tensor(seed), torch.tensor(2**31 + 5), None)
    by_value = select(weights, counts, None, draw)
    latents = draw_latents(40, 9, draw, torch.device("cpu"))
    monkeypatch.setattr(launch, "word", lambda x: (0, x))
    assert torch.equal(select(weights, counts, None, draw), by_value)
    assert torch.equal(draw_latents(40, 9, draw, torch.device("cpu")), latents)


def far_apart(row: torch.Tensor, stride: int, file: Path) -> torch.Tensor:
    """The same row in a file, its columns ``stride`` elements apart: behind every other stand ones,
    and else zeros.
    """
    kind, length = row.numpy().dtype, row.shape[1]
    size = kind.itemsize * stride * length
    with file.open("w+b") as new:
        try:
            new.truncate(size)
            mapped = mmap.mmap(new.fileno(), size)
        except (OSError, ValueError) as error:
            pytest.skip(f"no sparse file of {size:,} bytes can be mapped here: {error}")
    mapped.madvise(mmap.MADV_RANDOM)  # what lies between is not read
    columns = np.frombuffer(mapped, kind).reshape(length, stride)
    columns[::2, :2048] = 1
    columns[:, 0] = row[0]
    return torch.from_numpy(columns[:, :1].T)


@pytest.fixture
def no_copies_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies whole storages to where its arguments came from, which is here where
    they are already.
    """
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)


# a step of 512 or 1024 columns comes to 2^32 elements and a few more: cut off, these alone
FAR_STRIDE = 2**23 + 1


@interpreted
@pytest.mark.usefixtures("no_copies_back")
def test_selection_steps_over_columns_in_64_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 1100, generator=generator).half()
    valid = torch.rand(weights.shape, generator=generator) < 0.7
    counts, draw = (
        torch.tensor([300], dtype=torch.int32),
        Draw(torch.tensor(3), torch.tensor(5), None),
    )
    far = (
        far_apart(weights, FAR_STRIDE, tmp_path / "w"),
        far_apart(valid, FAR_STRIDE, tmp_path / "v"),
    )
    expected = select(weights, counts, valid, draw)
    assert int(expected.sum()) == 300
    assert torch.equal(select(far[0], counts, None, draw), select(weights, counts, None, draw))
    assert torch.equal(select(weights, counts, far[1], draw), expected)


@interpreted
@pytest.mark.usefixtures("no_copies_back")
@pytest.mark.parametrize("part", ["values", "valid", "maskable"])
def test_values_step_over_columns_in_64_bits(part: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 1100, generator=generator)
    valid = torch.rand(values.shape, generator=generator) < 0.9
    maskable = valid & (torch.rand(values.shape, generator=generator) < 0.5)
    parts = {"values": (values * (values > 0.5)).half(), "valid": valid, "maskable": maskable}
    slope, counts = torch.linspace(-1, 1, 4)[:, None], torch.tensor([200], dtype=torch.int32)
    draw = Draw(torch.tensor(3), torch.tensor(5), None)

    def masked(values, valid, maskable):
        cells = Cells(values, None, None, valid, values.shape[1])
        choice = Choice(maskable, counts, 0.0, torch.arange(2), 2)
        return mask(cells, slope, choice, Weighting(1e-8, 1.0), draw)

    expected = masked(**parts)
    assert int(expected[0].sum()) == 200
    far = parts | {part: far_apart(parts[part], FAR_STRIDE, tmp_path / "columns")}
    for got, wanted in zip(masked(**far), expected, strict=True):
        assert torch.equal(got, wanted)
