"""Attention over scalar values as an operation: schema, shapes, gradient, dispatch.

See README.md beside this file.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._core import checks
from ..._core.call import Cells
from ..._core.dispatch import implementation, named
from ..._core.registration import Operation
from . import arguments


class ValueMoments(NamedTuple):
    """The values of a cell under the attention of each slope; each (B, N, H), float32 (float64 for
    float64 values).
    """

    log_partition: Tensor  # log M(a) = log sum_l exp(a x_l); -inf for a row without valid positions
    mean: Tensor  # M'/M
    variance: Tensor  # M''/M - mean**2; carries no gradient


def empty_moments(cells: Cells, slope: Tensor) -> ValueMoments:
    """The moments of cells without positions."""
    shape, dtype = (cells.rows, *slope.shape), cells.accumulated
    return ValueMoments(
        slope.new_full(shape, -torch.inf, dtype=dtype),
        slope.new_zeros(shape, dtype=dtype),
        slope.new_zeros(shape, dtype=dtype),
    )


def _run(cells: Cells, slope: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    run = implementation("value_attention", backend, cells.values)
    if _is_empty(cells, slope):
        arguments.moments(cells, slope)
        log_partition, mean, variance = empty_moments(cells, slope)
        return log_partition, mean, variance
    return run(cells, slope)


def _is_empty(cells: Cells, slope: Tensor) -> bool:
    """Whether there is nothing to compute; parts without rows to count are left to the checks."""
    counted = cells.values if cells.crow is None else cells.crow
    return counted.dim() > 0 and cells.rows * cells.num_positions * slope.numel() == 0


def _fake(cells: Cells, slope: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = (cells.rows, *slope.shape)
    log_partition = slope.new_empty(shape, dtype=cells.accumulated)
    return log_partition, torch.empty_like(log_partition), torch.empty_like(log_partition)


def _save(ctx, parts: list, moments: tuple[Tensor, Tensor, Tensor]) -> None:
    _, slope, _ = parts
    _, mean, variance = moments
    ctx.save_for_backward(mean, variance)
    ctx.slope_dtype = slope.dtype


def _backward(
    ctx, grad_log_partition: Tensor | None, grad_mean: Tensor | None, grad_variance: Tensor | None
) -> dict[str, Tensor]:
    """``d log M / da = mean`` and ``d mean / da = variance``: no pass over the tokens."""
    if grad_variance is not None:
        raise RuntimeError(
            "value_attention: the variance carries no gradient, and there is no second derivative"
        )
    mean, variance = ctx.saved_tensors
    gradient = mean.new_zeros(mean.shape[1:])
    for incoming, moment in ((grad_log_partition, mean), (grad_mean, variance)):
        if incoming is not None:
            gradient = gradient + (incoming * moment).sum(dim=0)
    return {"slope": gradient.to(ctx.slope_dtype)}


moments = Operation(
    "value_attention",
    {"cells": Cells, "slope": Tensor, "backend": str},
    {"log_partition": Tensor, "mean": Tensor, "variance": Tensor},
    _run,
    _fake,
    save=_save,
    backward=_backward,
    differentiable=("slope",),
)


def value_attention(
    values: Tensor, slope: Tensor, *, valid: Tensor | None = None, backend: str | None = None
) -> ValueMoments:
    """Softmax attention over scalar values, ``A_l = exp(a x_l) / M(a)``, as the three numbers that
    everything else follows from.

    With scalar tokens a key is ``u x_l + c``; the constant cancels, so a latent's head is one slope
    ``a = q.u / sqrt(d)``, its attended output needs the mean alone, and the gradient of the mean is
    the variance. The cost is that of the values that are not zero.

    Args:
        values: (B, L) dense, or sparse CSR (B, G), whose missing entries are zeros that take part;
            float32, float16, bfloat16, or float64 (reference). Without gradient. The columns of a
            row need not be sorted; indices that are not sound (out of range, offsets that fall, a
            column twice) are a ``ValueError`` on the CPU. On a GPU they are looked at only inside
            ``check_values``, and never followed out of bounds.
        slope: (N, H), floating point; computed in float32 (float64 for float64 values).
            Differentiable.
        valid: (B, L) bool, True where there is a value; None: everywhere. What stands elsewhere,
            NaN too, has no effect.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Returns:
        ``ValueMoments(log_partition, mean, variance)``, each (B, N, H). A row without valid
        positions: -inf, 0, 0.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    checks.require_floating("slope", slope, "(N, H)", 2)
    cells = checks.require_cells("values", values, valid)
    checks.require_device("slope", slope, cells.values.device, "values")
    checks.require_finite("slope", slope)
    log_partition, mean, variance = moments(
        cells, slope.to(cells.accumulated).contiguous(), named(backend)
    )
    return ValueMoments(log_partition, mean, variance.detach())
