"""The weights of this package's modules in files."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..injection import ContextInjection
from ..masking import MultinomialAttentionMasking
from .files import WeightsError, fill, one_line, read, write

_Module = TypeVar("_Module", bound=nn.Module)

# Arguments of a module: its sizes, in which a module and a file must agree for the file to be read
# into the module, and its settings. The backend is left out, because it depends on the machine.
SIZES = {
    MultinomialAttentionMasking: ("input_dim", "latent_dim", "num_latents", "num_heads"),
    ContextInjection: ("latent_dim", "embed_dim", "scheme", "decoder_dim"),
}
SETTINGS = {
    MultinomialAttentionMasking: (
        "mask_ratio",
        "latent_fraction",
        "temperature",
        "context_from",
        "eps",
    ),
    ContextInjection: (),
}


def save(module: MultinomialAttentionMasking | ContextInjection, path: str | os.PathLike) -> None:
    """Write a module's weights and configuration to a safetensors file, which appears whole or not
    at all.

    Args:
        module: on any device, of any floating-point type.
        path: of the file; what is there is replaced, and missing folders are made.

    Raises:
        TypeError: another module, or one of a class derived from these two, which may compute
            something else.
        ModuleNotFoundError: safetensors is not installed.
    """
    if type(module) not in SIZES:
        raise TypeError(
            f"module: expected {' or '.join(kind.__name__ for kind in SIZES)};"
            f" got {type(module).__name__}"
        )
    names = SIZES[type(module)] + SETTINGS[type(module)]
    write(
        path,
        type(module).__name__,
        {name: getattr(module, name) for name in names},
        module.state_dict(),
    )


def load(
    path: str | os.PathLike, *, into: MultinomialAttentionMasking | ContextInjection | None = None
) -> MultinomialAttentionMasking | ContextInjection:
    """Read what `save` wrote.

    Args:
        path: of the file.
        into: a module of the same sizes that takes the weights and keeps its settings, device and
            type. None: a new module with the settings and the type of the file, on the CPU.

    Returns:
        The new module, or ``into``. Torch's random generator is left as it was.

    Raises:
        WeightsError: the file is not there, damaged or cut short, holds something else, or is of
            other sizes than ``into``.
        ModuleNotFoundError: safetensors is not installed.
    """
    contents = read(path, *(kind.__name__ for kind in SIZES))
    kind = next(kind for kind in SIZES if kind.__name__ == contents.kind)
    if into is None:
        module: MultinomialAttentionMasking | ContextInjection
        module = empty(kind, contents.arguments, str(path))
        fill(module, contents.tensors, str(path), assign=True)
        return module
    if type(into) is not kind:
        raise WeightsError(
            f"{path}: expected a {type(into).__name__}, as the module is; got a {contents.kind}"
        )
    for name in SIZES[kind]:
        if contents.arguments.get(name) != getattr(into, name):
            raise WeightsError(
                f"{path}: expected {name} = {getattr(into, name)!r}, as the module has;"
                f" got {name} = {contents.arguments.get(name)!r}"
            )
    fill(into, contents.tensors, str(path))
    return into


def empty(kind: type[_Module], arguments: Mapping[str, Any], where: str | None = None) -> _Module:
    """A module without memory, to be filled: no random number is drawn for it.

    Where a file gives the arguments, errors name the file.
    """
    try:
        with torch.device("meta"):
            return kind(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if where is None:
            raise
        raise WeightsError(
            f"{where}: expected the arguments of {kind.__name__} in its header;"
            f" got {one_line(error)}"
        ) from error
