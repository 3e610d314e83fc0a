"""Forward-mode differentiation, which every operation refuses."""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Tangents(torch.autograd.Function):
    """Sees whether one of its arguments carries a tangent: only then is ``jvp`` called."""

    @staticmethod
    def forward(*_: Tensor) -> Tensor:
        return torch.empty(0)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx, *_: Tensor | None) -> None:
        no_forward_mode()


def in_forward_mode() -> bool:
    """Whether a tensor may carry a tangent."""
    # The name is private to torch; without it every call looks at its tensors.
    return getattr(forward_ad, "_current_level", 0) >= 0


def refuse_forward_mode(arguments: Iterable[object]) -> None:
    """Raise where a tensor carries a tangent. No operation here computes with it: it would be lost
    without an error.
    """
    if not in_forward_mode():
        return
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if not torch.compiler.is_compiling():
        _Tangents.apply(*tensors)
    elif any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        no_forward_mode()


def no_forward_mode(*_: object) -> NoReturn:
    """Refuse forward-mode differentiation."""
    raise NotImplementedError(
        "forward-mode derivatives (jvp, jacfwd, hessian) are not computed; use reverse mode "
        "(grad, vjp, jacrev)"
    )
