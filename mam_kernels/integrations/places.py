"""Where the context is added to a model: to an argument of a module, or to what it returns.

A place is named, not guessed. A tensor that is no batch of token embeddings is refused, and so is a
square one, whose layout cannot be told from its shape.
"""

import inspect
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.describing import describe
from .reading import ReadingWatch

LAYOUTS = ("batch_first", "sequence_first", "cells")


class Place(NamedTuple):
    """Where the context is added.

    ``layout`` is that of the token embeddings: "batch_first" (B, L, De), "sequence_first"
    (L, B, De), or "cells" (B, De), one embedding a cell. None: by the shape; where L equals B, as
    ``batch_first`` of the module's attention says, or as an earlier batch of another shape showed;
    else it has to be said.
    """

    module: nn.Module | str  # or the name of a submodule of a LightningModule
    argument: int | str = 0  # of its forward, by position or by name, however it is called
    key: Hashable = None  # of the tensor, where the argument, or what is returned, is a dict
    layout: str | None = None
    output: bool = False  # add to what the module returns, not to what it takes


def place_of(name: str, place: Any, *, named: bool = False) -> Place:
    """A module, or a ``Place``, as a checked ``Place``; with ``named`` a module by its name."""
    if not isinstance(place, Place):
        place = Place(place)
    if not isinstance(place.module, str if named else nn.Module):
        wanted = "the name of a submodule" if named else "a torch.nn.Module"
        raise TypeError(
            f"{name}: expected {wanted}, or a Place of one; got {describe(place.module)}"
        )
    if place.layout is not None and place.layout not in LAYOUTS:
        raise ValueError(
            f"layout: expected one of {', '.join(LAYOUTS)}, or None; got {place.layout!r}"
        )
    return place


def module_of(place: Place) -> nn.Module:
    """The module of a place that holds one, not a name."""
    if isinstance(place.module, str):
        raise TypeError(f"module: expected a torch.nn.Module; got the name {place.module!r}")
    return place.module


class ContextHook:
    """A hook that adds ``shift`` at a place, and does nothing while that is None.

    It stays with its module: torch.compile does not notice hooks that come and go.
    """

    def __init__(self, place: Place) -> None:
        self.argument, self.key, self.output = place.argument, place.key, place.output
        self.index, self.keyword = (None, None) if place.output else _parameter(place)
        self.seen_layout = _declared_layout(module_of(place))
        self.name, self.called = "", False
        self.shift: Tensor | None = None
        self.layout: str | None = None
        self.watch: ReadingWatch | None = None  # while it is not known that masked inputs arrive
        self.verified, self.reads_masked = False, False

    @classmethod
    def of(cls, place: Place) -> "ContextHook":
        """The hook of a place, which is made the first time."""
        module = module_of(place)
        hooks = module._forward_hooks if place.output else module._forward_pre_hooks
        for hook in hooks.values():
            if isinstance(hook, cls) and hook.of_same_place(place):
                return hook
        hook = cls(place)
        if place.output:
            module.register_forward_hook(hook.after)
        else:
            module.register_forward_pre_hook(hook, with_kwargs=True)
        return hook

    def of_same_place(self, place: Place) -> bool:
        """Whether a place on the same module is this one."""
        return (self.argument, self.key, self.output) == (place.argument, place.key, place.output)

    def start(self, name: str, shift: Tensor, layout: str | None) -> None:
        """Add ``shift`` from now on."""
        self.name, self.shift, self.layout, self.called = name, shift, layout, False

    def stop(self) -> None:
        """Add nothing any more."""
        self.shift = self.watch = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.shift is None:
            return None
        if self.keyword in kwargs:
            return args, {**kwargs, self.keyword: self._added(kwargs[self.keyword], self.shift)}
        if self.index is None or self.index >= len(args):
            raise ValueError(
                f"{self.name}: expected a module that is called with the argument "
                f"{self.argument!r}; got {len(args)} by position and {sorted(kwargs)} by name"
            )
        added = self._added(args[self.index], self.shift)
        return (*args[: self.index], added, *args[self.index + 1 :]), kwargs

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The hook on what a module returns."""
        return None if self.shift is None else self._added(output, self.shift)

    def _added(self, given: Any, shift: Tensor) -> Any:
        if self.key is not None:
            if not isinstance(given, dict) or self.key not in given:
                there = sorted(map(str, given)) if isinstance(given, dict) else type(given).__name__
                raise ValueError(
                    f"{self.name}: expected a dict that holds {self.key!r}; got {there}"
                )
            return type(given)({**given, self.key: self._shifted(given[self.key], shift)})
        return self._shifted(given, shift)

    def _shifted(self, tokens: Any, shift: Tensor) -> Tensor:
        layout = self._layout_of(tokens, shift)
        self.called = True
        if torch.compiler.is_compiling():
            self.verified = True  # nothing can be seen of it
        elif self.watch is not None:
            known = self.watch.holds(tokens) or self.watch.was_there(tokens)
            self.reads_masked = self.reads_masked or known
        if layout == "cells":
            shift = shift[:, 0]
        elif layout == "sequence_first":
            shift = shift.transpose(0, 1)
        return tokens + shift.to(tokens.dtype)

    def _layout_of(self, tokens: Any, shift: Tensor) -> str:
        cells, width = shift.shape[0], shift.shape[2]
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else ()
        fits = {
            "batch_first": len(shape) == 3 and (shape[0], shape[2]) == (cells, width),
            "sequence_first": len(shape) == 3 and shape[1:] == (cells, width),
            "cells": shape == (cells, width),
        }
        if self.layout is not None:
            if not fits[self.layout]:
                raise ValueError(
                    f"{self.name}: expected token embeddings {_spelled(self.layout, cells, width)}"
                    f", as layout={self.layout!r} says; got {_described(tokens)}"
                )
            return self.layout
        if fits["batch_first"] and fits["sequence_first"]:
            if self.seen_layout is None:
                raise ValueError(
                    f"{self.name}: expected layout='batch_first' or layout='sequence_first' in its "
                    f"Place, since the batch has as many positions as cells; got {shape}"
                )
            return self.seen_layout
        for layout in ("batch_first", "sequence_first"):
            if fits[layout]:
                self.seen_layout = layout
                return layout
        hint = "; say layout='cells' if it holds one a cell" if fits["cells"] else ""
        what = "output is" if self.output else "first argument is"
        if not self.output and self.argument != 0:
            what = f"argument {self.argument!r} is"
        raise ValueError(
            f"{self.name}: expected a module whose {what} token embeddings "
            f"{_spelled('batch_first', cells, width)}; got {_described(tokens)}{hint}"
        )


def _spelled(layout: str, cells: int, width: int) -> str:
    shape = {"batch_first": (cells, "L"), "sequence_first": ("L", cells), "cells": (cells,)}
    return f"({', '.join(map(str, (*shape[layout], width)))})"


def _described(tokens: Any) -> str:
    if isinstance(tokens, Tensor):
        return describe(tokens)
    named = f" of {', '.join(map(str, tokens))}, and no key" if isinstance(tokens, dict) else ""
    return f"{type(tokens).__name__}{named}"


def _parameter(place: Place) -> tuple[int | None, str | None]:
    """Position and name of an argument of ``forward``; None where it has none."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(module_of(place).forward).parameters.values())
    by_position = [
        x.name for x in parameters if x.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(place.argument, int):
        if place.argument < len(by_position):
            return place.argument, by_position[place.argument]
        if any(x.kind == kinds.VAR_POSITIONAL for x in parameters):
            return place.argument, None
    elif place.argument in by_position:
        return by_position.index(place.argument), place.argument
    elif any(x.kind == kinds.VAR_KEYWORD or x.name == place.argument for x in parameters):
        return None, place.argument
    raise ValueError(
        f"argument: expected one that {type(place.module).__name__}.forward takes: "
        f"{', '.join(x.name for x in parameters) or 'none'}; got {place.argument!r}"
    )


def _declared_layout(module: nn.Module) -> str | None:
    """The layout by ``batch_first`` of the attention inside; None where there is none, or both."""
    said = {
        part.batch_first for part in module.modules() if isinstance(part, nn.MultiheadAttention)
    }
    if isinstance(getattr(module, "batch_first", None), bool):
        said = {module.batch_first}
    if len(said) != 1:
        return None
    return "batch_first" if said.pop() else "sequence_first"
