"""Checkpoints of the published code, whose masking module is made of public torch parts under names
of its own.
"""

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.describing import describe
from ..injection import ContextInjection
from ..masking import MultinomialAttentionMasking
from .files import (
    WeightsError,
    fill,
    is_safetensors,
    listed,
    read_checkpoint,
    read_safetensors,
    require_file,
)
from .modules import empty

# Where a checkpoint may keep its state dict; Lightning's is the first.
NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
)
PARTS = ("latents", "input_proj", "cross_attention")
LATENTS = ("", ".weight")  # a parameter, or an embedding's
PROJECTIONS = ("q", "k", "v")
# The published adapters of the context; the last two are those of the scheme "separate".
ADAPTERS = ("output_proj", "output_proj_enc", "output_proj_dec")
# Modules beside the masking in a whole published checkpoint, of pretraining and of the classifier.
# A name of these is no part of the masking where all those of a model are there.
MODELS = (
    ("token_emb", "pos_emb", "encoder", "decoder", "decoder_embed", "norm", "to_final"),
    ("token_emb", "pos_emb", "encoder", "fc1", "norm"),
)


def from_published(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    num_heads: int,
    prefix: str | None = None,
    names: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    **options: Any,
) -> MultinomialAttentionMasking:
    """A masking module with weights that were trained with the published code, or with any module
    of the same public torch parts.

    Those parts are: trainable ``latents`` (N, Dz) or (1, N, Dz), a ``torch.nn.Linear`` from a value
    or an embedding to Dz (``input_proj``), and a ``torch.nn.MultiheadAttention``
    (``cross_attention``). Its projections may be in one tensor, in three (``q_proj_weight``, ...),
    or three modules (``q_proj.weight``, ``q_proj.bias``, ...); biases that are not there are 0. The
    sizes are read off the tensors.

    A whole published checkpoint is taken as it is: its encoder, decoder and embeddings are known to
    be no part of the masking, and so are its adapters, which `injection_from_published` reads.

    Args:
        source: a file written by ``torch.save`` or safetensors, a state dict, or a checkpoint that
            holds one (Lightning's, for example).
        num_heads: ``H`` of the latents' attention, which no tensor tells; 8 as published.
        prefix: what the names begin with, such as "model.mam."; None: found.
        names: other names of the parts, such as ``{"cross_attention": "attn"}``.
        ignore: patterns, as of a shell, of names after the prefix that are something else, such as
            "adapter.*". Every other tensor under the prefix must be known, for what is not known
            could be part of the computation.
        **options: the other arguments of `MultinomialAttentionMasking`; sizes given here are held
            against the file.

    Returns:
        The module, of the type of the latents, on the CPU.

    Raises:
        WeightsError: the source cannot be read, or does not hold exactly these parts in fitting
            shapes.
        TypeError, ValueError: an argument is not as above.
    """
    tensors, where = _state_dict(source)
    called = {part: part for part in PARTS} | dict(names or {})
    if unknown := set(called) - set(PARTS):
        raise ValueError(
            f"names: expected names of {', '.join(PARTS)}; got one of {listed(sorted(unknown))}"
        )
    start = _found_prefix(tensors, called, where) if prefix is None else prefix
    mine = _under(tensors, start)
    beside = _beside(mine)
    mine = {
        name: tensor
        for name, tensor in mine.items()
        if name.partition(".")[0] not in beside
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    }
    reader = _Parts(mine, called, f"{where} under {start}" if start else where)
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in reader.state().items()}

    num_latents, latent_dim = state["latents"].shape
    width = state["input_proj.weight"].shape[1]
    sizes = {
        "input_dim": None if width == 1 else width,
        "latent_dim": latent_dim,
        "num_latents": num_latents,
    }
    for name, size in sizes.items():
        if name in options and options[name] != size:
            raise WeightsError(
                f"{where}: expected {name} = {options[name]!r}, as given; got {name} = {size!r}"
            )
    module = empty(MultinomialAttentionMasking, options | sizes | {"num_heads": num_heads})
    fill(
        module,
        {name: tensor.to(state["latents"].dtype) for name, tensor in state.items()},
        where,
        assign=True,
    )
    return module


def injection_from_published(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    scheme: str | None = None,
    prefix: str | None = None,
) -> ContextInjection:
    """The adapters of a published checkpoint: ``output_proj``, or ``output_proj_enc`` and
    ``output_proj_dec``.

    Args:
        source: as in `from_published`.
        scheme: of the injection, which one adapter does not tell: "encoder", "decoder" or "both".
            None: "separate", for two adapters.
        prefix: what the names begin with; None: found.

    Returns:
        The injection, of the type of the adapters, on the CPU.

    Raises:
        WeightsError: the source cannot be read, or does not hold the adapters of the scheme.
        ValueError: no such scheme.
    """
    tensors, where = _state_dict(source)
    start = _adapters_prefix(tensors, where) if prefix is None else prefix
    mine = _under(tensors, start)
    there = [name for name in ADAPTERS if f"{name}.weight" in mine]
    if there not in ([ADAPTERS[0]], list(ADAPTERS[1:])):
        raise WeightsError(
            f"{where}: expected {ADAPTERS[0]}, or {' and '.join(ADAPTERS[1:])}; got {listed(there)}"
        )
    separate = len(there) > 1
    if scheme is None and not separate:
        raise WeightsError(
            f"{where}: expected a scheme, which one adapter does not tell; give encoder, decoder or"
            " both"
        )
    if scheme is not None and (scheme == "separate") != separate:
        raise WeightsError(
            f"{where}: expected the adapters of scheme {scheme!r}; got {listed(there)}"
        )
    weights = [mine[f"{name}.weight"] for name in there]
    if any(weight.dim() != 2 for weight in weights):
        raise WeightsError(
            f"{where}: expected adapters of shape (De, Dz); got {describe(weights[0])}"
        )
    arguments = {
        "latent_dim": weights[0].shape[1],
        "embed_dim": weights[0].shape[0],
        "scheme": scheme or "separate",
        "decoder_dim": weights[-1].shape[0],
    }
    injection = empty(ContextInjection, arguments)
    names = ("encoder_adapter", "decoder_adapter") if separate else ("adapter",)
    state = {
        f"{own}.{kind}": mine[f"{name}.{kind}"].detach().to("cpu", copy=True)
        for own, name in zip(names, there, strict=True)
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in mine
    }
    fill(injection, state, where, assign=True)
    return injection


class _Parts:
    """The parts of a masking module among the tensors under its prefix."""

    def __init__(self, tensors: dict[str, Tensor], called: Mapping[str, str], where: str) -> None:
        self.tensors, self.called, self.where = tensors, called, where
        self.used: set[str] = set()

    def state(self) -> dict[str, Tensor]:
        """The state dict of `MultinomialAttentionMasking`."""
        latents = self._required("latents", *LATENTS)
        if latents.dim() == 3 and len(latents) == 1:
            latents = latents[0]
        if latents.dim() != 2 or not latents.is_floating_point():
            raise WeightsError(
                f"{self.where}: expected floating-point latents of shape (N, Dz) or (1, N, Dz); "
                f"got {describe(latents)}"
            )
        width = latents.shape[1]
        weight = self._required("input_proj", ".weight")
        if weight.dim() != 2:
            raise WeightsError(
                f"{self.where}: expected input_proj.weight of shape (Dz, D); got {describe(weight)}"
            )
        zeros = latents.new_zeros(width)
        state = {
            "latents": latents,
            "input_proj.weight": weight,
            "input_proj.bias": self._optional("input_proj", ".bias", zeros),
            **{
                f"cross_attention.{name}": tensor
                for name, tensor in self._projections(zeros).items()
            },
            "cross_attention.out_proj.weight": self._required(
                "cross_attention", ".out_proj.weight"
            ),
            "cross_attention.out_proj.bias": self._optional(
                "cross_attention", ".out_proj.bias", zeros
            ),
        }
        if rest := [name for name in self.tensors if name not in self.used]:
            raise WeightsError(
                f"{self.where}: expected latents, input_proj and cross_attention alone; "
                f"got {listed(rest)} too; what is no part of the masking is to be named in ignore"
            )
        return state

    def _projections(self, zeros: Tensor) -> dict[str, Tensor]:
        whole = self._take("cross_attention", ".in_proj_weight")
        if whole is not None:
            return {
                "in_proj_weight": whole,
                "in_proj_bias": self._optional("cross_attention", ".in_proj_bias", zeros.repeat(3)),
            }
        weights = [
            self._required("cross_attention", f".{name}_proj_weight", f".{name}_proj.weight")
            for name in PROJECTIONS
        ]
        if any(weight.shape != (len(zeros), len(zeros)) for weight in weights):
            raise WeightsError(
                f"{self.where}: expected projections of shape {(len(zeros), len(zeros))};"
                f" got {', '.join(str(tuple(weight.shape)) for weight in weights)}"
                " for query, key and value"
            )
        bias = self._take("cross_attention", ".in_proj_bias")
        if bias is None:
            bias = torch.cat(
                [
                    self._optional("cross_attention", f".{name}_proj.bias", zeros)
                    for name in PROJECTIONS
                ]
            )
        return {"in_proj_weight": torch.cat(weights), "in_proj_bias": bias}

    def _take(self, part: str, *endings: str) -> Tensor | None:
        for ending in endings:
            name = self.called[part] + ending
            if name in self.tensors:
                self.used.add(name)
                return self.tensors[name]
        return None

    def _optional(self, part: str, ending: str, otherwise: Tensor) -> Tensor:
        found = self._take(part, ending)
        return otherwise if found is None else found

    def _required(self, part: str, *endings: str) -> Tensor:
        found = self._take(part, *endings)
        if found is None:
            raise WeightsError(
                f"{self.where}: expected {self.called[part]}{endings[0]}; "
                f"got {listed(self.tensors)}"
            )
        return found


def _state_dict(source: str | os.PathLike | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors by name, and what to call the source in errors."""
    if isinstance(source, Mapping):
        contents, where = source, "source"
    elif isinstance(source, (str, os.PathLike)):
        path, where = Path(source), str(source)
        require_file(path)
        with path.open("rb") as file:
            head = file.read(9)
        contents = read_safetensors(path)[1] if is_safetensors(head) else read_checkpoint(path)
    else:
        raise TypeError(f"source: expected a path or a state dict; got {type(source).__name__}")
    if not isinstance(contents, Mapping):
        raise WeightsError(
            f"{where}: expected a state dict or a checkpoint that holds one; "
            f"got {describe(contents)[:80]}"
        )
    inner = next(
        (contents[name] for name in NESTED if isinstance(contents.get(name), Mapping)), contents
    )
    tensors = {
        name: value
        for name, value in inner.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError(f"{where}: expected tensors by name; got {listed(map(str, inner))}")
    return tensors, where


def _under(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def _beside(tensors: Mapping[str, Tensor]) -> set[str]:
    """The parts of a published model that are not its masking."""
    parts = {name.partition(".")[0] for name in tensors}
    whole = [set(model) for model in MODELS if parts.issuperset(model)]
    return set(ADAPTERS).union(*whole)


def _adapters_prefix(tensors: Mapping[str, Tensor], where: str) -> str:
    """The prefix of the names of the adapters."""
    endings = tuple(f"{name}.weight" for name in ADAPTERS)
    starts = sorted(
        {
            name.removesuffix(ending)
            for name in tensors
            for ending in endings
            if f".{name}".endswith(f".{ending}")
        }
    )
    if not starts:
        raise WeightsError(
            f"{where}: expected adapters, such as {endings[0]}; got {listed(tensors)}"
        )
    if len(starts) > 1:
        raise WeightsError(
            f"{where}: expected the adapters of one model; got those of {len(starts)}; give one of"
            f" these as prefix: {listed(map(repr, starts))}"
        )
    return starts[0]


def _found_prefix(tensors: Mapping[str, Tensor], called: Mapping[str, str], where: str) -> str:
    """The prefix of the names of the one attention that has latents beside it."""
    endings = tuple(
        f"{called['cross_attention']}.{ending}"
        for ending in ("in_proj_weight", "q_proj_weight", "q_proj.weight")
    )
    starts = {
        name.removesuffix(ending)
        for name in tensors
        for ending in endings
        if f".{name}".endswith(f".{ending}")
    }
    if not starts:
        raise WeightsError(
            f"{where}: expected tensors of {called['cross_attention']}, such as {endings[0]}; "
            f"got {listed(tensors)}"
        )
    latents = tuple(called["latents"] + ending for ending in LATENTS)
    found = sorted(
        start for start in starts if any(start + name in tensors for name in latents)
    ) or sorted(starts)
    if len(found) > 1:
        raise WeightsError(
            f"{where}: expected one masking module; got {len(found)}; give one of these as "
            f"prefix: {listed(map(repr, found))}"
        )
    return found[0]
