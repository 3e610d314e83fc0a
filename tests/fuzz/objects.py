"""Objects of wrong types, shapes and kinds at every public argument.

A call that is right has one or two of its arguments replaced. What may stand there is said by a
predicate written here; everything else is refused by name, with ``ValueError`` or ``TypeError``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mam_kernels as mam

from . import layouts
from .refusals import refused
from .source import Source, Wrong

B, L, D, N, H, WIDTH = 2, 6, 4, 3, 2, 5
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = layouts.INTEGERS


class Thing:
    """An object that nothing knows, whose text is long and has line feeds."""

    def __repr__(self) -> str:
        return "Thing\n" * 3


def plain(x: Any, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether something is a dense tensor of this machine, of one of the types and the shape."""
    return (
        isinstance(x, Tensor)
        and not x.is_nested
        and x.layout is torch.strided
        and x.device.type == "cpu"
        and x.dtype in dtypes
        and x.dim() == len(shape)
        and all(want in (None, have) for want, have in zip(shape, x.shape, strict=True))
    )


def is_int(x: Any, low: int, high: float) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and low <= x < high


def is_number(x: Any, low: float, high: float) -> bool:
    real = isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)
    return real and low <= x <= high


def is_words(x: Any, shape: tuple[int, ...], low: int, high: int) -> bool:
    """Integers in a range."""
    return plain(x, INTEGERS, shape) and all(low <= each <= high for each in x.tolist())


def flags(x: Any) -> bool:
    return x is None or plain(x, (torch.bool,), (B, L))


def counts(x: Any) -> bool:
    return is_int(x, 0, L + 1) or is_words(x, (B,), 0, L)


def word(low: int, high: int) -> Callable[[Any], bool]:
    def allowed(x: Any) -> bool:
        one = isinstance(x, Tensor) and not x.is_nested and x.layout is torch.strided
        one = one and x.dtype in INTEGERS and x.numel() == 1 and x.device.type == "cpu"
        return is_int(x, low, high) or bool(one)

    return allowed


def ids(x: Any) -> bool:
    return x is None or is_words(x, (B,), -(2**63), 2**63 - 1)


def distinct(size: int) -> Callable[[Any], bool]:
    def allowed(x: Any) -> bool:
        return (
            plain(x, (torch.int64,), (None,))
            and x.numel() > 0
            and set(x.tolist()) <= set(range(size))
            and len(set(x.tolist())) == x.numel()
        )

    return allowed


def values(x: Any) -> bool:
    if isinstance(x, Tensor) and not x.is_nested and x.layout is torch.sparse_csr:
        return x.dim() == 2 and x.dtype in FLOATS and x.device.type == "cpu"
    return plain(x, FLOATS, (None, None)) and not x.requires_grad


def backend(x: Any) -> bool:
    return x is None or (isinstance(x, str) and x in ("cpu", "reference"))


def any_backend(x: Any) -> bool:
    return backend(x) or (isinstance(x, str) and x in ("cuda", "triton"))


SEED, STEP = word(-(2**63), 2**64), word(0, 2**32)
WORDS = {"seed": lambda x: x is None or SEED(x), "step": STEP, "sample_ids": ids}


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


class Callee(NamedTuple):
    """A public function, a right call of it, and what each argument may be."""

    function: Callable[..., object]
    arguments: dict[str, Any]
    allowed: dict[str, Callable[[Any], bool]]


@functools.cache
def callees() -> dict[str, Callee]:
    """Every public function and method."""
    heads = {
        "query": rand(N, H, WIDTH), "key": rand(B, L, H, WIDTH), "value": rand(B, L, H, WIDTH)
    }  # fmt: skip
    query = functools.partial(plain, dtypes=(torch.float32,), shape=(N, H, WIDTH))
    key = functools.partial(plain, dtypes=(torch.float32,), shape=(B, L, H, WIDTH))
    scale = lambda x: x is None or is_number(x, -1.7e308, 1.7e308)  # noqa: E731
    own = {"valid": flags, "maskable": flags, "num_masked": lambda x: x is None or counts(x),
           "latents": lambda x: x is None or distinct(5)(x), **WORDS}  # fmt: skip
    chosen = {"tokens": rand(B, L), "valid": None, "maskable": None, "num_masked": None,
              "seed": 1, "step": 0, "sample_ids": None, "latents": None}  # fmt: skip
    of_values = mam.MultinomialAttentionMasking(None, 8, 5, 2)
    of_tokens = mam.MultinomialAttentionMasking(D, 8, 5, 2)
    sizes = lambda x: is_int(x, 1, 100)  # noqa: E731
    ratio = lambda x: is_number(x, 0.0, 1.0)  # noqa: E731
    positive = lambda x: is_number(x, 5e-324, 1e6)  # noqa: E731
    return {
        "sample_without_replacement": Callee(
            mam.sample_without_replacement,
            {"weights": rand(B, L), "num_samples": 2, "valid": None, "seed": 1, "step": 0,
             "sample_ids": None, "backend": None},
            {"weights": lambda x: plain(x, FLOATS, (None, None)), "num_samples": counts,
            "valid": flags,
             "backend": backend, **WORDS},
        ),
        "inclusion_probabilities": Callee(
            mam.inclusion_probabilities,
            {"weights": rand(B, L), "num_samples": 2, "valid": None, "backend": None},
            {"weights": lambda x: plain(x, FLOATS, (None, None)), "num_samples": counts,
             "valid": flags, "backend": backend},
        ),
        "value_attention": Callee(
            mam.value_attention,
            {"values": rand(B, L), "slope": rand(N, H), "valid": None, "backend": None},
            {"values": values, "slope": lambda x: plain(x, FLOATS, (None, None)), "valid": flags,
             "backend": backend},
        ),
        "latent_attention": Callee(
            mam.latent_attention,
            {**heads, "valid": None, "scale": None, "backend": None},
            {"query": query, "key": key, "value": key, "valid": flags, "scale": scale,
             "backend": backend},
        ),
        "attention_importance": Callee(
            mam.attention_importance,
            {"query": heads["query"], "key": heads["key"], "logsumexp": rand(B, N, H),
             "latents": torch.tensor([0, 2]), "valid": None, "scale": None, "backend": None},
            {"query": query, "key": key, "logsumexp": lambda x: plain(x, FLOATS, (B, N, H)),
             "latents": distinct(N), "valid": flags, "scale": scale, "backend": backend},
        ),
        "module of values": Callee(of_values, chosen, {"tokens": values, **own}),
        "module of tokens": Callee(
            of_tokens, chosen | {"tokens": rand(B, L, D)},
            {"tokens": lambda x: plain(x, FLOATS, (None, None, D)), **own},
        ),
        "MultinomialAttentionMasking": Callee(
            mam.MultinomialAttentionMasking,
            {"input_dim": None, "latent_dim": 8, "num_latents": 5, "num_heads": 2,
             "mask_ratio": 0.3, "latent_fraction": None, "temperature": 1.0, "context_from": "all",
             "eps": 1e-8, "backend": None},
            {"input_dim": lambda x: x is None or sizes(x), "latent_dim": lambda x: is_int(x, 1,
            99) and x % 2 == 0,
             "num_latents": sizes, "num_heads": lambda x: is_int(x, 1, 99) and 8 % x == 0,
             "mask_ratio": ratio, "latent_fraction": lambda x: x is None or ratio(x),
             "temperature": positive, "eps": positive,
             "context_from": lambda x: isinstance(x, str) and x in ("all", "visible"),
             "backend": any_backend},
        ),
        "ContextInjection": Callee(
            mam.ContextInjection,
            {"latent_dim": 8, "embed_dim": 3, "scheme": "decoder"},
            {"latent_dim": sizes, "embed_dim": sizes,
             "scheme": lambda x: isinstance(x, str) and x in ("encoder", "decoder", "both",
             "separate")},
        ),
        "injection": Callee(
            mam.ContextInjection(8, 3),
            {"context": rand(B, 8)},
            {"context": lambda x: plain(x, FLOATS, (None, 8))},
        ),
        "use_backend": Callee(_use, {"backend": "cpu"}, {"backend": any_backend}),
    }  # fmt: skip


def _use(backend: object) -> None:
    with mam.use_backend(backend):
        pass


# What stands in the place of an argument. Simple ones first.


def _nested() -> Tensor:
    return torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=torch.jagged)


def _quantized() -> Tensor:
    return torch.quantize_per_tensor(rand(B, L), 0.1, 0, torch.qint8)


PLAIN: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: 1, lambda: 3, lambda: -1,
    lambda: L + 1,
    lambda: 2**31, lambda: 2**63, lambda: 2**64, lambda: 2**70, lambda: -(2**70), lambda: 0.5,
    lambda: 1.5,
    lambda: -0.1, lambda: float("nan"), lambda: float("inf"), lambda: 1e308, lambda: 1j, lambda: "",
    lambda: "cpu",
    lambda: "reference", lambda: "numpy", lambda: "all", lambda: "x" * 5000, lambda: b"cpu", list,
    lambda: [1, 2],
    lambda: (1, 2), lambda: [[0.5] * L] * B, dict, lambda: {"a": 1}, Thing, lambda: Thing,
    lambda: len, lambda: range(2),
    lambda: torch.float32, lambda: torch.device("cpu"), lambda: torch.Size([2]),
    lambda: slice(None),
    lambda: np.int64(2), lambda: np.int32(2), lambda: np.uint8(2), lambda: np.float32(0.5),
    lambda: np.float64(0.5), lambda: np.bool_(True),
    lambda: np.array(2), lambda: np.arange(2), lambda: np.ones((B, L)), lambda: np.ones((B, L),
    dtype=bool),
    lambda: np.str_("cpu"), lambda: np.array(["cpu", "cpu"]), lambda: np.array([0.5, 0.5]),
)  # fmt: skip
SHAPES: tuple[tuple[int, ...], ...] = (
    (), (1,), (B,), (B + 1,), (L,), (N, H), (B, L), (B, L + 1), (B + 1, L), (L, B), (B, L, D), (B,
    L, D + 1), (B, L, 1),
    (N, H, WIDTH), (B, L, H, WIDTH), (B, L, H + 1, WIDTH), (B, N, H), (0,), (0, L), (B, 0), (B, L,
    0), (1, 1, 1, 1, 1), (B, 8), (B, 1), (1, L),
)  # fmt: skip
DTYPES = (
    torch.float32, torch.bool, torch.int64, torch.float64, torch.float16, torch.bfloat16,
    torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.complex64, torch.complex128, torch.uint16, torch.uint32,
    torch.uint64, torch.float8_e4m3fn,
)  # fmt: skip


def tensor(source: Source) -> Tensor:
    """A tensor of a shape that occurs somewhere, of any type and kind."""
    shape, dtype = source.one_of(SHAPES), source.one_of(DTYPES)
    x = (torch.from_numpy(np.asarray(source.numbers.random(shape))) * source.one_of([1, 3, 8])).to(
        dtype
    )
    kind = source.below(24)
    if kind < 12:
        return x
    return (KINDS[kind - 12])(x)


def _or(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion that some shapes and types do not have."""

    def converted(x: Tensor) -> Tensor:
        try:
            return convert(x)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return x

    return converted


KINDS = tuple(
    map(
        _or,
        (
            lambda x: x.to("meta"), lambda x: x.to_sparse(), lambda x: x.to_sparse_csr(),
            lambda x: x.to_sparse_csc(),
            lambda x: x.to_sparse_bsr((1, 1)), lambda x: x.requires_grad_(),
            lambda x: x.as_subclass(torch.nn.Parameter),
            lambda x: _nested(), lambda x: _quantized(), lambda x: x.to_mkldnn(),
            lambda x: torch.nn.Parameter(x),
            lambda x: torch.nested.nested_tensor([x, x]),
        ),
    )
)  # fmt: skip


def call(source: Source) -> str:
    """A public function with one or two arguments replaced."""
    name = source.one_of(sorted(callees()))
    function, arguments, allowed = callees()[name]
    arguments, changed = dict(arguments), []
    for _ in range(2 if source.chance(20) else 1):
        argument = source.one_of(list(arguments))
        arguments[argument] = tensor(source) if source.chance(60) else source.one_of(PLAIN)()
        changed.append(argument)
    unfit = [each for each in dict.fromkeys(changed) if not allowed[each](arguments[each])]
    source.calling(name, **arguments)
    try:
        out = function(**arguments)
    except Exception as error:
        may_refuse = bool(unfit) or _clash(name, arguments)
        # the message names the changed argument, or one that no longer fits it
        return refused(error, arguments, may_refuse=may_refuse)
    if unfit and not _shapes_alone(out):
        raise Wrong(f"{name}: {'+'.join(unfit)} taken, a {type(arguments[unfit[0]]).__name__}")
    return "taken"


def _shapes_alone(out: object) -> bool:
    """Whether an answer is of tensors without numbers, which a tensor on "meta" may have."""
    parts = out if isinstance(out, tuple) else (out,)
    return all(isinstance(x, Tensor) and x.is_meta for x in parts)


def _clash(name: str, arguments: dict[str, Any]) -> bool:
    """Whether arguments that may be there each by itself do not go together."""
    if name == "MultinomialAttentionMasking":
        return arguments["latent_dim"] % arguments["num_heads"] != 0
    for first, shape in (("weights", (B, L)), ("values", (B, L)), ("tokens", (B, L))):
        if first in arguments and arguments[first].shape[:2] != shape:
            return True  # the others are of another size
    doubles = [x for x in arguments.values() if isinstance(x, Tensor) and x.dtype is torch.float64]
    return arguments.get("backend") == "cpu" and bool(doubles)
