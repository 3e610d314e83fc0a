"""Inputs are what torch says they are: strides, lazy bits, integers of any type, subclasses; and
what cannot be computed is refused in one line.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import mam_kernels as mam
from tests.engine.test_modules import module_of, rand, tokens_of

ROWS, POSITIONS, LATENTS, HEADS, WIDTH = 3, 20, 3, 2, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),  # torch calls its CSR support beta
    pytest.mark.filterwarnings("ignore:.*prototype"),  # and nested and masked tensors prototypes
    pytest.mark.filterwarnings("ignore:.*MaskedTensor"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # vmap runs kernels in a loop
]

values, weights = rand(ROWS, POSITIONS), rand(ROWS, POSITIONS, seed=1)
slope = rand(LATENTS, HEADS, seed=2) - 0.5
query, key = rand(LATENTS, HEADS, WIDTH, seed=3), rand(ROWS, POSITIONS, HEADS, WIDTH, seed=4)
logsumexp = mam.latent_attention(query, key, key)[1]
chosen = torch.tensor([0, 2])
embeddings = tokens_of("embeddings", ROWS, POSITIONS)

# Each call by its tensors that are real numbers
CALLS: dict[str, tuple[Callable[..., object], dict[str, Tensor]]] = {
    "sample_without_replacement": (
        lambda weights: mam.sample_without_replacement(weights, 7, seed=1),
        {"weights": weights},
    ),
    "inclusion_probabilities": (
        lambda weights: mam.inclusion_probabilities(weights, 7),
        {"weights": weights},
    ),
    "value_attention": (mam.value_attention, {"values": values, "slope": slope}),
    "latent_attention": (mam.latent_attention, {"query": query, "key": key, "value": key + 1}),
    "attention_importance": (
        lambda query, key, logsumexp: mam.attention_importance(query, key, logsumexp, chosen),
        {"query": query, "key": key, "logsumexp": logsumexp},
    ),
    "masking of values": (
        lambda tokens: module_of()(tokens, seed=1),
        {"tokens": values},
    ),
    "masking of embeddings": (
        lambda tokens: module_of("embeddings")(tokens, seed=1),
        {"tokens": embeddings},
    ),
}
EACH = [(name, argument) for name, (_, tensors) in CALLS.items() for argument in tensors]
each_argument = pytest.mark.parametrize(("name", "argument"), EACH)


def tensors_of(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def equal(one: object, other: object) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def lazily_negative(x: Tensor) -> Tensor:
    """``x`` as torch holds it after a conjugation: its negative, and a bit."""
    lazy = torch.complex(x, -x).conj().imag
    assert lazy.is_neg()
    return lazy


def spread(x: Tensor) -> Tensor:
    """``x`` as a view whose every stride is doubled."""
    for dim in range(x.dim()):
        x = torch.stack([x, torch.full_like(x, torch.nan)], dim=dim + 1).flatten(dim, dim + 1)
    return x[(slice(None, None, 2),) * x.dim()]


VIEWS = {
    "a lazy negation": lazily_negative,
    "every second entry": spread,
    "transposed memory": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "a zero tensor added": lambda x: x + torch._efficientzerotensor(x.shape),
}


@each_argument
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_any_kind_gives_what_a_copy_does(view, name, argument):
    call, tensors = CALLS[name]
    seen = VIEWS[view](tensors[argument])
    assert equal(seen, tensors[argument])
    assert equal(call(**{**tensors, argument: seen}), call(**tensors))


def test_a_parameter_may_be_a_lazy_negation():
    module = module_of()
    expected = module(values, seed=1)
    state = {name: x.detach() for name, x in module.named_parameters()}
    state["latents"] = lazily_negative(state["latents"])
    assert equal(torch.func.functional_call(module, state, (values,), {"seed": 1}), expected)


# CSR whose parts are views

col = torch.tensor([0, 2, 4, 1, 5])
crow = torch.tensor([0, 3, 5])
entries = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])
PARTS = {
    "values": lambda: (crow, col, spread(entries)),
    "lazy values": lambda: (crow, col, lazily_negative(entries)),
    "columns": lambda: (crow, torch.stack([col, col + 90], dim=1)[:, 0], entries),
    "row ends": lambda: (torch.stack([crow, crow + 70], dim=1)[:, 0], col, entries),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_csr_may_be_views(part, index, backend):
    crow, col, entries = PARTS[part]()
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        sparse = torch.sparse_csr_tensor(crow.to(index), col.to(index), entries, (2, 6))
    dense = torch.zeros(2, 6)
    dense[[0, 0, 0, 1, 1], [0, 2, 4, 1, 5]] = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])
    for one, other in zip(
        mam.value_attention(sparse, slope, backend=backend),
        mam.value_attention(dense, slope, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    module = module_of(mask_ratio=0.5, backend=backend)
    found, expected = module(sparse, seed=1), module(dense, seed=1)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.importance, expected.importance)


def test_entries_that_are_expanded_have_the_right_mean():
    sparse = torch.sparse_csr_tensor(
        torch.tensor([0, 3]), torch.tensor([0, 2, 4]), torch.ones(1).expand(3), size=(1, 6)
    )
    expected = torch.tensor(1.0).exp() / (1 + torch.tensor(1.0).exp())
    torch.testing.assert_close(
        mam.value_attention(sparse, torch.ones(1, 1)).mean[0, 0, 0], expected
    )


# Integers of any type

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
INTEGERS += [torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_counts_may_be_of_any_integer_type(dtype):
    many = rand(2, 1000)  # more positions than the narrow types can count
    counts = torch.tensor([100, 7], dtype=dtype)
    assert mam.sample_without_replacement(many, counts).sum(dim=1).tolist() == [100, 7]
    assert module_of()(many, num_masked=counts).mask.sum(dim=1).tolist() == [100, 7]
    found = mam.inclusion_probabilities(many, counts).sum(dim=1)
    torch.testing.assert_close(found, torch.tensor([100.0, 7.0]))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64])
def test_integers_of_numpy_are_integers(kind):
    assert mam.sample_without_replacement(weights, kind(7)).sum(dim=1).tolist() == [7] * ROWS
    module = mam.MultinomialAttentionMasking(
        latent_dim=kind(16), num_latents=kind(6), num_heads=kind(4)
    )
    assert module(values, num_masked=kind(7)).mask.sum(dim=1).tolist() == [7] * ROWS
    one, other = (
        mam.sample_without_replacement(weights, 7, seed=seed, step=step)
        for seed, step in ((kind(9), kind(3)), (9, 3))
    )
    assert torch.equal(one, other)


def test_the_largest_seed_may_come_from_numpy():
    one, other = (
        mam.sample_without_replacement(weights, 7, seed=s) for s in (np.uint64(2**64 - 1), -1)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "bad", [np.bool_(True), np.float32(3), np.array([5, 5]), np.array(5), np.nan, [3], "3"]
)
def test_what_is_no_integer_is_refused_in_one_line(bad):
    with pytest.raises(TypeError) as caught:
        mam.sample_without_replacement(weights, bad)
    assert str(caught.value).startswith("num_samples: expected an int or an integer tensor")
    assert "\n" not in str(caught.value)


def test_a_count_below_zero_in_a_narrow_type_is_refused():
    with pytest.raises(ValueError, match="got values from -1 to 7"):
        mam.sample_without_replacement(weights, torch.tensor([-1, 7, 3], dtype=torch.int8))


# Tensors of other kinds


def nested(layout: torch.layout) -> Tensor:
    rows = [torch.rand(3), torch.rand(5)]
    return torch.nested.nested_tensor(rows, layout=layout)


def unusual() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    yield "nested", lambda: nested(torch.strided)
    yield "jagged", lambda: nested(torch.jagged)
    yield "masked", lambda: torch.masked.masked_tensor(values, values > 0.3)
    yield "COO", values.to_sparse
    yield "BSR", lambda: values[:2].to_sparse_bsr((1, 4))
    yield "quantized", lambda: torch.quantize_per_tensor(values, 0.1, 0, torch.quint8)
    yield "complex", lambda: values.to(torch.complex64)
    yield "float8", lambda: values.to(torch.float8_e4m3fn)


@each_argument
@pytest.mark.parametrize("kind", dict(unusual()))
def test_a_tensor_of_another_kind_is_refused_in_one_line(kind, name, argument):
    bad = dict(unusual())[kind]()
    call, tensors = CALLS[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**{**tensors, argument: bad})
    assert str(caught.value).startswith(f"{argument}: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize(
    "argument", ["valid", "maskable", "num_masked", "sample_ids", "seed", "step", "latents"]
)
def test_a_nested_tensor_is_refused_in_every_other_argument(argument, layout):
    for bad in (nested(layout), nested(layout).to(torch.int64), nested(layout).to(torch.bool)):
        with pytest.raises((TypeError, ValueError)) as caught:
            module_of()(values, **{argument: bad})
        assert str(caught.value).startswith(f"{argument}: expected ")
        assert "\n" not in str(caught.value)


class Named(torch.Tensor):
    """A subclass that changes nothing."""


def test_a_subclass_that_changes_nothing_is_computed_with():
    for call, tensors in CALLS.values():
        assert equal(
            call(**{name: x.as_subclass(Named) for name, x in tensors.items()}), call(**tensors)
        )


@pytest.mark.parametrize("name", list(CALLS))
def test_meta_tensors_have_meta_results_of_the_right_shapes(name):
    call, tensors = CALLS[name]
    expected = call(**tensors)
    on_meta = {argument: x.to("meta") for argument, x in tensors.items()}
    if name == "attention_importance":
        found = mam.attention_importance(**on_meta, latents=chosen.to("meta"))
    elif name.startswith("masking"):
        kind = "embeddings" if name.endswith("embeddings") else "values"
        found = module_of(kind).to("meta")(**on_meta)
    else:
        found = call(**on_meta)
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_a_module_on_meta_takes_no_tokens_of_another_device(kind):
    module = module_of(kind)
    for one, other in (
        (module_of(kind).to("meta"), tokens_of(kind)),
        (module, tokens_of(kind).to("meta")),
    ):
        with pytest.raises(ValueError, match=r"tokens: expected on .*, as the module is; got"):
            one(other)


# Names and sizes

NOT_NAMES = [np.array(["cpu"]), np.ones((30, 30)), torch.ones(2), ["cpu"], 3, True]


@pytest.mark.parametrize("bad", NOT_NAMES, ids=lambda bad: type(bad).__name__)
def test_a_name_that_is_an_array_or_a_tensor_is_refused_in_one_line(bad):
    calls = {
        "backend": [
            lambda: mam.sample_without_replacement(weights, 3, backend=bad),
            lambda: mam.value_attention(values, slope, backend=bad),
            lambda: mam.MultinomialAttentionMasking(backend=bad),
            lambda: mam.use_backend(bad).__enter__(),
            lambda: mam.explain(mam.sample_without_replacement, weights, 3, backend=bad),
        ],
        "context_from": [lambda: mam.MultinomialAttentionMasking(context_from=bad)],
        "init": [lambda: module_of().reset_parameters(bad)],
    }
    for argument, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=f"^{argument}: expected one of ") as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["latent_dim", "num_latents", "num_heads", "input_dim"])
def test_a_size_beyond_what_can_be_counted_is_refused_in_one_line(argument):
    with pytest.raises(ValueError, match=f"{argument}: expected an int <= 2147483647; got {2**70}"):
        mam.MultinomialAttentionMasking(**{argument: 2**70})


@pytest.mark.parametrize(
    "sizes",
    [{"latent_dim": 2**30}, {"input_dim": 2**31 - 1, "latent_dim": 2**20}],
    ids=str,
)
def test_sizes_that_cannot_be_allocated_are_refused_in_one_line(sizes):
    with pytest.raises(
        ValueError, match="latent_dim: expected sizes that can be allocated"
    ) as caught:
        mam.MultinomialAttentionMasking(**sizes)
    assert "\n" not in str(caught.value)


# Derivatives


@pytest.mark.parametrize("gradients", [True, False])
@each_argument
def test_forward_mode_is_refused_whatever_carries_the_tangent(name, argument, gradients):
    call, tensors = CALLS[name]
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[argument], torch.ones_like(tensors[argument]))
        with pytest.raises(NotImplementedError, match=r"forward-mode derivatives .* use reverse"):
            call(**{**tensors, argument: dual})
    call(**tensors)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_forward_mode_is_refused_where_a_parameter_alone_carries_the_tangent(kind, gradients):
    module = module_of(kind)
    for name, parameter in module.named_parameters():
        state = {other: x.detach() for other, x in module.named_parameters()}
        with torch.set_grad_enabled(gradients), forward_ad.dual_level():
            state[name] = forward_ad.make_dual(state[name], torch.ones_like(parameter))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                torch.func.functional_call(module, state, (tokens_of(kind),))


@pytest.mark.parametrize(("backend", "gradients"), [("eager", True), ("aot_eager", False)])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("sample_without_replacement", "weights"),
        ("attention_importance", "key"),
        ("value_attention", "slope"),
        ("masking of embeddings", "tokens"),
    ],
)
def test_forward_mode_is_refused_in_a_compiled_call_too(name, argument, backend, gradients):
    call, tensors = CALLS[name]
    x = tensors[argument]

    def from_within(x: Tensor) -> object:
        with forward_ad.dual_level():
            return call(**{**tensors, argument: forward_ad.make_dual(x, torch.ones_like(x))})

    torch.compiler.reset()
    refused = pytest.raises(NotImplementedError, match=r"forward[- ]mode")  # by torch, or here
    compiled = torch.compile(call, backend=backend)
    with torch.set_grad_enabled(gradients):
        with forward_ad.dual_level():
            with refused:
                compiled(**{**tensors, argument: forward_ad.make_dual(x, torch.ones_like(x))})
            compiled(**tensors)  # no tangent among its arguments
        with refused:
            torch.compile(from_within, backend=backend)(x)
        with refused:
            torch.func.jvp(lambda x: compiled(**{**tensors, argument: x}), (x,), (x,))


def test_transforms_that_mix_modes_are_refused_too():

    def total(slope: Tensor) -> Tensor:
        return mam.value_attention(values, slope).mean.sum()

    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            transform(total)(slope)


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_several_gradients_at_once_are_those_one_by_one(kind):
    module = module_of(kind)
    out = module(tokens_of(kind), seed=1)
    incoming = rand(4, *out.context.shape, seed=5)
    parameters = list(module.parameters())
    together = torch.autograd.grad(
        out.context, parameters, incoming, is_grads_batched=True, retain_graph=True
    )
    for index, each in enumerate(incoming):
        alone = torch.autograd.grad(out.context, parameters, each, retain_graph=True)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-4, atol=1e-6)


def test_several_gradients_at_once_of_each_function():
    differentiable = {
        "inclusion_probabilities": "weights",
        "value_attention": "slope",
        "latent_attention": "query",
    }
    for name, argument in differentiable.items():
        call, tensors = CALLS[name]
        x = tensors[argument].clone().requires_grad_()
        result = tensors_of(call(**{**tensors, argument: x}))[0]
        incoming = rand(4, *result.shape, seed=5)
        (together,) = torch.autograd.grad(
            result, x, incoming, is_grads_batched=True, retain_graph=True
        )
        for index, each in enumerate(incoming):
            (alone,) = torch.autograd.grad(result, x, each, retain_graph=True)
            torch.testing.assert_close(together[index], alone, rtol=1e-4, atol=1e-6)
