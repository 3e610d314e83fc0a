"""What the extension modules read of torch's tensors, without its headers (csrc/tensors.h)."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mam_kernels._core import extension
from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting

try:
    lib = extension.cpu()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

WORD = torch.tensor(1)
HERE = (0, 1)


def select(weights=None, valid=None, counts=None, draw=None, drawn=None, where=HERE):
    """A selection of four of eight, but for the argument that is given."""
    weights = torch.ones(2, 8) if weights is None else weights
    drawn = torch.zeros(2, 8, dtype=torch.bool) if drawn is None else drawn
    lib.select(
        weights,
        valid,
        torch.full((2,), 4, dtype=torch.int32) if counts is None else counts,
        Draw(WORD, WORD, None) if draw is None else draw,
        Weighting(0.0, 1.0),
        drawn,
        None,
        where,
    )
    return drawn


def test_a_call_writes_what_it_is_given():
    assert select().sum(dim=1).tolist() == [4, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"weights": torch.ones(2, 8, dtype=torch.float64)}, id="float64"),
        pytest.param({"weights": torch.ones(2, 8, dtype=torch.int32)}, id="integers"),
        pytest.param({"weights": torch.ones(16)}, id="one dimension"),
        pytest.param({"valid": torch.ones(2, 8)}, id="flags of floats"),
        pytest.param({"valid": torch.ones(16, dtype=torch.bool)}, id="flags of one dimension"),
        pytest.param({"counts": torch.ones(2, dtype=torch.int64)}, id="int64 for int32"),
        pytest.param({"counts": torch.ones(4, dtype=torch.int32)[::2]}, id="apart"),
        pytest.param({"draw": Draw(torch.tensor(1.0), WORD, None)}, id="a word of floats"),
        pytest.param({"draw": Draw(torch.ones(2).long(), WORD, None)}, id="two words"),
        pytest.param({"draw": Draw(None, WORD, None)}, id="no word"),
        pytest.param({"draw": (WORD, WORD)}, id="a tuple of two for three"),
        pytest.param({"draw": [WORD, WORD, None]}, id="a list"),
        pytest.param({"where": (0,)}, id="no threads"),
    ],
)
def test_what_would_be_followed_elsewhere_is_refused(wrong):
    drawn = torch.zeros(2, 8, dtype=torch.bool)
    with pytest.raises(TypeError, match="expected"):
        select(**wrong, drawn=drawn)
    assert not drawn.any()


@pytest.mark.parametrize("missing", [0, 2, 5])
def test_a_tensor_that_must_be_there_is_asked_for(missing):
    arguments = [
        torch.ones(2, 8),
        None,
        torch.full((2,), 4, dtype=torch.int32),
        Draw(WORD, WORD, None),
        Weighting(0.0, 1.0),
        torch.zeros(2, 8, dtype=torch.bool),
        None,
        HERE,
    ]
    arguments[missing] = None
    with pytest.raises(TypeError, match="expected a tensor"):
        lib.select(*arguments)


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param(torch.ones(2, 8, device="meta"), id="meta"),
        pytest.param(torch.ones(2, 8).to_sparse(), id="sparse"),
        pytest.param([[1.0] * 8] * 2, id="lists"),
    ],
)
def test_what_has_no_memory_on_the_device_is_refused(elsewhere):
    drawn = torch.zeros(2, 8, dtype=torch.bool)
    with pytest.raises((TypeError, RuntimeError, BufferError)):
        select(weights=elsewhere, drawn=drawn)
    assert not drawn.any()


def csr(crow, col, values):
    return Cells(values, crow, col, None, 5)


@pytest.mark.parametrize(
    "cells",
    [
        csr(torch.tensor([0, 2]), torch.tensor([0, 1], dtype=torch.int32), torch.ones(2)),
        csr(torch.tensor([0.0, 2.0]), torch.tensor([0, 1]), torch.ones(2)),
        csr(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.ones(3)),
        csr(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.ones(4)[::2]),
        csr(torch.tensor([], dtype=torch.int64), torch.tensor([0, 1]), torch.ones(2)),
    ],
)
def test_parts_of_a_csr_matrix_that_do_not_go_together_are_refused(cells):
    with pytest.raises(TypeError, match="the contiguous parts of a CSR matrix"):
        lib.value_workspace(cells, 1)


def test_tokens_are_dense_in_their_width():
    query, key = torch.ones(3, 2, 4), torch.ones(2, 5, 2, 4)
    lib.attention_workspace(query, key)
    for wrong in (key[..., ::2], key[0, 0], key.double()):
        with pytest.raises(TypeError, match="expected"):
            lib.attention_workspace(query, wrong)


def test_a_choice_counts_the_latents_that_it_names():
    """No latents are another thing than latents to draw."""
    slope, moments = torch.ones(3, 1), [torch.empty(2, 3, 1) for _ in range(3)]
    importance = torch.full((2, 5), -1.0)

    def run(latents):
        counts = torch.ones(2, dtype=torch.int32)
        lib.value_mask(
            Cells(torch.ones(2, 5), None, None, None, 5),
            None,
            slope,
            *slope.shape,
            Choice(None, counts, 0.0, latents, 3),
            Draw(WORD, WORD, None),
            Weighting(1e-8, 1.0),
            torch.empty(2, 5, dtype=torch.bool),
            importance,
            tuple(moments),
            None,
            HERE,
        )
        return importance.sum(dim=1)

    # each latent spreads a share of 1 over the positions
    torch.testing.assert_close(run(torch.tensor([0, 2])), torch.full((2,), 2.0))
    torch.testing.assert_close(run(torch.tensor([], dtype=torch.int64)), torch.zeros(2))


shapes = st.lists(st.integers(0, 3), min_size=0, max_size=3).map(tuple)
layouts = st.sampled_from(("plain", "apart", "turned", "double", "missing", "sparse", "meta"))


def tensor_of(shape: tuple[int, ...], layout: str) -> torch.Tensor | None:
    x = torch.zeros(shape)
    if layout == "apart":
        return torch.stack([x, x], dim=-1)[..., 0]
    return {
        "plain": x,
        "turned": x.T.contiguous().T if x.dim() == 2 else x,
        "double": x.double(),
        "missing": None,
        "sparse": x.to_sparse() if x.dim() else x,
        "meta": x.to("meta"),
    }[layout]


@given(st.lists(st.tuples(shapes, shapes | st.none(), layouts), min_size=1, max_size=4))
def test_alike_says_what_torch_says(entries):
    tensors = tuple(tensor_of(shape, layout) for shape, _, layout in entries)
    wanted = tuple(shape if other is None else other for shape, other, _ in entries)
    first = tensors[0]
    truth = all(
        x is not None
        and x.layout is torch.strided
        and x.device.type == "cpu"
        and x.shape == shape
        and x.is_contiguous()
        and x.dtype is first.dtype
        for x, shape in zip(tensors, wanted, strict=True)
    )
    assert lib.alike(tensors, wanted) is truth


def test_alike_needs_as_many_shapes():
    assert not lib.alike((torch.ones(2),), ((2,), (2,)))
    assert lib.alike(Parameters(*[torch.ones(2)] * 7), ((2,),) * 7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "del torch.Tensor.__dlpack_c_exchange_api__",
            "expected a torch whose tensors offer DLPack's exchange API",
        ),
        (
            "new = ctypes.pythonapi.PyCapsule_New\n"
            "new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, "
            "ctypes.c_void_p]\n"
            "table, name = (ctypes.c_uint32 * 16)(2, 0), b'dlpack_exchange_api'\n"
            "torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), name, None)",
            "expected version 1 of DLPack's exchange API; torch offers 2",
        ),
    ],
)
def test_a_torch_without_the_interface_is_a_backend_less(change, reason):
    script = f"import ctypes, torch\n{change}\nimport mam_kernels as mam\nprint(mam.backends())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"'cpu': Unavailable(reason=\"{reason}" in run.stdout
