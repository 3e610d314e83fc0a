"""What the extension modules read of torch's tensors, without its headers (csrc/tensors.h)."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mam_kernels._core import extension
from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting
from mam_kernels.ops.value_attention import arguments

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


class Subclass(torch.Tensor):
    """A tensor that something else may listen to."""


NEGATED = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
PARAMETER = torch.nn.Parameter(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("thing", "plain"),
    [
        pytest.param(torch.ones(3), True, id="tensor"),
        pytest.param(PARAMETER, True, id="parameter"),
        pytest.param(torch.tensor(2), True, id="word"),
        pytest.param(torch.ones(4)[::2], True, id="apart"),
        pytest.param(torch.ones(0, 3), True, id="empty"),
        pytest.param(torch.ones(3, dtype=torch.bool), True, id="flags"),
        pytest.param(None, True, id="None"),
        pytest.param(3, True, id="int"),
        pytest.param(True, True, id="bool"),
        pytest.param(0.5, True, id="float"),
        pytest.param("cpu", True, id="string"),
        pytest.param((), True, id="nothing"),
        pytest.param(
            (torch.ones(3), Cells(torch.ones(2, 5), None, None, None, 5)), True, id="parts"
        ),
        pytest.param(NEGATED, False, id="negated"),
        pytest.param(NEGATED.resolve_neg(), True, id="negation carried out"),
        pytest.param(torch._efficientzerotensor((3,)), False, id="zeros never written"),
        pytest.param(torch.ones(3).as_subclass(Subclass), False, id="subclass"),
        pytest.param(torch.nn.Parameter(torch.ones(3).as_subclass(Subclass)), False, id="of one"),
        pytest.param(torch.ones(3, device="meta"), False, id="meta"),
        pytest.param(torch.ones(2, 3).to_sparse(), False, id="sparse"),
        pytest.param(torch.ones(2, 3).to_sparse_csr(), False, id="CSR"),
        pytest.param([torch.ones(3)], False, id="list"),
        pytest.param(object(), False, id="object"),
        pytest.param((1, (2, NEGATED)), False, id="one among parts"),
    ],
)
def test_what_is_what_it_seems_to_be(thing, plain):
    assert lib.is_plain(thing) is plain


def test_tensors_of_a_transform_are_not_what_they_seem():
    answers = []

    def ask(x):
        answers.append(lib.is_plain(x))
        return x.sum()

    x = torch.rand(3, 2)
    torch.func.vmap(ask)(x)
    torch.func.grad(ask)(x)
    torch.func.functionalize(ask)(x)
    with FakeTensorMode() as mode:
        ask(mode.from_tensor(x))
    assert answers == [False] * 4


# --- What a masking step takes as it is ---

ROWS, POSITIONS, LATENTS, HEADS, WIDTH = 3, 7, 5, 2, 4


def parameters_of() -> Parameters:
    shapes = [(LATENTS, WIDTH), (3 * WIDTH, WIDTH), (3 * WIDTH,)]
    shapes += [(WIDTH, 1), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    return Parameters(*map(torch.zeros, shapes))


def step_arguments(sparse: bool = False) -> dict:
    """Of a step that needs no check."""
    values, crow, col = torch.rand(ROWS, POSITIONS), None, None
    if sparse:
        values, crow, col = torch.rand(4), torch.tensor([0, 2, 2, 4]), torch.tensor([0, 6, 1, 2])
    return {
        "cells": Cells(values, crow, col, None, POSITIONS),
        "parameters": parameters_of(),
        "heads": HEADS,
        "choice": Choice(None, None, 0.5, None, 2),
        "weighting": Weighting(1e-8, 1.0),
        "draw": Draw(1, 2, None),
        "visible": False,
    }


def backward_arguments() -> dict:
    return {
        "grad_context": torch.ones(ROWS, WIDTH),
        "grad_penalty": torch.tensor(1.0),
        "parameters": parameters_of(),
        "heads": HEADS,
        "state": torch.zeros(arguments.state_size(ROWS, LATENTS, HEADS, WIDTH)),
        "rows": ROWS,
    }


CALLS = {
    "step": (step_arguments, lib.step_fits, arguments.step),
    "sparse step": (lambda: step_arguments(sparse=True), lib.step_fits, arguments.step),
    "step_backward": (backward_arguments, lib.step_backward_fits, arguments.step_backward),
}
call = pytest.mark.parametrize("name", CALLS)


def fields(given: dict) -> list[tuple[str, str | None]]:
    """Every argument, or of a structure every field."""
    return [
        (key, field)
        for key, value in given.items()
        for field in (value._fields if hasattr(value, "_fields") else (None,))
    ]


def alterations(x: object) -> list[object]:
    """Other values for an argument: what the checks convert, refuse, or take as well."""
    if not isinstance(x, torch.Tensor):
        numbers = [-1, 0, 1, 2, 3, 9, 2**31, 0.0, 0.25, 1.0, 1.5, -1.0, 1e-40, 1e31, float("nan")]
        flags = [torch.ones(s, dtype=torch.bool) for s in ((ROWS, POSITIONS), (ROWS,), (2, 7))]
        flags.append(torch.ones(ROWS, POSITIONS, dtype=torch.uint8))
        kinds = (torch.int32, torch.int64)
        counts = [torch.ones(n, dtype=kind) for n in (ROWS, 2) for kind in kinds]
        words = [torch.tensor(3), torch.tensor([3]), torch.tensor(3, dtype=torch.int32)]
        return [None, *numbers, *flags, *counts, *words, torch.ones(ROWS, 1, dtype=torch.int32)]
    types = [
        x.to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool)
    ]
    shapes = [x[None], x.flatten()] + ([x[:-1], torch.cat([x, x])] if x.dim() else [])
    layouts = [torch.stack([x, x], dim=-1)[..., 0], x.to("meta")]
    layouts += [x.T.contiguous().T, x.to_sparse()] if x.dim() == 2 else []
    return [None, *types, *shapes, *layouts]


def altered(given: dict, key: str, field: str | None, value: object) -> tuple:
    changed = value if field is None else given[key]._replace(**{field: value})
    return tuple({**given, key: changed}.values())


def unchanged(parts: tuple, checked: tuple) -> bool:
    """Whether the checks returned their arguments as they were."""
    return len(parts) == len(checked) and all(
        unchanged(a, b)
        if isinstance(a, tuple)
        else a is b or (not isinstance(a, torch.Tensor) and a == b)
        for a, b in zip(parts, checked, strict=True)
    )


@call
def test_a_call_as_it_is_nearly_always_fits(name):
    build, fits, check = CALLS[name]
    parts = tuple(build().values())
    assert fits(*parts)
    assert unchanged(parts, check(*parts))


@call
def test_what_fits_is_what_the_checks_return_as_it_is(name):
    build, fits, check = CALLS[name]
    given, tried, fitted = build(), 0, 0
    for key, field in fields(given):
        value = given[key] if field is None else getattr(given[key], field)
        for other in alterations(value):
            parts = altered(given, key, field, other)
            try:
                answer = fits(*parts)
            except (TypeError, RuntimeError):  # no number, or not one of its kind
                answer = False
            tried += 1
            if answer:
                fitted += 1
                assert unchanged(parts, check(*parts)), (key, field, other)
    assert tried > 100
    assert fitted > 10


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("cells", "valid", torch.ones(ROWS, POSITIONS, dtype=torch.bool)),
        ("cells", "valid", torch.ones(POSITIONS, ROWS, dtype=torch.bool).T),
        ("cells", "values", torch.rand(ROWS, POSITIONS, dtype=torch.bfloat16)),
        ("cells", "values", torch.rand(ROWS, 2 * POSITIONS)[:, ::2]),
        ("choice", "maskable", torch.ones(ROWS, POSITIONS, dtype=torch.bool)),
        ("choice", "num_masked", torch.ones(ROWS, dtype=torch.int32)),
        ("choice", "num_zeros", torch.ones(ROWS, dtype=torch.int32)),
        ("choice", "zero_ratio", 0.5),
        ("weighting", "eps", 0.0),
        ("draw", "seed", torch.tensor(3)),
        ("draw", "step", 2**32 - 1),
        ("draw", "sample_ids", torch.arange(ROWS)),
    ],
)
def test_what_users_give_fits(key, field, value):
    parts = altered(step_arguments(), key, field, value)
    assert lib.step_fits(*parts)
    assert unchanged(parts, arguments.step(*parts))


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
