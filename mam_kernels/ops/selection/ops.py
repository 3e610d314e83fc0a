"""Sampling without replacement as an operation: schema, shapes, dispatch.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..._core import checks
from ..._core.call import Draw, Weighting
from ..._core.dispatch import implementation, requested
from ..._core.registration import define, unobserved


def _run_select(
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    sample_ids: Tensor | None,
    seed: Tensor | int,
    step: Tensor | int,
    eps: float,
    inverse_temperature: float,
    backend: str,
) -> Tensor:
    run = implementation("sample_without_replacement", backend, weights)
    if weights.numel() == 0:
        return torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    draw, weighting = Draw(seed, step, sample_ids), Weighting(eps, inverse_temperature)
    return run(weights, num_samples, valid, draw, weighting)


def _fake_select(weights: Tensor, *_: object) -> Tensor:
    return torch.empty(weights.shape, dtype=torch.bool, device=weights.device)


define(
    "sample_without_replacement(Tensor weights, Tensor num_samples, Tensor? valid, Tensor? sample_ids, Tensor seed, Tensor step, "
    "float eps, float inverse_temperature, str backend) -> Tensor",
    _run_select,
    _fake_select,
)


def _run_draw_latents(
    like: Tensor, num_latents: int, size: int, seed: Tensor, step: Tensor, backend: str
) -> Tensor:
    run = implementation("draw_latents", backend, like)
    return run(num_latents, size, Draw(seed, step, None), like.device)


def _fake_draw_latents(
    like: Tensor, num_latents: int, size: int, seed: Tensor, step: Tensor, backend: str
) -> Tensor:
    return torch.empty(size, dtype=torch.int64, device=like.device)


define(
    "draw_latents(Tensor like, SymInt num_latents, SymInt size, Tensor seed, Tensor step, str backend) -> Tensor",
    _run_draw_latents,
    _fake_draw_latents,
)


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
            ones are never drawn. One below the smallest normal float32, 1.2e-38, counts as zero
            (2.2e-308 for float64), whatever ``torch.set_flush_denormal`` says.
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
    name = requested(backend)
    draw = checks.draw_source(
        seed, step, sample_ids, rows, weights.device, ints=not torch.compiler.is_compiling()
    )
    tensors = (weights.detach(), counts, valid, draw.sample_ids)
    if unobserved(tensors):
        return _run_select(*tensors, draw.seed, draw.step, 0.0, 1.0, name)
    words = checks.as_tensor(draw.seed), checks.as_tensor(draw.step)
    return torch.ops.mam_kernels.sample_without_replacement(*tensors, *words, 0.0, 1.0, name)


def draw_latents(
    like: Tensor, num_latents: int, size: int, seed: Tensor, step: Tensor, backend: str
) -> Tensor:
    """``size`` of ``num_latents`` indices, uniformly without replacement, ascending, on the device
    of ``like``; int64 (size,).
    """
    return torch.ops.mam_kernels.draw_latents(like.detach(), num_latents, size, seed, step, backend)
