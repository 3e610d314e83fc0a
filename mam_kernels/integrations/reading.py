"""Does a model read what it was given? Follows a tensor through the operations of a forward pass.

A training that masks by itself, and leaves the masked inputs of a step alone, trains on another
mask than the one whose loss and context it uses, and says nothing.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class NotReadError(RuntimeError):
    """A model did not read the masked inputs of its step."""


class ReadingWatch(TorchDispatchMode):
    """While active, records which tensors were computed from the ``sources``.

    It costs a Python call an operation, so it is for the first step alone. Token embeddings that
    were made before it began count as computed from them, because that is not known.

    Args:
        sources: tensors, compared by their memory: their views count, and the tensors that they are
            views of.
    """

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()
        sources = tuple(sources)
        self.sides = set(sources[0].shape)  # B and L
        self.sources = [_identity(x) for x in sources]
        # by identity: a storage and its Python object live and die together
        self.made = {id(kept): weakref.ref(kept) for kept in self.sources}
        self.born: dict[int, weakref.ref] = {}  # while this was active, of anything

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        holds = any(map(self.holds, _tensors((args, kwargs or {}))))
        output = func(*args, **(kwargs or {}))
        for x in _tensors(output):
            kept = _identity(x)
            self.born[id(kept)] = weakref.ref(kept)
            if holds:
                self.made[id(kept)] = weakref.ref(kept)
        return output

    def holds(self, x: Any) -> bool:
        """Whether a tensor is one of the sources, or made of them."""
        if not isinstance(x, Tensor):
            return False
        kept = _identity(x)
        if _is_in(self.made, kept):
            return True
        return self.was_there(x) and self._may_be_embedded(x)

    def was_there(self, x: Tensor) -> bool:
        """Whether a tensor was made before this began."""
        return not _is_in(self.born, _identity(x))

    def _may_be_embedded(self, x: Tensor) -> bool:
        """Of a tensor that was there before: whether it can be token embeddings."""
        sized = x.dim() >= 3 and x.is_floating_point() and set(x.shape[:2]) == self.sides
        return sized or x.grad_fn is not None


def _is_in(known: dict[int, weakref.ref], kept: Any) -> bool:
    there = known.get(id(kept))
    return there is not None and there() is kept


@contextmanager
def reached_modules(
    model: nn.Module, sources: Iterable[Tensor], *, without: nn.Module
) -> Iterator[None]:
    """See that a part of a model, but none of ``without``, is called with a tensor that is, or was
    made of, one of the sources.

    Raises:
        NotReadError: none is, and the model was called.
    """
    watch, seen, others = ReadingWatch(sources), set(), set(without.modules())

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.add(any(map(watch.holds, _tensors((args, kwargs)))))

    hooks = [
        part.register_forward_pre_hook(look, with_kwargs=True)
        for part in model.modules()
        if part is not model and part not in others
    ]
    try:
        with watch:
            yield
    finally:
        for hook in hooks:
            hook.remove()
    if seen == {False}:
        raise NotReadError("no part of the model was called with the masked inputs of this step")


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or a part of it, was compiled: then no Python runs in it to be watched."""
    return any(
        getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod")
        for part in module.modules()
    )


def _tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from _tensors(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from _tensors(value)


def _identity(x: Tensor) -> Any:
    """The storage, which views of a tensor share; a sparse tensor has none, and is returned."""
    return x.untyped_storage() if x.layout == torch.strided else x
