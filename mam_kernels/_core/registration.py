"""Registering an operation with PyTorch: a schema, one implementation that dispatches to the
backends, shapes for tracing, and its gradient.

``torch.library.define`` and ``impl`` rather than ``custom_op``: the same guarantees (compile,
export, opcheck) at about half the host cost.
"""

import inspect
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
        names = [argument.partition(" ")[2] for argument in _arguments(parts).split(", ")]

        def shapes(*flat: Any) -> Any:
            _refuse_some_on_meta(names, flat)
            return fake(*self._together(flat))

        torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_library)
        self.overload = getattr(torch.ops.mam_kernels, name).default
        self._function: type[torch.autograd.Function] | None = None
        if backward is not None:
            self._register_gradient(save, backward)

    def __call__(self, *parts: Any) -> Any:
        """Run it; differentiable by autograd and inside ``torch.func``.

        Raises:
            NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        """
        flat = self.flat(*parts)
        checks.refuse_forward_mode(flat)
        refuse_compiled_transforms()
        if self._function is None or torch.compiler.is_compiling() or not _wants_gradient(flat):
            return self.overload(*flat)
        return self._function.apply(*flat)

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

        # The same in the form that torch.func takes; vmap runs the operation in a loop. Elsewhere
        # it is used since it is faster: torch.library looks at each argument of the schema as
        # often as there are arguments, 0.1 to 0.6 ms for the masking step.
        def forward(*flat: Any) -> Any:
            return self.overload(*flat)

        # Asked for in every call. Set through vars: the type of a function has no such attribute.
        vars(forward)["__signature__"] = inspect.signature(forward)
        members = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(flat_backward),
            "jvp": staticmethod(checks.no_forward_mode),
            "generate_vmap_rule": True,
        }
        self._function = type(self.name, (torch.autograd.Function,), members)


def _refuse_some_on_meta(names: list[str], flat: tuple) -> None:
    """torch takes the function of shapes where any argument is on "meta"; the results of another
    device would be memory that is never written. The words of a draw may stay on the CPU.
    """
    tensors = [(name, x) for name, x in zip(names, flat, strict=True) if isinstance(x, Tensor)]
    on_meta = [name for name, x in tensors if x.is_meta]
    if not on_meta:
        return
    for name, x in tensors:
        if not x.is_meta and x.dim() > 0:
            raise ValueError(
                f"{on_meta[0]}: expected on {x.device}, as {name} is; got a tensor on meta"
            )


def _wants_gradient(arguments: list) -> bool:
    """Whether autograd, or a transform of ``torch.func``, has to see the operation."""
    if transforming():
        return True
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in arguments
    )


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
