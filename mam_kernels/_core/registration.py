"""Registering an operation with PyTorch: a schema, one implementation that dispatches to the
backends, shapes for tracing, and its gradient.

``torch.library.define`` and ``impl`` rather than ``custom_op``: the same guarantees (compile,
export, opcheck) at about half the host cost.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch
from torch import Tensor

from . import checks

NAMESPACE = "mam_kernels"

SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
}
"""Python's types by the names that a schema gives them."""

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class Operation:
    """The operation ``torch.ops.mam_kernels.<name>``, called with the parts of a masking call.

    Args:
        name: of the operation.
        parts: name -> what it is: a structure of ``call``, whose fields become the arguments
            ``<part>_<field>``, or one of ``SCHEMA_TYPES``.
        returns: name -> the same for the results; structures are returned flat.
        run: computes it; takes the parts.
        fake: results of the right shapes and types, for tracing; takes the parts.
        save: keeps what the gradient needs; takes autograd's context, the parts and the results.
        backward: takes autograd's context and a gradient (or None) for each result; returns
            part -> its gradient. Other parts have none.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Any],
        returns: Mapping[str, Any],
        run: Callable,
        fake: Callable,
        *,
        save: Callable | None = None,
        backward: Callable | None = None,
    ) -> None:
        self.name, self.parts = name, tuple(parts)
        # What the parts are: the class of a structure, or None for a plain argument.
        self._structures = tuple(k if _is_structure(k) else None for k in parts.values())
        schema = f"{name}({_arguments(parts)}) -> ({_arguments(returns)})"
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        _library.define(schema, tags=tags)
        _library.impl(name, lambda *flat: run(*self._together(flat)), "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{NAMESPACE}::{name}", lambda *flat: fake(*self._together(flat)), lib=_library
        )
        self.overload = getattr(torch.ops.mam_kernels, name).default
        self._transformable: type[torch.autograd.Function] | None = None
        if backward is not None:
            self._register_gradient(save, backward)

    def __call__(self, *parts: Any) -> Any:
        """Run it; differentiable by autograd and inside ``torch.func``.

        Raises:
            NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        """
        flat = self.flat(*parts)
        checks.refuse_forward_mode(flat)
        if transforming() and self._transformable is not None:
            refuse_compiled_transforms()
            return self._transformable.apply(*flat)
        return self.overload(*flat)

    def flat(self, *parts: Any) -> list:
        """The flat arguments of the operation that the parts come to."""
        flat: list[Any] = []
        for part, structure in zip(parts, self._structures, strict=True):
            if structure is None:
                flat.append(part)
            else:
                flat.extend(part)
        return flat

    def _together(self, flat: tuple) -> list:
        """The parts that the flat arguments of the operation make up."""
        parts, start = [], 0
        for structure in self._structures:
            if structure is None:
                parts.append(flat[start])
                start += 1
            else:
                stop = start + len(structure._fields)
                parts.append(structure(*flat[start:stop]))
                start = stop
        return parts

    def _gradients(self, by_part: Mapping[str, Any]) -> tuple:
        """Gradients in the order of the flat arguments."""
        flat: list[Tensor | None] = []
        for name, structure in zip(self.parts, self._structures, strict=True):
            if structure is None:
                flat.append(by_part.get(name))
            else:
                flat.extend(by_part.get(name, (None,) * len(structure._fields)))
        return tuple(flat)

    def _register_gradient(self, save: Callable | None, backward: Callable) -> None:
        def setup_context(ctx, inputs: tuple, output: Any) -> None:
            ctx.set_materialize_grads(False)
            if save is not None:
                save(ctx, self._together(inputs), output)

        def flat_backward(ctx, *gradients: Tensor | None) -> tuple:
            return self._gradients(backward(ctx, *gradients))

        torch.library.register_autograd(
            f"{NAMESPACE}::{self.name}", flat_backward, setup_context=setup_context, lib=_library
        )
        # Gradients registered by torch.library take no part in torch.func: the same ones in the
        # form that it takes. vmap runs the operation in a loop.
        members = {
            "forward": staticmethod(self.overload),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(flat_backward),
            "generate_vmap_rule": True,
        }
        self._transformable = type(self.name, (torch.autograd.Function,), members)


def no_second_derivative(name: str) -> Callable:
    """The gradient of an operation that is itself a gradient."""

    def backward(ctx, *gradients: Tensor | None) -> dict:
        raise RuntimeError(f"{name}: there is no second derivative")

    return backward


def _is_structure(kind: Any) -> bool:
    return hasattr(kind, "_fields")


def _arguments(parts: Mapping[str, Any]) -> str:
    """Names and types of a schema."""
    flat = []
    for name, kind in parts.items():
        if _is_structure(kind):
            hints = get_type_hints(kind)
            flat += [f"{SCHEMA_TYPES[hints[x]]} {name}_{x}" for x in kind._fields]
        else:
            flat.append(f"{SCHEMA_TYPES[kind]} {name}")
    return ", ".join(flat)


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is being computed."""
    return torch._C._are_functorch_transforms_active()


def refuse_compiled_transforms() -> None:
    """Raise where ``torch.compile`` traces a transform of ``torch.func``: every gradient would be
    lost without a word.
    """
    if transforming() and torch.compiler.is_compiling():
        raise RuntimeError(
            "mam_kernels: a transform of torch.func cannot be compiled; call it outside of "
            "torch.compile"
        )
