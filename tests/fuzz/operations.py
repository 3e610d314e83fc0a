"""``torch.ops.mam_kernels.*`` with arguments that do not fit together.

What a right call of an operation looks like is recorded from public calls; one or two of its
arguments are then changed. Either it is refused, or the answer is that of the backend "reference".
"""

import contextlib
import copy
import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mam_kernels as mam

from . import layouts
from .refusals import named
from .source import Source, Wrong


class Recorded(NamedTuple):
    """A call of an operation that was made by a public function."""

    operation: Any  # the overload
    arguments: dict[str, Any]  # by the names of the schema


class Recorder(TorchDispatchMode):
    """Writes down every call of an operation of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Recorded]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "mam_kernels":
            names = [argument.name for argument in function._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            kept = {name: x.detach().clone() if isinstance(x, Tensor) else x for name,
            x in given.items()}  # fmt: skip
            self.calls.setdefault(function._schema.name, []).append(Recorded(function, kept))
        return function(*args, **(kwargs or {}))


@functools.cache
def recorded() -> dict[str, list[Recorded]]:
    """Calls of every operation, by its name: dense, sparse, with and without what is optional."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    recorder = Recorder()
    flags = rand(3, 10) < 0.8
    full = {"valid": flags, "maskable": rand(3, 10) < 0.8, "sample_ids": torch.arange(3) + 4,
            "seed": 1, "step": 2}  # fmt: skip
    dense = torch.where(rand(3, 10) < 0.5, rand(3, 10), 0.0)
    with recorder:
        for backend in ("cpu", "reference"):
            for size, options in ((None, {}), (None, full), (4, {}), (4, full)):
                for visible in ("all", "visible"):
                    module = mam.MultinomialAttentionMasking(
                        size, 6, 5, 2, context_from=visible, backend=backend
                    )
                    inputs = (dense, dense.to_sparse_csr()) if size is None else (rand(3, 10, 4),)
                    for tokens in inputs:
                        out = module(tokens, **{"seed": 7, **options})
                        (out.context.sum() + out.penalty).backward()
                        given = {"num_masked": 3, "latents": torch.tensor([1, 3])}
                        module(tokens, **{"seed": 7, **options, **given})
            for valid in (None, flags):
                shared = {"valid": valid, "backend": backend}
                for values in (dense, dense.to_sparse_csr()):
                    mam.value_attention(values, rand(4, 2), **shared)
                query, key = rand(4, 2, 5).requires_grad_(), rand(3, 10, 2, 5)
                output, logsumexp = mam.latent_attention(query, key, key + 1, **shared)
                (output.sum() + logsumexp.sum()).backward()
                latents = torch.tensor([2, 0])
                mam.attention_importance(query, key, logsumexp, latents, **shared)
                words = {"seed": 3, "sample_ids": torch.arange(3) if valid is None else None}
                mam.sample_without_replacement(rand(3, 10), 4, **shared, **words)
            weights = rand(3, 10).requires_grad_()
            mam.inclusion_probabilities(weights, 4, valid=valid).square().sum().backward()
    return recorder.calls


@functools.cache
def names() -> tuple[str, ...]:
    """Of the operations, in one order."""
    return tuple(sorted(recorded()))


def call(source: Source) -> str:
    """An operation with one or two changed arguments."""
    name = source.one_of(names())
    operation, arguments = source.one_of(recorded()[name])
    arguments = copy.copy(arguments)
    changed = []
    for _ in range(source.between(1, 2)):
        argument = source.one_of(list(arguments))
        arguments[argument] = _changed(source, arguments[argument])
        changed.append(argument)
    source.calling(name, **arguments)
    poison = torch.utils.deterministic
    try:
        got = _run(operation, arguments, poison)
    except Exception as error:
        return _refused(error, name, changed)
    return _compare(operation, arguments, got, changed)


def _run(operation: Any, arguments: dict[str, Any], poison: Any) -> list[Tensor]:
    """The results, of memory that is NaN where nothing is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    poison.fill_uninitialized_memory = True
    try:
        out = operation(*arguments.values())
    finally:
        torch.use_deterministic_algorithms(False)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _refused(error: Exception, name: str, changed: list[str]) -> str:
    said = f"{type(error).__name__}: {error}"
    # the changed argument, or one that it no longer fits
    if isinstance(error, (ValueError, TypeError)) and named(str(error), all_arguments()):
        return "refused"
    if isinstance(error, (RuntimeError, NotImplementedError)) and any(
        spelled in str(error) for spelled in (name, name.replace("::", "."))
    ):
        return "refused by torch"  # what the schema does not allow, or a kind of tensor
    raise Wrong(f"{name}: refused by {said}") from error


@functools.cache
def all_arguments() -> frozenset[str]:
    """The names of all arguments of all operations, with and without the part they belong to."""
    found = {key for calls in recorded().values() for key in calls[0].arguments}
    return frozenset(key[at:] for key in found for at in _starts(key))


def _starts(key: str) -> list[int]:
    return [0, *(at + 1 for at, letter in enumerate(key) if letter == "_")]


def _compare(
    operation: Any, arguments: dict[str, Any], got: list[Tensor], changed: list[str]
) -> str:
    """Hold what was computed against the reference on the same arguments."""
    what = f"of {operation._schema.name.partition('::')[2]} for {'+'.join(sorted(set(changed)))}"
    if any(x.is_meta for x in arguments.values() if isinstance(x, Tensor)):
        if all(x.is_meta for x in got):
            return "shapes alone"
        raise Wrong(f"numbers from a tensor that has none {what}")
    if arguments["backend"] == "reference":
        return "taken by the reference"
    try:
        right = _run(operation, arguments | {"backend": "reference"}, torch.utils.deterministic)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise Wrong(f"taken, and not by the reference, {what}: {said}") from error
    # what a forward pass kept for the backward has a size and a type; other numbers mean nothing
    if {"state", "time"} & set(changed) or any(_beyond(x) for x in arguments.values()):
        return "taken, beyond what any arithmetic holds"
    for ours, theirs in zip(got, right, strict=True):
        if ours.shape != theirs.shape:
            raise Wrong(f"another shape than the reference's {what}")
        if ours.dtype is torch.bool:
            # masks may differ where two keys are within rounding; half of them do not
            same = (ours == theirs).float().mean() if ours.numel() else 1.0
            if same < 0.9:
                raise Wrong(f"another mask than the reference's {what}")
        elif not torch.allclose(
            ours.double(), theirs.double(), rtol=1e-2, atol=1e-4, equal_nan=True
        ):
            raise Wrong(f"another result than the reference's {what}")
    return "taken"


def _beyond(x: Any) -> bool:
    """Whether a number, or one in a tensor, is not finite or too large for sums of such."""
    if isinstance(x, float):
        return not abs(x) < 1e15
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    return not bool((x.abs() < 1e15).all())


def _changed(source: Source, x: Any) -> Any:
    if isinstance(x, Tensor):
        # not every change can be made to what the first one made
        with contextlib.suppress(RuntimeError, TypeError, AttributeError):
            return source.one_of(TENSORS)(source, x)
        return x
    if x is None:
        return source.one_of(NOTHINGS)(source)
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        wild = [x + 1, max(x - 1, 0), 0, -1, 1000, 2**62, -(2**63), 2**63 - 1, 3]
        return source.one_of(wild)
    if isinstance(x, float):
        wild = [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e300, 1e-300, 5e-324]
        return source.one_of(wild)
    if isinstance(x, str):
        return source.one_of(["", "reference", "cpu", "numpy", "cuda", "triton", "CPU", "cpu\0"])
    raise NotImplementedError(f"an argument of type {type(x)}")


def _layout(source: Source, x: Tensor) -> Tensor:
    as_bytes = x.view(torch.uint8) if x.dtype is torch.bool else x
    array = as_bytes.double().numpy() if x.is_floating_point() else as_bytes.long().numpy()
    laid, _ = layouts.laid(source, array, as_bytes.dtype)
    return laid.view(torch.bool) if x.dtype is torch.bool else laid


def _dtype(source: Source, x: Tensor) -> Tensor:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]  # fmt: skip
    return x.to(source.one_of(kinds))


def _size(source: Source, x: Tensor) -> Tensor:
    """One element more or less along one dimension, or none, or many."""
    if x.dim() == 0:
        return x.reshape(1).repeat(2)
    dim = source.below(x.dim())
    size = x.shape[dim]
    wanted = source.one_of([size + 1, max(size - 1, 0), 0, 1, 2 * size + 3, 200])
    where = torch.arange(wanted) % max(size, 1)
    return x.index_select(dim, where) if size else x


def _rank(source: Source, x: Tensor) -> Tensor:
    kind = source.below(4)
    if kind == 0:
        return x[None]
    if kind == 1:
        return x.flatten()
    if kind == 2:
        return x[..., None]
    return x.flatten()[0] if x.numel() else x.sum()


def _meta(source: Source, x: Tensor) -> Tensor:
    return x.to("meta")


def _sparse(source: Source, x: Tensor) -> Tensor:
    if x.dim() == 2 and source.chance(50):
        return x.to_sparse_csr()
    return x.to_sparse()


def _nested(source: Source, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x[None]
    layout = source.one_of([torch.strided, torch.jagged])
    return torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(1, 3)], layout=layout)


def _content(source: Source, x: Tensor) -> Tensor:
    """Other numbers: indices out of range, counts below 0, crow that falls."""
    x = x.clone()
    flat = x.view(-1)
    if not flat.numel():
        return x
    at = source.below(flat.numel())
    if x.dtype is torch.bool:
        flat[at] = ~flat[at]
        return x
    if x.is_floating_point():
        flat[at] = source.one_of([float("nan"), float("inf"), -float("inf"), -1.0, 1e30, 0.0])
        return x
    limits = torch.iinfo(x.dtype)
    wild = [-1, limits.max, limits.min, 10, 11, 3, 5, 10**6, 0]
    flat[at] = min(max(source.one_of(wild), limits.min), limits.max)
    return x


def _odd_bytes(source: Source, x: Tensor) -> Tensor:
    if x.dtype is not torch.bool:
        return _content(source, x)
    factor = source.one_of([2, 3, 128, 255])
    return (x.view(torch.uint8) * factor).view(torch.bool)


def _grad(source: Source, x: Tensor) -> Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() else x.expand(x.shape)


TENSORS = (_size, _layout, _dtype, _rank, _content, _odd_bytes, _meta, _sparse, _nested, _grad)
NOTHINGS = (
    lambda source: torch.ones(3, 10, dtype=torch.bool),
    lambda source: torch.ones(2, 10, dtype=torch.bool),
    lambda source: torch.arange(3),
    lambda source: torch.arange(2, dtype=torch.int32),
    lambda source: torch.tensor([0, 1, 2, 2], dtype=source.one_of([torch.int64, torch.int32])),
    lambda source: torch.zeros(0, dtype=torch.int64),
    lambda source: torch.rand(3, 10),
    lambda source: torch.tensor(float(np.nan)),
)
