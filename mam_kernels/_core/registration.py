"""Registering an operation with PyTorch: a schema, one implementation that dispatches to the
backends, shapes for tracing, and its gradient.

``torch.library.define`` and ``impl`` rather than ``custom_op``: the same guarantees (compile,
export, opcheck) at about half the host cost.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .call import Draw
from .direct import are_plain, nobody_watches
from .forward_mode import in_forward_mode, no_forward_mode, refuse_forward_mode

NAMESPACE = "mam_kernels"

SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Tensor | int: "Tensor",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
}
"""Python's types by the names that a schema gives them."""

# What torch.library enters where no gradient is asked for. Entered here, its own layer of autograd,
# which is Python, is left out. The name is private to torch; without it calls take longer.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)

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
            part -> its gradient. Other parts have none. None: the operation has no gradient.
        differentiable: the parts that ``backward`` may return. None: whatever holds tensors.
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
        differentiable: Sequence[str] | None = None,
    ) -> None:
        self.name, self.parts, self._run = name, tuple(parts), run
        # Of each part its class, None for a plain argument, and which of the flat arguments it is.
        self._places: list[tuple[Any, int, int]] = []
        start = 0
        for kind in parts.values():
            structure = kind if _is_structure(kind) else None
            stop = start + (1 if structure is None else len(structure._fields))
            self._places.append((structure, start, stop))
            start = stop
        if backward is None:
            differentiable = ()
        elif differentiable is None:
            differentiable = [x for x, kind in parts.items() if _holds_tensors(kind)]
        self._differentiable = tuple(map(self.parts.index, differentiable))
        schema = f"{name}({_arguments(parts)}) -> ({_arguments(returns)})"
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        _library.define(schema, tags=tags)

        def kernel(*flat: Any) -> Any:
            # Below autograd and the transforms, where a compiled call comes along too.
            refuse_forward_mode(flat)
            return run(*self._together(flat))

        _library.impl(name, kernel, "CompositeExplicitAutograd")
        names = [argument.partition(" ")[2] for argument in _arguments(parts).split(", ")]

        def shapes(*flat: Any) -> Any:
            _refuse_some_on_meta(names, flat)
            return fake(*self._together(flat))

        torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_library)
        self.overload = getattr(torch.ops.mam_kernels, name).default
        self._plain, self._transformed = self._functions(save, backward)
        # Past what torch.autograd.Function asks about transforms, which is asked here before.
        self._apply = super(torch.autograd.Function, self._plain).apply  # type: ignore[misc]
        if backward is not None:
            torch.library.register_autograd(
                f"{NAMESPACE}::{name}",
                self._transformed.backward,
                setup_context=self._transformed.setup_context,
                lib=_library,
            )

    def __call__(self, *parts: Any) -> Any:
        """Run it; differentiable by autograd and inside ``torch.func``.

        Raises:
            NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        """
        if torch.compiler.is_compiling():
            flat = self.flat(*parts)
            refuse_compiled_transforms()
            refuse_forward_mode(flat)  # of a level that begins inside what is compiled
            return self.overload(*flat)
        if transforming():
            return self._transformed.apply(*self.flat(*parts))
        if in_forward_mode():
            refuse_forward_mode(self.flat(*parts))  # inside a node of autograd no tangent is seen
        direct = nobody_watches() and are_plain(parts)
        if self._differentiable and torch.is_grad_enabled():
            tensors = self._differentiated(parts)
            if any(isinstance(x, Tensor) and x.requires_grad for x in tensors):
                apply = self._apply if direct else self._plain.apply
                return apply(direct, parts, *tensors)
        with _below_autograd():
            return self._without_gradient(direct, parts)

    def in_backward(self, ctx, *parts: Any) -> Any:
        """As ``__call__``, in the backward pass of another operation; past the dispatcher where its
        forward pass went past it.
        """
        unseen = ctx.direct and not (
            torch.is_grad_enabled() or in_forward_mode() or torch.compiler.is_compiling()
        )
        return self._run(*parts) if unseen and are_plain(parts) else self(*parts)

    def _differentiated(self, parts: Sequence) -> list:
        """The flat arguments of the differentiable parts."""
        flat: list[Any] = []
        for index in self._differentiable:
            structure, _, _ = self._places[index]
            flat.extend((parts[index],) if structure is None else parts[index])
        return flat

    def _without_gradient(self, direct: bool, parts: tuple) -> Any:
        """Run it directly, or by torch's dispatcher below autograd."""
        if direct:
            return self._run(*parts)
        with _below_autograd():
            return self.overload(*self.flat(*parts))

    def flat(self, *parts: Any) -> list:
        """The flat arguments of the operation that the parts come to."""
        flat: list[Any] = []
        for part, (structure, _, _) in zip(parts, self._places, strict=True):
            if structure is None:
                flat.append(part)
            elif structure is Draw:
                flat.extend((*part.words(), part.sample_ids))
            else:
                flat.extend(part)
        return flat

    def _together(self, flat: tuple) -> list:
        """The parts that the flat arguments of the operation make up."""
        make = tuple.__new__  # that of a structure takes several times as long
        return [
            flat[start] if structure is None else make(structure, flat[start:stop])
            for structure, start, stop in self._places
        ]

    def _gradients(self, by_part: Mapping[str, Any], of: Iterable[int]) -> tuple:
        """Gradients in the order of the flat arguments, of the parts with these numbers."""
        flat: list[Tensor | None] = []
        for index in of:
            structure, start, stop = self._places[index]
            gradient = by_part.get(self.parts[index])
            if gradient is None:
                flat.extend([None] * (stop - start))
            else:
                flat.extend((gradient,) if structure is None else gradient)
        return tuple(flat)

    def _functions(
        self, save: Callable | None, backward: Callable | None
    ) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
        """The operation for plain autograd, and in the form that ``torch.func`` takes.

        ``vmap`` runs it in a loop. Elsewhere both are used since they are faster than what
        ``torch.library`` makes of the same parts, which looks at each argument of the schema as
        often as there are arguments: 0.1 to 0.6 ms for the masking step.
        """

        def keep(ctx, parts: Sequence, output: Any, direct: bool) -> None:
            ctx.direct = direct
            ctx.set_materialize_grads(False)
            if backward is None:
                ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
            if save is not None:
                save(ctx, parts, output)

        by_part = backward or (lambda ctx, *gradients: {})

        def flat_backward(ctx, *gradients: Tensor | None) -> tuple:
            return self._gradients(by_part(ctx, *gradients), range(len(self.parts)))

        def forward(*flat: Any) -> Any:
            return self.overload(*flat)

        def setup_context(ctx, inputs: tuple, output: Any) -> None:
            keep(ctx, self._together(inputs), output, False)

        # autograd is given the tensors of the differentiable parts, beside all parts as one
        # argument. With a setup_context of its own torch looks up the signature of forward in each
        # call.
        def plain_forward(ctx, direct: bool, parts: tuple, *_: Tensor | None) -> Any:
            results = self._without_gradient(direct, parts)
            keep(ctx, parts, results, direct)
            return results

        def plain_backward(ctx, *gradients: Tensor | None) -> tuple:
            return None, None, *self._gradients(by_part(ctx, *gradients), self._differentiable)

        plain = {
            "forward": staticmethod(plain_forward),
            "backward": staticmethod(plain_backward),
            "jvp": staticmethod(no_forward_mode),
        }
        transformed = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(flat_backward),
            "jvp": staticmethod(no_forward_mode),
            "generate_vmap_rule": True,
        }
        base = (torch.autograd.Function,)
        return type(self.name, base, plain), type(self.name, base, transformed)


def _refuse_some_on_meta(names: list[str], flat: tuple) -> None:
    """torch takes the function of shapes where any argument is on "meta"; the results of another
    device would be memory that is never written. The words of a draw may stay on the CPU.
    """
    tensors = [(name, x) for name, x in zip(names, flat, strict=True) if isinstance(x, Tensor)]
    on_meta = [name for name, x in tensors if x.is_meta]
    if not on_meta:
        return
    for name, x in tensors:
        if not x.is_meta and (x.dim() > 0 or x.is_floating_point()):
            raise ValueError(
                f"{on_meta[0]}: expected on {x.device}, as {name} is; got a tensor on meta"
            )


def no_second_derivative(name: str) -> Callable:
    """The gradient of an operation that is itself a gradient."""

    def backward(ctx, *gradients: Tensor | None) -> dict:
        raise RuntimeError(f"{name}: there is no second derivative")

    return backward


def _is_structure(kind: Any) -> bool:
    return hasattr(kind, "_fields")


def _holds_tensors(kind: Any) -> bool:
    """Whether a part of this kind is or has a tensor, be it optional."""
    kinds = get_type_hints(kind).values() if _is_structure(kind) else (kind,)
    return any(kind in (Tensor, Tensor | None, Tensor | int) for kind in kinds)


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
    # torch.func has no public name for it; torch.autograd.Function.apply asks the same each time.
    return torch._C._are_functorch_transforms_active()


def refuse_compiled_transforms() -> None:
    """Raise where ``torch.compile`` traces a transform of ``torch.func``, whose gradients would be
    lost without an error.
    """
    if transforming() and torch.compiler.is_compiling():
        raise RuntimeError(
            "mam_kernels: a transform of torch.func cannot be compiled; call it outside of "
            "torch.compile"
        )
