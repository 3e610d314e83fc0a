"""Attention over scalar values as an operation: schema, shapes, gradient, dispatch.

See README.md beside this file.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._core import checks
from ..._core.call import Cells, Choice, Draw, Weighting
from ..._core.dispatch import implementation, requested
from ..._core.registration import define, differentiable


class ValueMoments(NamedTuple):
    """The values of a cell under the attention of each slope; each (B, N, H), float32 (float64 for
    float64 values).
    """

    log_partition: Tensor  # log M(a) = log sum_l exp(a x_l); -inf for a row without valid positions
    mean: Tensor  # M'/M
    variance: Tensor  # M''/M - mean**2; carries no gradient


class Values(NamedTuple):
    """A dense (B, L) or CSR (B, G) matrix taken apart for the operations."""

    data: Tensor  # (B, L), or the stored entries (S,)
    crow: Tensor | None  # (B + 1,)
    col: Tensor | None  # (S,)
    rows: int
    positions: int
    device: torch.device


def take_apart(name: str, values: object) -> Values:
    """Check a matrix of values, dense or CSR, and take it apart.

    Raises:
        TypeError, ValueError: not floating point, not (B, L), another sparse layout, or values that
            want a gradient.
    """
    checks.require_floating(name, values, "(B, L)", 2, dense=False)
    rows, positions = values.shape
    if torch.is_grad_enabled() and values.requires_grad:
        raise ValueError(
            f"{name}: expected values without gradient; got a tensor that requires one. Detach it, or give it as embeddings "
            "(B, L, 1) with input_dim=1, which is the same attention, differentiable in its tokens"
        )
    if values.layout == torch.sparse_csr:
        entries = values.values()
        checks.require_finite(name, entries)
        return Values(
            entries, values.crow_indices(), values.col_indices(), rows, positions, values.device
        )
    if values.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor or sparse CSR; got layout {values.layout}"
        )
    return Values(values, None, None, rows, positions, values.device)


def _empty_moments(values: Values, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(values.data.dtype, torch.float32)
    shape = (values.rows, *slope.shape)
    new = {"dtype": dtype, "device": slope.device}
    return (
        torch.full(shape, -torch.inf, **new),
        torch.zeros(shape, **new),
        torch.zeros(shape, **new),
    )


def run_moments(
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    slope: Tensor,
    valid: Tensor | None,
    num_positions: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = implementation("value_attention", backend, values)
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    if rows * num_positions * slope.numel() == 0:
        return _empty_moments(Values(values, crow, col, rows, num_positions, values.device), slope)
    return run(Cells(values, crow, col, valid, num_positions), slope)


def _fake_moments(
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    slope: Tensor,
    valid: Tensor | None,
    num_positions: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    dtype = torch.promote_types(values.dtype, torch.float32)
    log_partition, mean, variance = (
        slope.new_empty((rows, *slope.shape), dtype=dtype) for _ in range(3)
    )
    return log_partition, mean, variance


def _slope_gradient(
    grad_log_partition: Tensor | None,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    mean: Tensor,
    variance: Tensor,
) -> Tensor:
    """``d log M / da = mean`` and ``d mean / da = variance``: no pass over the tokens."""
    if grad_variance is not None:
        raise RuntimeError(
            "value_attention: the variance carries no gradient, and there is no second derivative"
        )
    gradient = mean.new_zeros(mean.shape[1:])
    for incoming, moment in ((grad_log_partition, mean), (grad_mean, variance)):
        if incoming is not None:
            gradient = gradient + (incoming * moment).sum(dim=0)
    return gradient


def _save_moments(ctx, inputs: tuple, output: tuple) -> None:
    _, mean, variance = output[-3:]
    ctx.save_for_backward(mean, variance)
    ctx.slope_dtype = inputs[3].dtype
    ctx.set_materialize_grads(False)


def _moments_backward(ctx, *gradients: Tensor | None) -> tuple:
    slope_gradient = _slope_gradient(*gradients[-3:], *ctx.saved_tensors).to(ctx.slope_dtype)
    return (None, None, None, slope_gradient, None, None, None)


define(
    "value_attention(Tensor values, Tensor? crow, Tensor? col, Tensor slope, Tensor? valid, SymInt num_positions, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    run_moments,
    _fake_moments,
    _moments_backward,
    _save_moments,
)


def run_mask(
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    slope: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    latents: Tensor,
    sample_ids: Tensor | None,
    seed: Tensor,
    step: Tensor,
    eps: float,
    inverse_temperature: float,
    num_positions: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = implementation("value_mask", backend, values)
    rows = values.shape[0] if crow is None else crow.shape[0] - 1
    if rows * num_positions == 0:
        nothing = torch.zeros((rows, num_positions), dtype=torch.bool, device=values.device)
        moments = _empty_moments(
            Values(values, crow, col, rows, num_positions, values.device), slope
        )
        return nothing, nothing.to(moments[0].dtype), *moments
    return run(
        Cells(values, crow, col, valid, num_positions),
        slope,
        Choice(maskable, num_masked, 0.0, latents, len(latents)),
        Weighting(eps, inverse_temperature),
        Draw(seed, step, sample_ids),
    )


def _fake_mask(*arguments: object) -> tuple[Tensor, ...]:
    values, crow, col, slope, valid, *_, num_positions, backend = arguments
    moments = _fake_moments(values, crow, col, slope, valid, num_positions, backend)
    shape = (moments[0].shape[0], num_positions)
    return (
        slope.new_empty(shape, dtype=torch.bool),
        slope.new_empty(shape, dtype=moments[0].dtype),
        *moments,
    )


def _mask_backward(ctx, *gradients: Tensor | None) -> tuple:
    if gradients[1] is not None:
        raise RuntimeError("value_mask: the importance carries no gradient")
    slope_gradient = _slope_gradient(*gradients[-3:], *ctx.saved_tensors).to(ctx.slope_dtype)
    return (None, None, None, slope_gradient, *(None,) * 11)


define(
    "value_mask(Tensor values, Tensor? crow, Tensor? col, Tensor slope, Tensor? valid, Tensor? maskable, Tensor num_masked, "
    "Tensor latents, Tensor? sample_ids, Tensor seed, Tensor step, float eps, float inverse_temperature, SymInt num_positions, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    run_mask,
    _fake_mask,
    _mask_backward,
    _save_moments,
)


def value_moments(
    values: Values, slope: Tensor, valid: Tensor | None, backend: str
) -> ValueMoments:
    """``value_attention`` on arguments that were checked; differentiable in ``slope``."""
    log_partition, mean, variance = differentiable("value_attention")(
        values.data, values.crow, values.col, slope, valid, values.positions, backend
    )
    return ValueMoments(log_partition, mean, variance.detach())


def value_mask(
    values: Values,
    slope: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    latents: Tensor,
    draw: checks.Draw,
    eps: float,
    inverse_temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor, ValueMoments]:
    """Values to mask in one call: (B, L) bool, importance (B, L) without gradient, and the moments,
    differentiable in ``slope``.
    """
    mask, importance, log_partition, mean, variance = differentiable("value_mask")(
        values.data, values.crow, values.col, slope, valid, maskable, num_masked, latents, draw.sample_ids, draw.seed, draw.step,
        eps, inverse_temperature, values.positions, backend,
    )  # fmt: skip
    return mask, importance.detach(), ValueMoments(log_partition, mean, variance.detach())


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
            float32, float16, bfloat16, or float64 (reference). Without gradient.
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
    parts = take_apart("values", values)
    checks.require_floating("slope", slope, "(N, H)", 2)
    checks.require_device("slope", slope, parts.device, "values")
    valid = checks.require_flags("valid", valid, parts.rows, parts.positions, parts.device)
    if parts.crow is None:
        checks.require_finite("values", values, valid)
    checks.require_finite("slope", slope)
    computed = torch.promote_types(parts.data.dtype, torch.float32)
    return value_moments(parts, slope.to(computed).contiguous(), valid, requested(backend))
