"""What the launchers of the Triton kernels launch for each target, over the types, widths and
options that lead to different code; nothing runs, and no GPU is needed.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.machine_code.launches import Variant, recording


class Target(NamedTuple):
    """A GPU to compile for, the shared memory that one program may have there, and whether the
    tests compile each type, stride and flag for it, or each tile once.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    every_trait: bool


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, True),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, True),
    "sm_100": Target("cuda", 100, 32, 227 * 1024, False),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, False),
}


LAUNCHES = {
    "selection": ["select_kernel"],
    "latents": ["draw_latents_kernel"],
    "inclusion probabilities": ["probabilities_kernel"],
    "inclusion probabilities, backward": ["inclusion_gradient_kernel"],
    "moments": ["value_kernel"],
    "masking step": ["value_kernel"],
    "value step": ["project_kernel", "value_kernel", "finish_kernel"],
    "value step, visible": ["project_kernel", "value_kernel", "value_kernel", "finish_kernel"],
    "value step, backward": [
        "rows_gradient_kernel",
        "sum_parts_kernel",
        "parameters_gradient_kernel",
    ],
    "attention, many cells": ["forward_kernel"],
    "gradients, many cells": ["statistics_kernel", "gradient_kernel"],
    "importance, many cells": ["importance_kernel"],
    "attention, one cell": ["forward_kernel", "merge_kernel"],
    "gradients, one cell": ["statistics_kernel", "gradient_kernel"],
    "gradients, float32": [
        "statistics_kernel",
        "key_value_gradient_kernel",
        "query_gradient_kernel",
    ],
    "importance, one cell": ["importance_kernel"],
    "token step": [
        "prepare_kernel",
        "draw_latents_kernel",
        "project_and_attend_kernel",
        "importance_kernel",
        "select_kernel",
        "context_kernel",
    ],
    "token step, padded, visible": [
        "prepare_kernel",
        "attended_kernel",
        "project_and_attend_kernel",
        "importance_kernel",
        "select_kernel",
        "attended_kernel",
        "project_and_attend_kernel",
        "context_kernel",
    ],
    "token step, backward": [
        "prepare_kernel",
        "context_kernel",
        "output_gradient_kernel",
        "gradient_kernel",
    ],
}
"""What each operation launches.

One more kernel in a call is some 5 us more of host time and a pass more over memory.
"""


def backend_module(folder: str, name: str = "triton") -> object:
    return importlib.import_module(f"mam_kernels.ops.{folder}.{name}")


def call_selection(dtype: object, flags: bool, positions: int = 20000) -> None:
    """Selection of one type, with everything optional there or absent."""
    import torch

    from mam_kernels._core.call import Draw, Weighting

    selection = backend_module("selection")
    word = torch.tensor(5)
    ids, valid = (
        (torch.arange(2), torch.ones(2, positions, dtype=torch.bool)) if flags else (None, None)
    )
    selection.select(
        torch.ones(2, positions, dtype=dtype),
        torch.ones(2, dtype=torch.int32),
        valid,
        Draw(word, word, ids),
        Weighting(0.0, 0.5 if flags else 1.0),
    )
    selection.draw_latents(128, 38, Draw(word, word, None), torch.device("cpu"))


def call_inclusion(dtype: object, flags: bool) -> None:
    """Inclusion probabilities of one type, and their gradient."""
    import torch

    inclusion = backend_module("inclusion")
    weights = torch.ones(2, 20000, dtype=dtype)
    valid = torch.ones(2, 20000, dtype=torch.bool) if flags else None
    found, time = inclusion.probabilities(weights, torch.ones(2, dtype=torch.int32), valid)
    inclusion.backward(found, weights, found, time)


def call_value(dtype: object, csr: object, flags: bool) -> None:
    """The value path: moments alone, and the masking step; `csr` is the type of the indices, or
    None for dense values.
    """
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Weighting

    value = backend_module("value_attention")
    word, slope, positions = torch.tensor(5), torch.ones(128, 8), 20000
    ids, valid = (
        (torch.arange(2), torch.ones(2, positions, dtype=torch.bool)) if flags else (None, None)
    )
    counts, latents = torch.ones(2, dtype=torch.int32), torch.arange(38)
    dense = (torch.ones(2, positions, dtype=dtype), None, None)
    sparse = (
        torch.ones(8, dtype=dtype),
        torch.ones(3, dtype=csr or torch.int64),
        torch.ones(8, dtype=csr or torch.int64),
    )
    cells = Cells(*(dense if csr is None else sparse), valid, positions)
    value.moments(cells, slope)
    value.mask(
        cells,
        slope,
        Choice(valid, counts, 0.0, latents, 38),
        Weighting(1e-8, 0.5 if flags else 1.0),
        Draw(word, word, ids),
    )


def call_value_step(csr: bool, visible: bool = False, temperature: float = 1.0) -> None:
    """The whole step of scalar values, and where the context is of all of them its gradient."""
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting

    value, word, width = backend_module("value_attention"), torch.tensor(5), 256
    shapes = ((128, width), (3 * width, width), (3 * width,), (width, 1), (width,), (width, width))
    parameters = Parameters(*(torch.ones(x) for x in (*shapes, (width,))))
    index = torch.ones(3, dtype=torch.int64)
    cells = Cells(torch.ones(2, 20000), None, None, None, 20000)
    if csr:
        cells = Cells(torch.ones(8), index, torch.ones(8, dtype=torch.int64), None, 20000)
    choice, draw = Choice(None, None, 0.3, None, 38), Draw(word, word, None)
    weighting = Weighting(1e-8, 1 / temperature)
    *_, context, penalty, state = value.step(cells, parameters, 8, choice, weighting, draw, visible)
    if not visible:
        value.step_backward(context, penalty, parameters, 8, state, 2)


def call_token(dtype: object, width: int, flags: bool, latents: int = 128) -> None:
    """The token path, forward and backward; a small batch, whose rows are split, where `flags`."""
    import torch

    token = backend_module("latent_attention")
    batch, positions, heads = (1 if flags else 16), 2048, 8
    query = torch.ones(latents, heads, width, dtype=dtype)
    key = torch.ones(batch, positions, heads, width, dtype=dtype)
    valid = torch.ones(batch, positions, dtype=torch.bool) if flags else None
    logsumexp = torch.zeros(batch, latents, heads)
    output = torch.ones(batch, *query.shape, dtype=dtype)
    token.forward(query, key, key, valid, 0.1)
    token.logsumexp(query, key, valid, 0.1)
    token.backward(
        output, logsumexp if flags else None, query, key, key, valid, output, logsumexp, 0.1
    )
    token.importance(query, key, logsumexp, torch.arange(38), valid, 0.1)


def call_step(
    dtype: object, heads: int, padded: bool = False, visible: bool = False, backward: bool = True
) -> None:
    """The whole step on tokens, 256 wide, and its gradient."""
    import torch

    from mam_kernels._core.call import Choice, Draw, Parameters, Weighting

    token, word, width = backend_module("latent_attention"), torch.tensor(5), 256
    shapes = ((128, width), (3 * width, width), (3 * width,), (width, width), (width,))
    parameters = Parameters(*(torch.ones(x) for x in (*shapes, (width, width), (width,))))
    tokens = torch.ones(8, 256, width, dtype=dtype)
    valid = torch.ones(8, 256, dtype=torch.bool) if padded else None
    # Torch reads the queries of the chosen latents, which no kernel draws here.
    choice = Choice(None, None, 0.3, torch.arange(38) if visible else None, 38)
    parts = (choice, Weighting(1e-8, 1.0), Draw(word, word, None), visible, backward)
    *_, context, penalty, state = token.step(tokens, valid, parameters, heads, *parts)
    if backward:
        token.step_backward(context, penalty, tokens, valid, parameters, heads, state, True)


def launches(target_name: str) -> list[Variant]:
    """The launches of every launcher, over the types, widths and options that lead to different
    code.
    """
    import torch

    from mam_kernels._core import triton_launch

    target = TARGETS[target_name]
    triton_launch.is_amd = lambda: target.backend == "hip"
    if target.backend == "cuda":
        triton_launch.architecture = lambda _: target.arch
    with recording() as recorded:
        call_selection(torch.float32, flags=True)
        call_selection(torch.bfloat16, flags=False)
        call_selection(torch.float32, flags=False, positions=1999)
        call_inclusion(torch.float32, flags=True)
        call_inclusion(torch.bfloat16, flags=False)
        call_value(torch.float32, None, flags=True)
        call_value(torch.bfloat16, None, flags=False)
        call_value(torch.float32, torch.int32, flags=True)
        call_value(torch.float16, torch.int64, flags=False)
        call_value_step(csr=False, visible=True)
        call_value_step(csr=True, temperature=0.5)
        for width in (32, 64, 96, 256):
            call_token(torch.bfloat16, width, flags=True)
            call_token(torch.float32, width, flags=True)
        call_token(torch.float16, 16, flags=False)
        call_token(torch.float32, 32, flags=False, latents=40)  # no whole number of blocks
        for heads in (16, 8, 4, 2):
            call_step(torch.bfloat16, heads)
            call_step(torch.bfloat16, heads, padded=True, backward=heads == 8)
        call_step(torch.bfloat16, 8, visible=True, backward=False)
        call_step(torch.float16, 8, backward=False)
        call_step(torch.float32, 8)
    return list(dict.fromkeys(launch.variant for launch in recorded))


def launched() -> dict[str, list[str]]:
    """The kernels that each operation launches, in order: what a call costs the host and the device
    beside its arithmetic.
    """
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Weighting

    value, token, selection, inclusion = (
        backend_module(folder)
        for folder in ("value_attention", "latent_attention", "selection", "inclusion")
    )

    def of(call: Callable, *arguments: object) -> list[str]:
        with recording() as launches:
            call(*arguments)
        return [launch.variant.kernel for launch in launches]

    word, slope, chosen = torch.tensor(5), torch.ones(128, 8), torch.arange(38)
    weights, counts = torch.ones(64, 20000), torch.ones(64, dtype=torch.int32)
    cells, draw = Cells(weights, None, None, None, 20000), Draw(word, word, torch.arange(64))
    found = {
        "selection": of(selection.select, weights, counts, None, draw),
        "latents": of(selection.draw_latents, 128, 38, draw, torch.device("cpu")),
        "inclusion probabilities": of(inclusion.probabilities, weights, counts, None),
        "inclusion probabilities, backward": of(
            inclusion.backward, weights, weights, weights, torch.ones(64, dtype=torch.float64)
        ),
        "moments": of(value.moments, cells, slope),
        "masking step": of(
            value.mask,
            cells,
            slope,
            Choice(None, counts, 0.0, chosen, 38),
            Weighting(1e-8, 1.0),
            draw,
        ),
    }
    for what, batch, heads in (("many cells", 64, 8), ("one cell", 1, 1)):
        query, key = torch.ones(128, heads, 32), torch.ones(batch, 4096, heads, 32)
        query, key = query.bfloat16(), key.bfloat16()
        output, logsumexp = query.new_ones(batch, *query.shape), torch.zeros(batch, 128, heads)
        found |= {
            f"attention, {what}": of(token.forward, query, key, key, None, 0.1),
            f"gradients, {what}": of(
                token.backward, output, None, query, key, key, None, output, logsumexp, 0.1
            ),
            f"importance, {what}": of(token.importance, query, key, logsumexp, chosen, None, 0.1),
        }
    query, key, output = (x.float() for x in (query, key, output))
    found["gradients, float32"] = of(
        token.backward, output, None, query, key, key, None, output, logsumexp, 0.1
    )
    found["value step, visible"] = of(call_value_step, False, True)
    both = of(call_value_step, False)
    found["value step"] = both[:3]
    found["value step, backward"] = both[3:]
    found["token step"] = of(call_step, torch.bfloat16, 8, False, False, False)
    found["token step, padded, visible"] = of(call_step, torch.bfloat16, 8, True, True, False)
    both = of(call_step, torch.bfloat16, 8)
    found["token step, backward"] = both[len(found["token step"]) :]
    return found


def tile(variant: Variant) -> tuple:
    """The sizes that a variant is compiled for."""
    return tuple(
        (name, x)
        for name, x in variant.constants
        if name.isupper() and not isinstance(x, bool) and "STRIDE" not in name
    )


def tiles(variant: Variant) -> set[tuple]:
    """The tile of a variant as its only trait."""
    return {(variant.kernel, tile(variant))}


def traits(variant: Variant) -> set[tuple]:
    """What a variant has that others may have too: its tile, types and options together, the
    strides that it was compiled with, and the value of each flag.
    """
    sizes = tile(variant)
    constants = [(name, x) for name, x in variant.constants if name.isupper()]
    types = [kind for _, kind in variant.signature if kind in ("*fp32", "*fp16", "*bf16")]
    together = (sizes, tuple(sorted(set(types))), variant.options)
    return {(variant.kernel, x) for x in (together, *constants) if x not in sizes}


def covering(
    variants: list[Variant],
    known: frozenset[Variant] = frozenset(),
    traits: Callable[[Variant], set[tuple]] = traits,
) -> list[Variant]:
    """As few of the variants as have every trait of all of them. Of two that add the same, one that
    is ``known``, then the one with more flags, which needs more registers.
    """
    left = set().union(*map(traits, variants))
    chosen = []
    while left:
        best = max(
            variants,
            key=lambda x: (
                len(traits(x) & left),
                x in known,
                sum(value is True for _, value in x.constants),
            ),
        )
        chosen.append(best)
        left -= traits(best)
    return chosen
