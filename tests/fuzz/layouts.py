"""Arrays as tensors of every layout that torch has, and the numbers that these stand for."""

import numpy as np
import torch
from torch import Tensor

from .source import Source

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
UNITS = {
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float64: 2.0**-53,
}


class Wrapped(Tensor):
    """A subclass without behaviour of its own."""


def laid(source: Source, array: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """A tensor of some layout, and what it stands for in float64 (integers stay integers).

    Most layouts hold ``array``; expanded and overlapping ones hold another that is made of it.
    """
    plain = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
    laid_out = LAYOUTS[source.below(len(LAYOUTS))](source, plain)
    # torch's own copy of a contiguous tensor of the same numbers is the truth
    return _wrapped(source, laid_out), _numbers(laid_out)


def _numbers(x: Tensor) -> np.ndarray:
    x = x.resolve_neg().contiguous()
    if x.dtype is torch.bool:
        return x.numpy()
    return x.to(torch.float64).numpy() if x.is_floating_point() else x.to(torch.int64).numpy()


def _wrapped(source: Source, x: Tensor) -> Tensor:
    kind = source.below(40)
    if kind == 38 and x.is_floating_point():
        return torch.nn.Parameter(x, requires_grad=False)
    return x.as_subclass(Wrapped) if kind == 39 else x


def _contiguous(source: Source, x: Tensor) -> Tensor:
    return x


def _offset(source: Source, x: Tensor) -> Tensor:
    gap = source.between(1, 5)
    storage = _poison(x.numel() + gap, x)
    storage[gap:] = x.flatten()
    return storage[gap:].view(x.shape)


def _permuted(source: Source, x: Tensor) -> Tensor:
    if x.dim() < 2:
        return _stepped(source, x)
    order = source.numbers.permutation(x.dim()).tolist()
    back = [order.index(i) for i in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def _stepped(source: Source, x: Tensor) -> Tensor:
    steps = [source.between(1, 3) for _ in x.shape]
    wide = _poison([size * step for size, step in zip(x.shape, steps, strict=True)], x)
    view = wide[tuple(slice(None, None, step) for step in steps)]
    view.copy_(x)
    return view


def _wide(source: Source, x: Tensor) -> Tensor:
    """A part of something larger in every dimension."""
    before = [source.below(3) for _ in x.shape]
    wide = _poison([size + start + 1 for size, start in zip(x.shape, before, strict=True)], x)
    part = tuple(slice(start, start + size) for size, start in zip(x.shape, before, strict=True))
    wide[part] = x
    return wide[part]


def _expanded(source: Source, x: Tensor) -> Tensor:
    """The first slice along one dimension stands for all of them."""
    if x.dim() == 0 or x.numel() == 0:
        return x
    dim = source.below(x.dim())
    return x.narrow(dim, 0, 1).clone().expand(x.shape)


def _overlapping(source: Source, x: Tensor) -> Tensor:
    """Rows that are windows of one storage."""
    if x.dim() < 2 or x.numel() == 0:
        return x
    step = min(source.between(1, 2), x[0].numel())
    return x.contiguous().as_strided(x.shape, [step, *x[0].contiguous().stride()])


def _negated(source: Source, x: Tensor) -> Tensor:
    """The negation is still to be done: torch sets a bit."""
    if x.dtype not in (torch.float32, torch.float64):
        return _stepped(source, x)
    return torch.complex(torch.zeros_like(x), -x).conj().imag


LAYOUTS = (
    _contiguous, _contiguous, _offset, _permuted, _stepped, _wide, _expanded, _overlapping, _negated
)  # fmt: skip


def _poison(shape: int | list[int], like: Tensor) -> Tensor:
    """What a kernel reads by mistake is seen."""
    poison = float("nan") if like.is_floating_point() else 77
    return torch.full([shape] if isinstance(shape, int) else shape, poison, dtype=like.dtype)


def flags(source: Source, shape: tuple[int, ...]) -> tuple[Tensor | None, np.ndarray]:
    """None or booleans of some layout, whose bytes may be neither 0 nor 1, and the truth."""
    kind = source.below(6)
    if kind == 0:
        return None, np.ones(shape, dtype=bool)
    density = (1.0, 0.9, 0.5, 0.1, 0.0)[kind - 1]
    there = source.numbers.random(shape) < density
    true_bytes = np.array([1])
    if source.chance(30):
        true_bytes = np.array([1, 2, 3, 64, 128, 254, 255])
    stored = np.where(there, source.numbers.choice(true_bytes, shape), 0).astype(np.uint8)
    x, stands_for = laid(source, stored, torch.uint8)
    return x.view(torch.bool), stands_for != 0


INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64,
)  # fmt: skip


def integers(source: Source, array: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Integers in any dtype that can hold them, of some layout, and the truth in int64."""
    fitting = [
        dtype
        for dtype in INTEGERS
        if not array.size
        or (torch.iinfo(dtype).min <= array.min() and array.max() <= torch.iinfo(dtype).max)
    ]
    return laid(source, array.astype(np.int64), source.one_of(fitting))


def word(source: Source, low: int, high: int) -> tuple[object, int]:
    """A seed or a step: an int, or a tensor of one element; and its value."""
    value = source.one_of(
        [0, 1, low, high - 1, 2**31, 2**32 - 1, 12345, source.below(2**30) + low // 2**20]
    )
    value = min(max(value, low), high - 1)
    kind = source.below(5)
    if kind < 3:
        return value, value
    # a tensor holds the bits of the word as a signed number
    signed = value - 2**64 if value >= 2**63 else value
    tensor, _ = integers(source, np.asarray(signed, dtype=np.int64))
    shape = source.one_of([(), (1,), (1, 1)])
    return tensor.reshape(shape), value


def fields(*tensors: Tensor | None) -> list[np.ndarray]:
    """Results as float64 or bool arrays."""
    return [_numbers(x.detach()) for x in tensors if x is not None]
