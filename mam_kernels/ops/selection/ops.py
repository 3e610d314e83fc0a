"""Sampling without replacement as an operation: schema, shapes, dispatch.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..._core import checks
from ..._core.call import Choice, Draw
from ..._core.dispatch import implementation, named
from ..._core.registration import Operation
from . import arguments


def _run(
    weights: Tensor, num_samples: Tensor, valid: Tensor | None, draw: Draw, backend: str
) -> Tensor:
    run = implementation("sample_without_replacement", backend, weights)
    if weights.numel() == 0:
        arguments.select(weights, num_samples, valid, draw)
        return torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    return run(weights, num_samples, valid, draw)


def _fake(weights: Tensor, *_: object) -> Tensor:
    return weights.new_empty(weights.shape, dtype=torch.bool)


select = Operation(
    "sample_without_replacement",
    {
        "weights": Tensor,
        "num_samples": Tensor,
        "valid": Tensor | None,
        "draw": Draw,
        "backend": str,
    },
    {"mask": Tensor},
    _run,
    _fake,
)


def completed(
    choice: Choice,
    valid: Tensor | None,
    num_latents: int,
    shape: tuple[int, int],
    draw: Draw,
    backend: str,
    like: Tensor,
) -> Choice:
    """The choice with ``k`` of every row and the latents ``R``: the given ones, else ``k`` by the
    ratio and drawn latents. ``shape`` is (B, L); ``like`` gives type and device.
    """
    num_masked, latents = choice.num_masked, choice.latents
    if num_masked is None:
        maskable = valid if choice.maskable is None else choice.maskable
        num_masked = checks.count_masked(choice.mask_ratio, maskable, *shape, like.device)
    if latents is None:
        run = implementation("draw_latents", backend, like)
        latents = run(num_latents, choice.num_drawn, draw, like.device)
    return choice._replace(num_masked=num_masked, latents=latents)


def sample_without_replacement(
    weights: Tensor,
    num_samples: int | Tensor,
    *,
    valid: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw distinct positions of each row, one after the other, each time in proportion to the
    weights that are left.

    This is what ``torch.multinomial(weights, k, replacement=False)`` draws, as a mask rather than
    as indices, with ``k`` for each row, and never a position of weight zero. It runs as an
    exponential race: position ``l`` gets the key ``E_l / w_l`` with ``E_l`` standard exponential,
    and the ``k`` smallest keys are taken (Efraimidis and Spirakis, 2006). Only ratios of weights
    matter.

    Args:
        weights: (B, L), float32, float16, bfloat16 or float64; zero, negative, NaN and infinite
            ones are never drawn. Positive
            ones however small are, whatever ``torch.set_flush_denormal`` says (float64: from
            2.2e-308 on).
        num_samples: ``k``, an int or integers (B,), in [0, L]. A row with fewer drawable positions
            gives all of them.
        valid: (B, L) bool, True where a position may be drawn; None: everywhere.
        seed: an int in [-2**63, 2**64), or an integer tensor of one element, on the CPU or on the
            device. None takes one from torch's generator of the device, so ``torch.manual_seed``
            governs it, without a synchronisation.
        step: an int in [0, 2**32), or a tensor likewise: another step, another draw.
        sample_ids: (B,) integers, 32 bits: what the draw of a row depends on besides seed and step.
            None: the index of the row.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Returns:
        (B, L) bool, True where drawn.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    checks.require_floating("weights", weights, "(B, L)", 2)
    rows, positions = weights.shape
    valid = checks.require_flags("valid", valid, rows, positions, weights.device)
    counts = checks.row_counts("num_samples", num_samples, rows, positions, weights.device)
    checks.require_weights(weights, valid)
    name = named(backend)
    draw = checks.draw_source(seed, step, sample_ids, rows, weights.device)
    return select(weights, counts, valid, draw, name)
