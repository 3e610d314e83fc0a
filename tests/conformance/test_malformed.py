"""Arguments that break what they promise: an error that says so, or the right result; never a crash
and never another's memory.

Calls that could crash are made in a child process, whose end is recorded.
"""

import faulthandler
import functools
import itertools
import json
import os
import re
import signal
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels._core.call import Cells, Choice, Draw, Parameters, TokenState, Weighting
from tests.conformance.comparing import all_pairs

ops = torch.ops.mam_kernels
B, L, N, H, D = 3, 40, 4, 2, 5  # rows, positions, latents, heads, head width
WIDTH, TOKEN = H * D, 7  # widths of latents and tokens

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def outcome_of(call: Callable[[], object]) -> str:
    """What a call ends with: "returned", or the error."""
    try:
        call()
    except (ValueError, TypeError) as error:
        kind = "ValueError" if isinstance(error, ValueError) else "TypeError"
        return f"{kind}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "returned"


def in_child(calls: dict[str, Callable[[], object]]) -> dict[str, str]:
    """The outcomes of calls in a process of their own, one after the other; a signal is the outcome
    of the call that it ended, and those after it have none.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        torch.set_num_threads(1)  # the threads of OpenMP are not in a forked process
        for call in calls.values():
            os.write(send, json.dumps(outcome_of(call)).encode() + b"\n")
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        outcomes = [json.loads(line) for line in pipe]
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        outcomes.append(signal.Signals(os.WTERMSIG(status)).name)
    return dict(zip(calls, outcomes, strict=False))


def test_crashes_are_recorded():
    calls = {"an error": lambda: int("x"), "none": lambda: None}
    calls |= {"a signal": lambda: os.kill(os.getpid(), signal.SIGSEGV), "beyond": lambda: None}
    outcomes = in_child(calls)
    assert list(outcomes) == ["an error", "none", "a signal"]
    assert outcomes["an error"].startswith("ValueError: invalid literal")
    assert (outcomes["none"], outcomes["a signal"]) == ("returned", "SIGSEGV")


def masker(backend: str, **options: object) -> mam.MultinomialAttentionMasking:
    torch.manual_seed(0)
    return mam.MultinomialAttentionMasking(
        None, latent_dim=WIDTH, num_latents=N, num_heads=H, backend=backend, **options
    )


# CSR


def csr(crow: object, col: object, values: object, size: tuple[int, int]) -> Tensor:
    parts = (torch.as_tensor(x) for x in (crow, col, values))
    return torch.sparse_csr_tensor(*parts, size=size, check_invariants=False)


def cells(kind: torch.dtype = torch.int64) -> Tensor:
    """Sound ones."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.rand(B, L, generator=generator)
    matrix = (dense * (dense < 0.3)).to_sparse_csr()
    return csr(
        matrix.crow_indices().to(kind), matrix.col_indices().to(kind), matrix.values(), (B, L)
    )


def spread(x: Tensor) -> Tensor:
    """The same numbers, every second one in memory."""
    return torch.stack([x, torch.full_like(x, 77)], dim=1)[:, 0]


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("crow", torch.int32),
        ("col", torch.int64),
        ("values", torch.int32),
        ("all", torch.int32),
        ("all", torch.int64),
        ("expanded", torch.int64),
    ],
)
def test_parts_of_a_csr_may_be_views(part, kind, backend, device):
    sound = cells(kind).to(device)
    crow, col, values = sound.crow_indices(), sound.col_indices(), sound.values()
    if part == "expanded":
        values = torch.full((1,), 0.75, device=device).expand(len(values))
        sound = csr(crow, col, values.clone(), (B, L))
    else:
        crow, col, values = (
            spread(x) if part in (name, "all") else x
            for name, x in (("crow", crow), ("col", col), ("values", values))
        )
    viewed = csr(crow, col, values, (B, L))
    slope = torch.linspace(-2, 2, N * H, device=device).view(N, H)
    for one, other in zip(
        mam.value_attention(viewed, slope, backend=backend),
        mam.value_attention(sound, slope, backend=backend),
        strict=True,
    ):
        assert torch.equal(one, other)
    step = masker(backend).to(device)
    for one, other in zip(step(viewed, seed=3), step(sound, seed=3), strict=True):
        assert torch.equal(one, other)


UNSOUND = {  # crow, col, columns -> what is wrong, and in which row
    "a column too large": (
        [0, 2, 4],
        [0, 5, 1, 9],
        6,
        r"row 1: expected columns in \[0, 6\); got 9",
    ),
    "a column far away": ([0, 2, 4], [0, 5, 1, 2**40], 6, r"row 1: expected columns .*; got 10"),
    "a negative column": ([0, 2, 4], [-1, 5, 1, 2], 6, r"row 0: expected columns .*; got -1"),
    "a column far below": ([0, 2, 4], [0, 5, -(2**40), 1], 6, "row 1: expected columns"),
    "columns that wrap around": ([0, 4], [0, 2**62, -(2**62), 5], 6, "row 0: expected columns"),
    "a column twice": (
        [0, 3, 4],
        [1, 3, 3, 0],
        6,
        "row 0: expected each column once; got column 3",
    ),
    "a column twice, apart": ([0, 1, 4], [0, 4, 1, 4], 6, "row 1: expected each column once"),
    "crow that falls": (
        [0, 3, 2, 4],
        [0, 1, 2, 3],
        6,
        "row 1: expected crow to grow .* 3 and then 2",
    ),
    "crow too large": ([0, 2, 9], [0, 1, 2, 3], 6, "row 1: expected crow to grow .* 4 stored"),
    "crow far away": ([0, 2**40, 4], [0, 1, 2, 3], 6, "row 0: expected crow to grow"),
    "crow below 0": ([0, -(2**40), 4], [0, 1, 2, 3], 6, "row 0: expected crow to grow"),
    "crow from 1": ([1, 2, 4], [0, 1, 2, 3], 6, "row 0: expected crow to begin at 0; got 1"),
    "crow that ends early": ([0, 2, 3], [0, 1, 2, 3], 6, "row 1: expected crow to end at the 4"),
    "more entries than columns": ([0, 4, 4], [0, 1, 0, 1], 2, "row 0: expected at most 2 entries"),
    "far more entries than columns": (
        [0, 0, 200],
        [0] * 200,
        100,
        "row 1: expected at most 100 entries",
    ),
}


WRITTEN_TWICE = {name for name in UNSOUND if "twice" in name or "more entries" in name}
"""Two threads write one place, and which of them is last is not promised: a race by its name."""


def unsound(name: str, device: torch.device) -> Tensor:
    crow, col, columns, _ = UNSOUND[name]
    values = torch.linspace(1, 2, len(col))
    return csr(crow, col, values, (len(crow) - 1, columns)).to(device)


@pytest.mark.parametrize("path", ["moments", "step", "step, visible", "step, maskable"])
def test_an_unsound_csr_is_an_error_or_stays_in_bounds(path, backend, device):
    if device.type != "cpu":
        pytest.skip("a crash on the GPU would take the whole process along")

    def call(name: str) -> object:
        values = unsound(name, device)
        if path == "moments":
            return mam.value_attention(values, torch.ones(N, H), backend=backend)
        visible = "visible" if path == "step, visible" else "all"
        flags = torch.ones(values.shape, dtype=torch.bool) if path == "step, maskable" else None
        step = masker(backend, context_from=visible)
        return step(values, valid=flags, maskable=flags, seed=1)

    names = set(UNSOUND)
    if backend == "cuda" and os.environ.get("MAM_SHIM_RACES") == "1":
        names -= WRITTEN_TWICE
    outcomes = in_child({name: functools.partial(call, name) for name in UNSOUND if name in names})
    assert set(outcomes) == names, outcomes
    for name, outcome in outcomes.items():
        if backend in ("cpu", "reference"):
            pattern = "ValueError: CSR values, " + UNSOUND[name][-1]
            assert re.match(pattern, outcome), (name, outcome)
        else:
            assert outcome == "returned", (name, outcome)


@pytest.mark.parametrize(
    ("crow", "size", "wrong"),
    [
        ([0, 1], (3, 6), "expected 4 offsets in crow, for 3 rows; got 2"),
        ([0, 1, 1, 1, 1, 1], (3, 6), "expected 4 offsets in crow, for 3 rows; got 6"),
        ([0, 1], (1, 0), "expected at most 0 stored entries, one a place; got 1"),
    ],
)
def test_a_csr_of_other_sizes_than_it_says_is_an_error(crow, size, wrong, backend, device):
    matrix = csr(crow, [0], [1.0], size).to(device)
    with pytest.raises(ValueError, match=wrong):
        mam.value_attention(matrix, torch.ones(N, H, device=device), backend=backend)
    with pytest.raises(ValueError, match=wrong):
        masker(backend).to(device)(matrix)


@pytest.mark.parametrize("name", UNSOUND)
def test_check_values_names_the_row_on_every_backend(name, backend, device):
    values = unsound(name, device)
    with mam.check_values(), pytest.raises(ValueError, match=UNSOUND[name][-1]):
        mam.value_attention(values, torch.ones(N, H, device=device), backend=backend)


def test_columns_need_not_be_sorted(backend, device):
    sound = cells().to(device)
    crow, col, values = sound.crow_indices(), sound.col_indices(), sound.values()
    spans = itertools.pairwise(crow.tolist())
    order = torch.cat([torch.arange(stop - 1, start - 1, -1) for start, stop in spans]).to(device)
    slope = torch.ones(N, H, device=device)
    turned = mam.value_attention(
        csr(crow, col[order], values[order], (B, L)), slope, backend=backend
    )
    for one, other in zip(turned, mam.value_attention(sound, slope, backend=backend), strict=True):
        torch.testing.assert_close(one, other)


# Booleans


def odd(flags: Tensor) -> Tensor:
    """The same truth in bytes that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(2)
    nonzero = torch.randint(2, 256, flags.shape, generator=generator, dtype=torch.uint8)
    data = (nonzero * flags.cpu()).numpy().view(np.bool_)
    return torch.from_numpy(data).to(flags.device)


@pytest.mark.parametrize(
    ("positions", "context", "sparse"),
    all_pairs([7, 600, 3000], ["all", "visible"], [False, True]),
)
def test_booleans_of_any_byte(positions, context, sparse, backend, device):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(B, positions, generator=generator)
    values = (values * (values < 0.3)).to(device)
    values = values.to_sparse_csr() if sparse else values
    valid, maskable = (torch.rand(B, positions, generator=generator) < 0.7 for _ in range(2))
    valid, step = valid.to(device), masker(backend, context_from=context).to(device)
    for may in (None, (maskable.to(device) & valid)):
        clean = step(values, valid=valid, maskable=may, seed=1)
        other = step(values, valid=odd(valid), maskable=None if may is None else odd(may), seed=1)
        for one, two in zip(clean, other, strict=True):
            assert torch.equal(one, two)


def test_booleans_of_any_byte_in_a_draw_and_over_tokens(backend, device):
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand(B, 3000, generator=generator).to(device)
    valid = (torch.rand(B, 3000, generator=generator) < 0.7).to(device)
    draws = [
        mam.sample_without_replacement(weights, 900, valid=flags, seed=1, backend=backend)
        for flags in (valid, odd(valid))
    ]
    assert torch.equal(*draws)
    query, key = (torch.randn(*s, H, D, generator=generator).to(device) for s in ((N,), (B, L)))
    query.requires_grad_()
    results = []
    for flags in (valid[:, :L], odd(valid)[:, :L]):
        output, sums = mam.latent_attention(query, key, key, valid=flags, backend=backend)
        latents = torch.arange(2, device=device)
        importance = mam.attention_importance(
            query, key, sums, latents, valid=flags, backend=backend
        )
        (gradient,) = torch.autograd.grad(output.square().sum(), query)
        results.append((output, sums, importance, gradient))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


# Numbers below the smallest normal one, and slopes that are not finite


@pytest.fixture
def flushing():
    if dispatch.interpreting():
        pytest.skip("the interpreter computes in numpy, as the thread was told")
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


def both_ways(call: Callable[[], Tensor]) -> list[Tensor]:
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        results.append(call())
        torch.set_flush_denormal(False)
    return results


@pytest.mark.parametrize("positions", [50, 3000])
@pytest.mark.parametrize("kind", ["small", "around the smallest", "some"])
def test_draws_do_not_depend_on_flushing(positions, kind, flushing, backend, device):
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(B, positions, generator=generator).double()
    weights = {
        "small": weights * 1e-40,
        "around the smallest": weights * 2.4e-38,
        "some": torch.where(weights < 0.5, weights * 1e-39, weights),
    }[kind]
    single = weights.to(device, torch.float32)

    def draw() -> Tensor:
        return mam.sample_without_replacement(single, positions // 3, seed=1, backend=backend)

    plain, flushed = both_ways(draw)
    assert torch.equal(plain, flushed)
    assert bool((plain.sum(dim=1) == positions // 3).all())
    exact = mam.reference.sample_without_replacement(single.double(), positions // 3, seed=1)
    if kind == "small":  # weights of few digits, whose ratios are the same in every type
        assert float((plain != exact).float().mean()) < 0.01


def test_a_step_does_not_depend_on_flushing(flushing, backend, device):
    generator = torch.Generator().manual_seed(6)
    values = torch.rand(B, 2100, generator=generator)
    values = torch.where(values < 0.1, values, values * 1e-39).to(device)
    for context in ("all", "visible"):
        step = masker(backend, context_from=context, eps=1e-39).to(device)
        plain, flushed = both_ways(lambda step=step: step(values, seed=1))
        assert torch.equal(plain.mask, flushed.mask)
        if backend == "cpu":  # elsewhere torch's own operations may flush
            assert torch.equal(plain.importance, flushed.importance)


@pytest.mark.parametrize("slope", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("row", ["zeros", "values", "without zeros", "far apart"])
def test_a_slope_that_is_not_finite_has_no_softmax(slope, row, backend, device):
    values = {
        "zeros": torch.zeros(1, L),
        "values": torch.arange(L)[None] / L,
        "without zeros": torch.full((1, L), 2.0),
        "far apart": torch.arange(L)[None] * 1e4,
    }[row].to(device)
    slopes = torch.tensor([[slope, 0.5]], device=device)
    found = mam.value_attention(values, slopes, backend=backend)
    assert all(bool(x[..., 0].isnan().all()) for x in found)
    assert all(bool(x[..., 1].isfinite().all()) for x in found)


def test_an_empty_row_is_empty_for_every_slope(backend, device):
    slopes = torch.tensor([[torch.inf, 0.5]], device=device)
    nowhere = torch.zeros(1, L, dtype=torch.bool, device=device)
    found = mam.value_attention(
        torch.ones(1, L, device=device), slopes, valid=nowhere, backend=backend
    )
    assert [x.flatten().tolist() for x in found] == [[-torch.inf] * 2, [0.0] * 2, [0.0] * 2]


# The operations, called past the public functions


def sound_arguments(op: str, device: torch.device) -> dict[str, object]:
    """A call that is right."""
    generator = torch.Generator().manual_seed(7)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    word, counts = torch.tensor(5), torch.full((B,), 5, dtype=torch.int32, device=device)
    valid = torch.ones(B, L, dtype=torch.bool, device=device)
    latents = torch.arange(2, device=device)
    values = {"weights": some(B, L).abs(), "num_samples": counts, "valid": valid}
    cells = Cells(some(B, L).abs(), None, None, valid, L)
    parameters = Parameters(
        latents=0.1 * some(N, WIDTH),  # steep slopes take the interpreter ten times as long
        in_weight=some(3 * WIDTH, WIDTH),
        in_bias=some(3 * WIDTH),
        token_weight=some(WIDTH, 1 if op.startswith("scalar") else TOKEN),
        token_bias=some(WIDTH),
        out_weight=some(WIDTH, WIDTH),
        out_bias=some(WIDTH),
    )
    masking = {
        "parameters": parameters,
        "choice": Choice(valid, counts, 0.5, latents, 2),
        "weighting": Weighting(1e-8, 1.0),
        "draw": Draw(word, word, torch.arange(B, device=device)),
        "heads": H,
        "visible": False,
    }
    embeddings = {"tokens": some(B, L, TOKEN), "valid": valid}
    incoming = {"grad_context": some(B, WIDTH), "grad_penalty": some()}
    state = TokenState(some(B, N, H, D), some(B, N, H), some(B, L, 2, H, D), torch.zeros(B, L) == 0)
    size = B * (2 * N * H + 1 + H) + 2 * H * WIDTH + 4 * WIDTH + 2 * H * H
    tokens = {"query": some(N, H, D), "key": some(B, L, H, D), "valid": valid, "scale": 0.5}
    both, sums = {**tokens, "value": some(B, L, H, D)}, some(B, N, H)
    output = {"grad_output": some(B, N, H, D), "output": some(B, N, H, D), "logsumexp": sums}
    calls = {
        "value_attention": {"cells": cells, "slope": some(N, H)},
        "scalar_masking": {
            **masking,
            "choice": masking["choice"]._replace(num_zeros=counts),
            "cells": cells,
        },
        "scalar_masking_backward": {
            **incoming,
            "parameters": parameters,
            "state": some(size),
            "rows": B,
            "heads": H,
        },
        "token_masking": {**masking, **embeddings, "keep": True},
        "token_masking_backward": {
            **incoming,
            **embeddings,
            "parameters": parameters,
            "state": state,
            "heads": H,
            "wants_tokens": True,
        },
        "latent_attention": both,
        "latent_attention_backward": {**both, **output, "grad_logsumexp": some(B, N, H)},
        "attention_importance": {**tokens, "logsumexp": sums, "latents": latents},
        "sample_without_replacement": {**values, "draw": masking["draw"]},
        "inclusion_probabilities": values,
        "inclusion_probabilities_backward": {
            "grad": some(B, L),
            "weights": values["weights"],
            "probability": some(B, L).sigmoid(),
            "time": some(B).double().abs(),
        },
    }
    return flattened(calls[op])


def flattened(parts: dict[str, object]) -> dict[str, object]:
    """The arguments of an operation: the fields of structures by the names of both."""
    found = {}
    for name, part in parts.items():
        fields = part._asdict() if hasattr(part, "_asdict") else None
        found |= {name: part} if fields is None else {f"{name}_{x}": y for x, y in fields.items()}
    return found


def sparse_arguments(op: str, device: torch.device) -> dict[str, object]:
    matrix = cells().to(device)
    parts = (matrix.values(), matrix.crow_indices(), matrix.col_indices())
    names = ("cells_values", "cells_crow", "cells_col")
    return sound_arguments(op, device) | dict(zip(names, parts, strict=True))


OPERATIONS = (
    "value_attention",
    "scalar_masking",
    "scalar_masking_backward",
    "token_masking",
    "token_masking_backward",
    "latent_attention",
    "latent_attention_backward",
    "attention_importance",
    "sample_without_replacement",
    "inclusion_probabilities",
    "inclusion_probabilities_backward",
)


WRONG_NUMBERS = {
    "cells_num_positions": (-1, L + 1, 2**40),
    "choice_zero_ratio": (1.5, float("nan")),
    "heads": (0, -1, 4),
    "rows": (-1, B + 1, 2**40),
    "scale": (float("nan"), float("inf")),
    "weighting_eps": (-1.0, float("nan"), float("inf")),
    "weighting_inverse_temperature": (0.0, -1.0, float("nan"), float("inf")),
}


def mistakes_with(name: str, x: object) -> dict[str, tuple[object, str]]:
    """Wrong values of an argument, and the error that each one deserves."""
    if not isinstance(x, Tensor):
        return {f"= {value}": (value, "ValueError") for value in WRONG_NUMBERS.get(name, ())}
    if name in ("draw_seed", "draw_step"):
        return {"of another type": (x.int(), "TypeError"), "of two": (x.expand(2), "ValueError")}
    found = {"with a dimension more": (x[None], "ValueError")}
    # types and sizes that others are compared with
    free = ("cells_values", "weights", "query", "state", "tokens", "parameters_latents")
    free_size = name in ("latents", "choice_latents", "parameters_latents", "slope")
    if name not in free:
        kinds = {torch.int32: torch.int64, torch.bool: torch.uint8, torch.int64: torch.int32}
        found["of another type"] = (x.to(kinds.get(x.dtype, torch.float16)), "TypeError")
    if x.dim() and not free_size and name != "query":
        found["too short"] = (x[:-1], "ValueError")
    if x.dim() > 1 and not free_size:
        found["too narrow"] = (x[..., :-1], "ValueError")
        if x.shape != x.transpose(0, -1).shape:
            found["turned"] = (x.transpose(0, -1), "ValueError")
    return found


def mistakes_of(op: str) -> dict[str, tuple[dict[str, object], str]]:
    """All single mistakes in a call, and some that take more."""
    cpu = torch.device("cpu")
    found = {
        f"{name} {what}": ({name: wrong}, error)
        for name, x in sound_arguments(op, cpu).items()
        for what, (wrong, error) in mistakes_with(name, x).items()
    }
    if "cells_crow" in sound_arguments(op, cpu):
        sparse = sparse_arguments(op, cpu)
        crow, col, values = (sparse[f"cells_{x}"] for x in ("crow", "col", "values"))
        for what, change in {
            "no offsets": {"crow": crow[:0]},
            "many offsets": {"crow": torch.zeros(2**20, dtype=torch.int64)},
            "fewer columns": {"col": col[:-1]},
            "columns of another type": {"col": col.int()},
            "no columns": {"col": None},
            "fewer values": {"values": values[:-1]},
            "values with a dimension more": {"values": values[None]},
            "num_positions below 0": {"num_positions": -1},
        }.items():
            error = "TypeError" if what == "columns of another type" else "ValueError"
            change = {f"cells_{name}": x for name, x in change.items()}
            found[f"CSR, {what}"] = (sparse | change, error)
    if "choice_latents" in sound_arguments(op, cpu):
        for ratio in (-0.5, 2.0, float("nan")):
            change = {"choice_num_masked": None, "choice_mask_ratio": ratio}
            found[f"a ratio of {ratio}"] = (change, "ValueError")
        for number in (0, -1, N + 1, 2**40):
            change = {"choice_latents": None, "choice_num_drawn": number}
            found[f"{number} latents"] = (change, "ValueError")
    return found


STRUCTURED = {x for kind in (Cells, Choice, Weighting, Draw, Parameters) for x in kind._fields}


def moved(x: object, device: torch.device) -> object:
    return x.to(device) if isinstance(x, Tensor) and x.dim() else x


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_sound_call_of_an_operation_returns(op, backend, device):
    getattr(ops, op)(**sound_arguments(op, device), backend=backend)


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_refuses_inconsistent_arguments(op, backend, device):
    mistakes, calls = mistakes_of(op), {}
    for name, (change, _) in mistakes.items():
        change = {key: moved(x, device) for key, x in change.items()}
        arguments = sound_arguments(op, device) | change
        calls[name] = functools.partial(getattr(ops, op), **arguments, backend=backend)
    outcomes = (
        in_child(calls)
        if device.type == "cpu"
        else {name: outcome_of(call) for name, call in calls.items()}
    )
    assert list(outcomes) == list(mistakes), outcomes
    for name, outcome in outcomes.items():
        kind, argument, text = (*outcome.split(": ", 2), "")[:3]
        assert kind == mistakes[name][1], (name, outcome)
        named = {*sound_arguments(op, device), *STRUCTURED}
        assert set(argument.split(", ")) & named, outcome
        assert re.search("expected .*; got ", text), outcome


@pytest.mark.parametrize("op", OPERATIONS)
def test_strides_of_every_argument_are_honoured(op, backend, device):
    arguments = sound_arguments(op, device)
    wanted = getattr(ops, op)(**arguments, backend=backend)
    apart = {
        name: torch.stack([x, torch.ones_like(x)], dim=-1)[..., 0]
        if isinstance(x, Tensor) and x.dim()
        else x
        for name, x in arguments.items()
    }
    found = getattr(ops, op)(**apart, backend=backend)
    wanted, found = (x if isinstance(x, (tuple, list)) else (x,) for x in (wanted, found))
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["scalar_masking", "attention_importance", "token_masking"])
def test_latents_out_of_range_are_refused_or_stay_in_bounds(op, backend, device):
    name = "latents" if op == "attention_importance" else "choice_latents"
    for latent in (N, -1, 2**40, -(2**40)):
        latents = torch.tensor([0, latent], device=device)
        arguments = sound_arguments(op, device) | {name: latents}
        call = functools.partial(getattr(ops, op), **arguments, backend=backend)
        if device.type == "cpu":
            expected = f"ValueError: latents: expected indices in [0, {N}); got {latent}"
            assert in_child({"call": call}) == {"call": expected}
        else:  # they are not read, so the nearest that exist stand for them
            call()
            torch.cuda.synchronize()
