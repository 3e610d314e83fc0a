"""Does a model read what it was given? Follows a tensor through the operations of a forward pass.

A training that masks by itself, and leaves the masked inputs of a step alone, trains on another
mask than the one whose loss and context it uses, and says nothing.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode


class NotReadError(RuntimeError):
    """A model did not read the masked inputs of its step."""


class ReadingWatch(TorchFunctionMode):
    """While active, knows which tensors were made of the ``sources``.

    It costs a Python call an operation, so it is for the first step alone. What a module returns
    counts as made of what it takes: functions with a backward pass of their own are not seen.

    Args:
        sources: tensors whose storage is looked for: a view of one, or what one is a view of, is
            one too.
    """

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()
        self.sources = tuple(sources)  # which keeps the addresses theirs
        self.addresses = {_address(source) for source in self.sources} - {0}
        self.made: dict[int, weakref.ref] = {}
        self.reached_a_module = False
        self.compiled = False  # then nothing is known
        self._hook: Any = None

    def __enter__(self) -> "ReadingWatch":
        self._hook = register_module_forward_hook(self._module_returned, with_kwargs=True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if torch.compiler.is_compiling():
            self.compiled = True
        elif any(map(self.holds, _tensors((args, kwargs)))):
            self._mark(output)
            if func is Tensor.__setitem__:
                self._mark(args[0])
        return output

    def holds(self, x: Any) -> bool:
        """Whether a tensor is one of the sources, or made of them."""
        if not isinstance(x, Tensor):
            return False
        known = self.made.get(id(x))
        if known is not None and known() is x:
            return True
        try:
            return _address(x) in self.addresses
        except RuntimeError:  # a tensor without memory: something is being compiled
            self.compiled = True
            return False

    def _module_returned(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if any(map(self.holds, _tensors((args, kwargs)))):
            self.reached_a_module = True
            self._mark(output)

    def _mark(self, output: Any) -> None:
        for x in _tensors(output):
            self.made[id(x)] = weakref.ref(x)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or a part of it, was compiled: then no Python runs in it to be watched."""
    return any(
        getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod")
        for part in module.modules()
    )


def _address(x: Tensor) -> int:
    if x.layout != torch.strided:
        return 0
    return x.untyped_storage().data_ptr()


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
