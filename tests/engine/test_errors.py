"""Bad input gets an error that names the argument, the requirement and what came, and changes
nothing. Empty input gets empty results.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mam_kernels as mam

ROOT = Path(mam.__file__).parents[1]
B, L, D, N, H, WIDTH = 2, 6, 4, 3, 2, 5

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch calls its CSR support beta


def rand(*shape: int, **options) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), **options)


def values_module(**options) -> mam.MultinomialAttentionMasking:
    return mam.MultinomialAttentionMasking(
        **({"latent_dim": 8, "num_latents": 5, "num_heads": 2} | options)
    )


def mask_values(**changes) -> object:
    return values_module()(**({"tokens": rand(B, L)} | changes))


def mask_counted(**changes) -> object:
    return mask_values(**({"num_masked": 1, "num_zeros": 1} | changes))


def mask_tokens(**changes) -> object:
    return values_module(input_dim=D)(**({"tokens": rand(B, L, D)} | changes))


def sample(**changes) -> object:
    return mam.sample_without_replacement(**({"weights": rand(B, L), "num_samples": 2} | changes))


def attend_values(**changes) -> object:
    return mam.value_attention(**({"values": rand(B, L), "slope": rand(N, H)} | changes))


def attend_tokens(**changes) -> object:
    plain = {"query": rand(N, H, WIDTH), "key": rand(B, L, H, WIDTH), "value": rand(B, L, H, WIDTH)}
    return mam.latent_attention(**(plain | changes))


def importance(**changes) -> object:
    plain = {
        "query": rand(N, H, WIDTH),
        "key": rand(B, L, H, WIDTH),
        "logsumexp": rand(B, N, H),
        "latents": torch.tensor([0, 2]),
    }
    return mam.attention_importance(**(plain | changes))


def inject(**changes) -> object:
    return mam.ContextInjection(8, 3)(**({"context": rand(B, 8)} | changes))


def make(**changes) -> object:
    return values_module(**changes)


def make_injection(**changes) -> object:
    return mam.ContextInjection(**({"latent_dim": 8, "embed_dim": 3} | changes))


integers, flags, meta = (
    torch.ones(B, L, dtype=torch.int64),
    torch.ones(B, L, dtype=torch.bool),
    torch.device("meta"),
)

# call, the bad argument, what it is given, the error, what the message says besides the argument's
# name: what is required, what came
BAD = [
    # wrong rank
    (mask_values, "tokens", rand(L), ValueError, ["(B, L)", "(6,)"]),
    (mask_values, "tokens", rand(B, L, D), ValueError, ["(B, L)", "(2, 6, 4)"]),
    (mask_tokens, "tokens", rand(B, L), ValueError, ["(B, L, 4)", "(2, 6)"]),
    (sample, "weights", rand(L), ValueError, ["(B, L)", "(6,)"]),
    (attend_values, "values", rand(B, L, 1), ValueError, ["(B, L)", "(2, 6, 1)"]),
    (attend_values, "slope", rand(N), ValueError, ["(N, H)", "(3,)"]),
    (attend_tokens, "query", rand(N, H), ValueError, ["(N, H, d)", "(3, 2)"]),
    (attend_tokens, "key", rand(B, L, H), ValueError, ["(B, L, H, d)", "(2, 6, 2)"]),
    (attend_tokens, "value", rand(B, L), ValueError, ["(B, L, H, d)", "(2, 6)"]),
    (importance, "logsumexp", rand(B, N), ValueError, ["(B, N, H)", "(2, 3)"]),
    (inject, "context", rand(8), ValueError, ["(B, 8)", "(8,)"]),
    # wrong width
    (mask_tokens, "tokens", rand(B, L, D + 1), ValueError, ["4", "(2, 6, 5)"]),
    (attend_tokens, "key", rand(B, L, H, WIDTH + 1), ValueError, ["5", "(2, 6, 2, 6)"]),
    (attend_tokens, "key", rand(B, L, H + 1, WIDTH), ValueError, ["2", "(2, 6, 3, 5)"]),
    (importance, "key", rand(B, L, H, WIDTH + 1), ValueError, ["5", "(2, 6, 2, 6)"]),
    (inject, "context", rand(B, 9), ValueError, ["8", "(2, 9)"]),
    # mismatched B or L
    (mask_values, "valid", flags[:1], ValueError, ["(2, 6)", "(1, 6)"]),
    (mask_values, "valid", flags[:, :5], ValueError, ["(2, 6)", "(2, 5)"]),
    (mask_values, "maskable", flags[:, :5], ValueError, ["(2, 6)", "(2, 5)"]),
    (mask_tokens, "valid", flags[:1], ValueError, ["(2, 6)", "(1, 6)"]),
    (mask_tokens, "maskable", flags[0], ValueError, ["(2, 6)", "(6,)"]),
    (mask_values, "num_masked", torch.ones(3, dtype=torch.int64), ValueError, ["(2,)", "(3,)"]),
    (mask_values, "sample_ids", torch.arange(3), ValueError, ["(2,)", "(3,)"]),
    (sample, "valid", flags[:, :5], ValueError, ["(2, 6)", "(2, 5)"]),
    (sample, "num_samples", torch.ones(B, 1, dtype=torch.int64), ValueError, ["(2,)", "(2, 1)"]),
    (sample, "sample_ids", torch.arange(3), ValueError, ["(2,)", "(3,)"]),
    (attend_values, "valid", flags[:1], ValueError, ["(2, 6)", "(1, 6)"]),
    (
        attend_tokens,
        "value",
        rand(B, L + 1, H, WIDTH),
        ValueError,
        ["(2, 6, 2, 5)", "(2, 7, 2, 5)"],
    ),
    (attend_tokens, "valid", flags[:, :1], ValueError, ["(2, 6)", "(2, 1)"]),
    (importance, "logsumexp", rand(B + 1, N, H), ValueError, ["(2, 3, 2)", "(3, 3, 2)"]),
    (importance, "valid", flags[:1], ValueError, ["(2, 6)", "(1, 6)"]),
    # wrong device
    (mask_values, "tokens", rand(B, L).to(meta), ValueError, ["cpu", "meta"]),
    (mask_values, "valid", flags.to(meta), ValueError, ["cpu", "meta"]),
    (
        mask_values,
        "num_masked",
        torch.ones(B, dtype=torch.int64, device=meta),
        ValueError,
        ["cpu", "meta"],
    ),
    (
        mask_values,
        "latents",
        torch.zeros(1, dtype=torch.int64, device=meta),
        ValueError,
        ["cpu", "meta"],
    ),
    (
        mask_values,
        "sample_ids",
        torch.zeros(B, dtype=torch.int64, device=meta),
        ValueError,
        ["cpu", "meta"],
    ),
    (
        mask_values,
        "seed",
        torch.zeros((), dtype=torch.int64, device=meta),
        ValueError,
        ["cpu", "meta"],
    ),
    (mask_tokens, "tokens", rand(B, L, D).to(meta), ValueError, ["cpu", "meta"]),
    (sample, "valid", flags.to(meta), ValueError, ["cpu", "meta"]),
    (attend_values, "slope", rand(N, H).to(meta), ValueError, ["cpu", "meta"]),
    (attend_tokens, "value", rand(B, L, H, WIDTH).to(meta), ValueError, ["cpu", "meta"]),
    (importance, "logsumexp", rand(B, N, H).to(meta), ValueError, ["cpu", "meta"]),
    # ratios and numbers outside their range
    (make, "mask_ratio", -0.1, ValueError, ["[0.0, 1.0]", "-0.1"]),
    (make, "mask_ratio", 1.5, ValueError, ["[0.0, 1.0]", "1.5"]),
    (make, "mask_ratio", float("nan"), ValueError, ["[0.0, 1.0]", "nan"]),
    (make, "mask_ratio", "0.3", TypeError, ["a number", "'0.3'"]),
    (make, "mask_ratio", None, TypeError, ["a number", "None"]),
    (make, "mask_ratio", True, TypeError, ["a number", "True"]),
    (make, "latent_fraction", 1.01, ValueError, ["[0.0, 1.0]", "1.01"]),
    (make, "temperature", 0.0, ValueError, ["(0.0,", "0.0"]),
    (make, "temperature", -1.0, ValueError, ["(0.0,", "-1.0"]),
    (make, "temperature", float("inf"), ValueError, ["(0.0,", "inf"]),
    (make, "eps", 0.0, ValueError, ["(0.0,", "0.0"]),
    (make, "eps", -1e-8, ValueError, ["(0.0,", "-1e-08"]),
    (attend_tokens, "scale", float("nan"), ValueError, ["a number", "nan"]),
    (attend_tokens, "scale", "1", TypeError, ["a number", "'1'"]),
    (importance, "scale", float("inf"), ValueError, ["a number", "inf"]),
    # k negative, beyond L, or no integer
    (sample, "num_samples", -1, ValueError, ["[0, 6]", "-1"]),
    (sample, "num_samples", L + 1, ValueError, ["[0, 6]", "7"]),
    (sample, "num_samples", 2.0, TypeError, ["an int", "2.0"]),
    (sample, "num_samples", True, TypeError, ["an int", "True"]),
    (sample, "num_samples", None, TypeError, ["an int", "None"]),
    (sample, "num_samples", torch.tensor([0, -1]), ValueError, ["[0, 6]", "-1"]),
    (sample, "num_samples", torch.tensor([7, 0]), ValueError, ["[0, 6]", "7"]),
    (sample, "num_samples", torch.tensor([1.0, 2.0]), TypeError, ["integer tensor", "float32"]),
    (sample, "num_samples", torch.tensor([True, False]), TypeError, ["integer tensor", "bool"]),
    (mask_values, "num_masked", -1, ValueError, ["[0, 6]", "-1"]),
    (mask_values, "num_masked", L + 1, ValueError, ["[0, 6]", "7"]),
    (mask_values, "num_masked", 0.3, TypeError, ["an int", "0.3"]),
    (mask_tokens, "num_masked", torch.tensor([7, 0]), ValueError, ["[0, 6]", "7"]),
    # flags that are not boolean
    (mask_values, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    (mask_values, "valid", flags.float(), TypeError, ["torch.bool", "float32"]),
    (mask_values, "valid", flags.tolist(), TypeError, ["torch.bool", "list"]),
    (mask_values, "maskable", flags.byte(), TypeError, ["torch.bool", "uint8"]),
    (mask_tokens, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    (sample, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    (attend_values, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    (attend_tokens, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    (importance, "valid", flags.long(), TypeError, ["torch.bool", "int64"]),
    # not floating point, or not a tensor
    (
        mask_values,
        "tokens",
        integers,
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    (mask_values, "tokens", flags, TypeError, ["float32, float16, bfloat16 or float64", "bool"]),
    (
        mask_values,
        "tokens",
        rand(B, L).to(torch.complex64),
        TypeError,
        ["float32, float16, bfloat16 or float64", "complex64"],
    ),
    (mask_values, "tokens", [[1.0]], TypeError, ["tensor", "list"]),
    (
        mask_tokens,
        "tokens",
        torch.ones(B, L, D, dtype=torch.int32),
        TypeError,
        ["float32, float16, bfloat16 or float64", "int32"],
    ),
    (sample, "weights", integers, TypeError, ["float32, float16, bfloat16 or float64", "int64"]),
    (sample, "weights", None, TypeError, ["tensor", "None"]),
    (
        attend_values,
        "values",
        integers,
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    (
        attend_values,
        "slope",
        torch.ones(N, H, dtype=torch.int64),
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    (
        attend_tokens,
        "query",
        torch.ones(N, H, WIDTH, dtype=torch.int64),
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    (
        attend_tokens,
        "key",
        rand(B, L, H, WIDTH).half(),
        TypeError,
        ["float32, as query is", "float16"],
    ),
    (
        attend_tokens,
        "value",
        rand(B, L, H, WIDTH).double(),
        TypeError,
        ["float32, as query is", "float64"],
    ),
    (
        importance,
        "logsumexp",
        torch.ones(B, N, H, dtype=torch.int64),
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    (
        inject,
        "context",
        torch.ones(B, 8, dtype=torch.int64),
        TypeError,
        ["float32, float16, bfloat16 or float64", "int64"],
    ),
    # another sparse layout, or values that want a gradient
    (mask_values, "tokens", rand(B, L).to_sparse(), TypeError, ["sparse CSR", "torch.sparse_coo"]),
    (
        mask_values,
        "tokens",
        rand(B, L).to_sparse_coo().coalesce(),
        TypeError,
        ["sparse CSR", "torch.sparse_coo"],
    ),
    (
        attend_values,
        "values",
        rand(B, L).to_sparse(),
        TypeError,
        ["sparse CSR", "torch.sparse_coo"],
    ),
    (
        mask_values,
        "tokens",
        rand(B, L).requires_grad_(),
        ValueError,
        ["without gradient", "requires one", "input_dim=1"],
    ),
    (
        attend_values,
        "values",
        rand(B, L).requires_grad_(),
        ValueError,
        ["without gradient", "requires one"],
    ),
    (sample, "weights", rand(B, L).to_sparse_csr(), TypeError, ["dense", "torch.sparse_csr"]),
    (sample, "weights", rand(B, L).to_sparse(), TypeError, ["dense", "torch.sparse_coo"]),
    (mask_tokens, "tokens", rand(B, L, D).to_sparse(), TypeError, ["dense", "torch.sparse_coo"]),
    (
        attend_tokens,
        "key",
        rand(B, L, H, WIDTH).to_sparse(),
        TypeError,
        ["dense", "torch.sparse_coo"],
    ),
    # words of the random stream
    (sample, "seed", 2**64, ValueError, ["18446744073709551616)", "got 18446744073709551616"]),
    (sample, "seed", -(2**63) - 1, ValueError, ["[-9223372036854775808", "-9223372036854775809"]),
    (sample, "seed", 1.0, TypeError, ["an int", "1.0"]),
    (sample, "seed", torch.tensor([1, 2]), TypeError, ["one element", "(2,)"]),
    (sample, "seed", torch.tensor(1.0), TypeError, ["integer", "float32"]),
    (sample, "step", -1, ValueError, ["[0, 4294967296)", "-1"]),
    (sample, "step", 2**32, ValueError, ["[0, 4294967296)", "got 4294967296"]),
    (sample, "step", None, TypeError, ["an int", "None"]),
    (mask_values, "step", 0.5, TypeError, ["an int", "0.5"]),
    (mask_values, "seed", "1", TypeError, ["an int", "'1'"]),
    (sample, "sample_ids", torch.tensor([0.0, 1.0]), TypeError, ["integer", "float32"]),
    (sample, "sample_ids", [0, 1], TypeError, ["integer", "list"]),
    # shares of a call
    (mask_values, "mask_ratio", 1.5, ValueError, ["[0.0, 1.0]", "1.5"]),
    (mask_tokens, "mask_ratio", "half", TypeError, ["a number", "'half'"]),
    (mask_values, "zero_ratio", -0.1, ValueError, ["[0.0, 1.0]", "-0.1"]),
    (mask_values, "zero_ratio", float("nan"), ValueError, ["[0.0, 1.0]", "nan"]),
    (mask_values, "num_zeros", L + 1, ValueError, ["[0, 6]", "7"]),
    (mask_values, "num_zeros", 0.3, TypeError, ["an int", "0.3"]),
    (mask_values, "num_zeros", torch.ones(3, dtype=torch.int64), ValueError, ["(2,)", "(3,)"]),
    (mask_counted, "mask_ratio", 0.5, ValueError, ["None where num_masked is given", "0.5"]),
    (mask_counted, "zero_ratio", 0.5, ValueError, ["None where num_zeros is given", "0.5"]),
    (mask_tokens, "zero_ratio", 0.1, ValueError, ["None with input_dim", "0.1"]),
    (mask_tokens, "num_zeros", 0, ValueError, ["None with input_dim", "0"]),
    # latents
    (mask_values, "latents", torch.tensor([0, 5]), ValueError, ["[0, 5)", "[0, 5]"]),
    (mask_values, "latents", torch.tensor([-1]), ValueError, ["[0, 5)", "[-1]"]),
    (mask_values, "latents", torch.tensor([1, 1]), ValueError, ["distinct", "[1, 1]"]),
    (mask_values, "latents", torch.zeros(0, dtype=torch.int64), ValueError, ["R >= 1", "(0,)"]),
    (mask_values, "latents", torch.tensor([[0]]), ValueError, ["(R,)", "(1, 1)"]),
    (mask_values, "latents", torch.tensor([0], dtype=torch.int32), TypeError, ["int64", "int32"]),
    (mask_values, "latents", [0], TypeError, ["int64", "list"]),
    (mask_tokens, "latents", torch.tensor([9]), ValueError, ["[0, 5)", "[9]"]),
    (importance, "latents", torch.tensor([3]), ValueError, ["[0, 3)", "[3]"]),
    # counts and names of the modules
    (make, "num_heads", 3, ValueError, ["latent_dim = 8", "got 3"]),
    (make, "num_heads", 0, ValueError, ["int >= 1", "got 0"]),
    (make, "num_heads", 2.0, TypeError, ["an int", "2.0"]),
    (make, "latent_dim", 0, ValueError, ["int >= 1", "got 0"]),
    (make, "num_latents", -1, ValueError, ["int >= 1", "got -1"]),
    (make, "num_latents", True, TypeError, ["an int", "True"]),
    (make, "input_dim", 0, ValueError, ["int >= 1", "got 0"]),
    (make, "input_dim", "values", TypeError, ["an int", "'values'"]),
    (make, "context_from", "masked", ValueError, ["all, visible", "'masked'"]),
    (make, "backend", "numpy", ValueError, ["triton, cuda, cpu, reference", "'numpy'"]),
    (sample, "backend", "numpy", ValueError, ["triton, cuda, cpu, reference", "'numpy'"]),
    (
        make_injection,
        "scheme",
        "neither",
        ValueError,
        ["encoder, decoder, both, separate", "'neither'"],
    ),
    (make_injection, "latent_dim", 0, ValueError, ["int >= 1", "got 0"]),
    (make_injection, "embed_dim", 1.5, TypeError, ["an int", "1.5"]),
]


def identify(entry: object) -> str | None:
    return (
        entry.__name__
        if callable(entry) and not isinstance(entry, (type, Tensor))
        else entry
        if isinstance(entry, str)
        else None
    )


@pytest.mark.parametrize(
    ("call", "argument", "bad", "error", "said"), BAD, ids=lambda entry: identify(entry) or ""
)
def test_bad_input_is_an_error_that_names_the_argument_the_requirement_and_what_came(
    call, argument, bad, error, said
):
    with pytest.raises(error) as caught:
        call(**{argument: bad})
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.startswith(f"{argument}: expected "), message
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize(
    "call",
    [
        mask_values,
        mask_tokens,
        sample,
        attend_values,
        attend_tokens,
        importance,
        inject,
        make,
        make_injection,
    ],
)
def test_the_plain_call_of_each_of_these_is_no_error(call):
    assert call() is not None


# Nothing changed


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("valid", flags.long()),
        ("num_masked", L + 1),
        ("latents", torch.tensor([9])),
        ("step", -1),
        ("seed", 1.5),
        ("sample_ids", torch.arange(9)),
    ],
    ids=lambda entry: entry if isinstance(entry, str) else "",
)
@pytest.mark.parametrize("input_dim", [None, D])
def test_a_failed_call_changes_no_input_no_parameter_and_no_random_state(input_dim, argument, bad):
    module = values_module(input_dim=input_dim)
    tokens = rand(B, L) if input_dim is None else rand(B, L, D)
    before = {name: x.clone() for name, x in {**module.state_dict(), "tokens": tokens}.items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError)):
        module(tokens, **{argument: bad})
    assert torch.equal(torch.get_rng_state(), state)
    after = {**module.state_dict(), "tokens": tokens}
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("argument", ["num_samples", "sample_ids", "valid", "step"])
def test_a_failed_draw_takes_no_seed_from_torch(argument):
    bad = {"num_samples": -1, "sample_ids": torch.arange(9), "valid": flags.long(), "step": -1}[
        argument
    ]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError)):
        sample(**{argument: bad})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_good_call_changes_neither_its_inputs_nor_the_parameters():
    module = values_module()
    arguments = {
        "tokens": rand(B, L),
        "valid": flags.clone(),
        "maskable": flags.clone(),
        "num_masked": torch.tensor([1, 2]),
        "seed": torch.tensor(3),
        "step": torch.tensor(4),
        "sample_ids": torch.tensor([8, 9]),
        "latents": torch.tensor([0, 4]),
    }
    before = {name: x.clone() for name, x in {**arguments, **module.state_dict()}.items()}
    module(**arguments).context.sum().backward()
    assert all(
        torch.equal(x, before[name]) for name, x in {**arguments, **module.state_dict()}.items()
    )


# Values are looked at when checking is on


def spoiled(x: Tensor, what: float) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] = what
    return x


NOT_FINITE = [
    (mask_values, "tokens", rand(B, L)),
    (mask_tokens, "tokens", rand(B, L, D)),
    (sample, "weights", rand(B, L)),
    (attend_values, "values", rand(B, L)),
    (attend_values, "slope", rand(N, H)),
    (attend_tokens, "query", rand(N, H, WIDTH)),
    (attend_tokens, "key", rand(B, L, H, WIDTH)),
    (attend_tokens, "value", rand(B, L, H, WIDTH)),
]


@pytest.mark.parametrize("what", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("call", "argument", "good"), NOT_FINITE, ids=lambda entry: identify(entry) or ""
)
def test_nan_and_infinite_values_are_errors_while_values_are_checked(call, argument, good, what):
    bad = spoiled(good, what)
    with mam.check_values(), pytest.raises(ValueError) as caught:
        call(**{argument: bad})
    where = tuple(size - 1 for size in good.shape)
    assert (
        str(caught.value)
        == f"{argument}: expected finite values; got {what} at index {where} (1 in all)"
    )
    call(**{argument: bad})  # not looked at otherwise


@pytest.mark.parametrize("call", [mask_values, attend_values])
def test_nan_in_the_stored_entries_of_csr_is_an_error_while_values_are_checked(call):
    bad = spoiled(rand(B, L), float("nan")).to_sparse_csr()
    argument = "tokens" if call is mask_values else "values"
    with (
        mam.check_values(),
        pytest.raises(ValueError, match=f"{argument}: expected finite values; got nan"),
    ):
        call(**{argument: bad})


def test_negative_weights_are_errors_while_values_are_checked():
    with (
        mam.check_values(),
        pytest.raises(
            ValueError, match=re.escape("weights: expected values >= 0; got -1.0 at index (1, 5)")
        ),
    ):
        sample(weights=spoiled(rand(B, L), -1.0))


@pytest.mark.parametrize("call", [mask_values, mask_tokens, sample, attend_values, attend_tokens])
def test_what_stands_in_the_padding_is_no_error_while_values_are_checked(call):
    valid = flags.clone()
    valid[-1, -1] = False
    names = {sample: ["weights"], attend_values: ["values"], attend_tokens: ["key", "value"]}.get(
        call, ["tokens"]
    )
    good = {
        "tokens": rand(B, L) if call is mask_values else rand(B, L, D),
        "weights": rand(B, L),
        "values": rand(B, L),
        "key": rand(B, L, H, WIDTH),
        "value": rand(B, L, H, WIDTH),
    }
    with mam.check_values():
        result = call(valid=valid, **{name: spoiled(good[name], float("nan")) for name in names})
    floats = [
        x for x in ([result] if isinstance(result, Tensor) else result) if x.is_floating_point()
    ]
    assert all(bool(x.isfinite().all()) for x in floats)


def test_sample_ids_beyond_32_bits_are_errors_while_values_are_checked():
    with (
        mam.check_values(),
        pytest.raises(ValueError, match="sample_ids: expected 32-bit words, 0 to 4294967295; got"),
    ):
        sample(sample_ids=torch.tensor([0, 2**32]))


def test_checking_is_off_by_default_nests_and_is_restored_after_an_exception():
    from mam_kernels._core import checks

    assert not checks.values_are_checked()
    with mam.check_values():
        with mam.check_values(False):
            assert not checks.values_are_checked()
        assert checks.values_are_checked()
    with pytest.raises(KeyError), mam.check_values():
        raise KeyError
    assert not checks.values_are_checked()


@pytest.mark.parametrize(("setting", "raises"), [("1", True), ("0", False), ("", False)])
def test_environment_variable_turns_checking_on(setting, raises):
    script = (
        "import torch, mam_kernels as mam; "
        "mam.sample_without_replacement(torch.tensor([[float('nan'), 1.0]]), 1)"
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "MAM_CHECK_VALUES": setting}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (result.returncode != 0) is raises
    assert (
        "weights: expected finite values; got nan at index (0, 0) (1 in all)" in result.stderr
    ) is raises


# Empty input: empty results, gradients of zero

EMPTY = [(0, L), (B, 0), (0, 0)]


@pytest.mark.parametrize("shape", EMPTY)
def test_empty_draws_are_empty(shape):
    mask = mam.sample_without_replacement(torch.ones(shape), 0, seed=1)
    assert (mask.shape, mask.dtype) == (shape, torch.bool)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "CSR"])
@pytest.mark.parametrize("shape", EMPTY)
def test_empty_values_have_moments_of_nothing_and_gradients_of_zero(shape, sparse):
    slope = rand(N, H).requires_grad_()
    values = torch.ones(shape).to_sparse_csr() if sparse else torch.ones(shape)
    log_partition, mean, variance = mam.value_attention(values, slope)
    assert log_partition.shape == mean.shape == variance.shape == (shape[0], N, H)
    assert bool((log_partition == -torch.inf).all())
    assert not bool(mean.any() | variance.any())
    (mean.sum() + torch.where(log_partition.isfinite(), log_partition, 0.0).sum()).backward()
    assert torch.equal(slope.grad, torch.zeros(N, H))


@pytest.mark.parametrize("shape", EMPTY)
def test_empty_tokens_attend_to_nothing_with_gradients_of_zero(shape):
    query = rand(N, H, WIDTH).requires_grad_()
    key, value = (torch.ones(*shape, H, WIDTH, requires_grad=True) for _ in range(2))
    output, logsumexp = mam.latent_attention(query, key, value)
    assert output.shape == (shape[0], N, H, WIDTH)
    assert not bool(output.any())
    assert bool((logsumexp == -torch.inf).all())
    output.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))
    assert key.grad.shape == key.shape
    received = mam.attention_importance(query, key, logsumexp, torch.tensor([0]))
    assert received.shape == shape


@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("kind", ["values", "CSR", "embeddings"])
@pytest.mark.parametrize("shape", EMPTY)
def test_empty_masking_steps_return_empty_results_and_gradients_that_are_not_nan(
    shape, kind, context_from
):
    module = values_module(input_dim=D if kind == "embeddings" else None, context_from=context_from)
    tokens = {"values": lambda: torch.ones(shape), "CSR": lambda: torch.ones(shape).to_sparse_csr(),
              "embeddings": lambda: torch.ones(*shape, D)}[kind]()  # fmt: skip
    out = module(tokens, valid=torch.ones(shape, dtype=torch.bool))
    assert out.mask.shape == out.importance.shape == shape
    assert (out.mask.dtype, out.importance.dtype) == (torch.bool, torch.float32)
    assert out.context.shape == (shape[0], 8)
    torch.testing.assert_close(
        out.context, module.cross_attention.out_proj.bias.expand(shape[0], -1)
    )
    assert out.penalty.shape == ()
    (out.context.sum() + out.penalty).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert not bool(module.latents.grad.any())


@pytest.mark.parametrize("kind", ["values", "CSR", "embeddings"])
def test_a_row_without_valid_tokens_among_others_is_empty_and_spoils_no_gradient(kind):
    module = values_module(input_dim=D if kind == "embeddings" else None)
    tokens = rand(B, L) if kind != "embeddings" else rand(B, L, D)
    valid = flags.clone()
    valid[1] = False
    tokens = (
        tokens
        if kind == "CSR"
        else tokens.masked_fill(~(valid if kind == "values" else valid[:, :, None]), float("nan"))
    )
    out = module(
        tokens.to_sparse_csr() if kind == "CSR" else tokens, valid=valid, num_masked=3, seed=1
    )
    assert out.mask.sum(dim=1).tolist() == [3, 0]
    assert not bool(out.importance[1].any())
    torch.testing.assert_close(out.context[1], module.cross_attention.out_proj.bias)
    (out.context.sum() + out.penalty).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())


def test_rows_of_csr_without_entries_are_rows_of_zeros():
    empty = torch.sparse_csr_tensor(
        torch.zeros(B + 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0),
        (B, L),
    )
    moments = mam.value_attention(empty, rand(N, H))
    torch.testing.assert_close(
        moments.log_partition, torch.full((B, N, H), float(torch.tensor(L).log()))
    )
    assert not bool(moments.mean.any() | moments.variance.any())
    out = values_module()(empty, num_masked=2, seed=1)
    assert out.mask.sum(dim=1).tolist() == [2, 2]
