"""Registering an operation with PyTorch: a schema, one implementation that dispatches to the backends, and shapes for tracing.

``torch.library.define`` and ``impl`` rather than ``custom_op``: the same guarantees (compile, export, opcheck) at about half the host cost.
"""

from collections.abc import Callable

import torch

NAMESPACE = "mam_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, run: Callable, fake: Callable, backward: Callable | None = None, setup_context: Callable | None = None) -> None:
    """Define ``mam_kernels::<schema>``: ``run`` for real tensors, ``fake`` for shapes, and optionally its gradient."""
    name = f"{NAMESPACE}::{schema.split('(', 1)[0]}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _library.impl(schema.split("(", 1)[0], run, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)
