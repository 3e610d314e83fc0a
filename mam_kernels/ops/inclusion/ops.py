"""Inclusion probabilities as an operation: schema, shapes, gradient, dispatch.

See README.md beside this file.
"""

import torch
from torch import Tensor

from ..._core import checks
from ..._core.dispatch import chosen, implementation, named
from ..._core.registration import Operation, no_second_derivative
from . import arguments


def _run(
    weights: Tensor, num_samples: Tensor, valid: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    run = implementation("inclusion_probabilities", backend, weights)
    if weights.numel() == 0:
        arguments.probabilities(weights, num_samples, valid)
        probability, time = _fake(weights)
        return probability, time.zero_()
    return run(weights, num_samples, valid)


def _fake(weights: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(weights.dtype, torch.float32)
    probability = weights.new_empty(weights.shape, dtype=dtype)
    return probability, weights.new_empty(weights.shape[:1], dtype=torch.float64)


def _run_backward(
    grad: Tensor, weights: Tensor, probability: Tensor, time: Tensor, backend: str
) -> Tensor:
    if weights.numel() == 0:
        arguments.backward(grad, weights, probability, time)
        return weights.new_zeros(weights.shape)
    run = implementation("inclusion_probabilities_backward", backend, weights)
    return run(grad, weights, probability, time)


def _fake_backward(grad: Tensor, weights: Tensor, *_: object) -> Tensor:
    return weights.new_empty(weights.shape)


probabilities_backward = Operation(
    "inclusion_probabilities_backward",
    {
        "grad": Tensor,
        "weights": Tensor,
        "probability": Tensor,
        "time": Tensor,
        "backend": str,
    },
    {"grad_weights": Tensor},
    _run_backward,
    _fake_backward,
    backward=no_second_derivative("inclusion_probabilities"),
)


def _save(ctx, parts: list, results: tuple[Tensor, Tensor]) -> None:
    weights, _, _, backend = parts
    probability, time = results
    ctx.mark_non_differentiable(time)
    ctx.save_for_backward(weights, probability, time)
    ctx.backend = chosen("inclusion_probabilities", backend, weights)


def _backward(ctx, grad: Tensor | None, _time: Tensor | None) -> dict[str, Tensor]:
    if grad is None:
        return {}
    return {
        "weights": probabilities_backward.in_backward(ctx, grad, *ctx.saved_tensors, ctx.backend)
    }


probabilities = Operation(
    "inclusion_probabilities",
    {"weights": Tensor, "num_samples": Tensor, "valid": Tensor | None, "backend": str},
    {"probability": Tensor, "time": Tensor},
    _run,
    _fake,
    save=_save,
    backward=_backward,
    differentiable=("weights",),
)


def inclusion_probabilities(
    weights: Tensor,
    num_samples: int | Tensor,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """How likely ``sample_without_replacement`` draws each position: ``pi = 1 - exp(-w t)``, with
    the ``t`` for which they sum to ``num_samples``.

    These are the probabilities of the race that stops at the time ``t``. Those of the race that
    stops after exactly ``k`` arrivals differ by O(1/k). The gradient costs one more pass over the
    weights, whatever ``k`` is.

    Args:
        weights: (B, L), float32, float16, bfloat16 or float64; zero, negative, NaN and infinite
            ones are never drawn. Differentiable, once.
        num_samples: ``k``, an int or integers (B,), in [0, L]. A row with fewer drawable positions
            gives all of them.
        valid: (B, L) bool, True where a position may be drawn; None: everywhere.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Returns:
        (B, L), float32 (float64 for float64 weights): they sum to ``k``, or to the number of
        drawable positions where that is smaller; 0 where a position is never drawn.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    checks.require_floating("weights", weights, "(B, L)", 2)
    rows, positions = weights.shape
    valid = checks.require_flags("valid", valid, rows, positions, weights.device)
    counts = checks.row_counts("num_samples", num_samples, rows, positions, weights.device)
    checks.require_weights(weights, valid)
    probability, _ = probabilities(weights, counts, valid, named(backend))
    return probability
