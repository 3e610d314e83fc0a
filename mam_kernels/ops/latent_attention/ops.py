"""Attention of latents over tokens as operations: schemas, shapes, gradient, dispatch.

See README.md beside this file.
"""

import math
import sys

import torch
from torch import Tensor

from ..._core import checks
from ..._core.call import Choice, Draw, Weighting
from ..._core.dispatch import implementation, requested
from ..._core.registration import define, differentiable


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_empty(query: Tensor, key: Tensor) -> bool:
    return query.numel() == 0 or key.numel() == 0


def _run_attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    run = implementation("latent_attention", backend, key)
    if _is_empty(query, key):
        logsumexp = _fake_logsumexp(query, key).fill_(-torch.inf)
        return query.new_zeros((key.shape[0], *query.shape)), logsumexp
    return run(query, key, value, valid, scale)


def _fake_attention(query: Tensor, key: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return query.new_empty((key.shape[0], *query.shape)), _fake_logsumexp(query, key)


def _save_attention(ctx, inputs: tuple, output: tuple) -> None:
    query, key, value, valid, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(query, key, value, valid, *output)
    ctx.set_materialize_grads(False)


def _attention_backward(ctx, grad_output: Tensor | None, grad_logsumexp: Tensor | None) -> tuple:
    query, key, value, valid, output, logsumexp = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    gradients = differentiable("latent_attention_backward")(
        grad_output.contiguous(),
        None if grad_logsumexp is None else grad_logsumexp.contiguous(),
        query, key, value, valid, output, logsumexp, ctx.scale, ctx.backend,
    )  # fmt: skip
    return (*gradients, None, None, None)


define(
    "latent_attention(Tensor query, Tensor key, Tensor value, Tensor? valid, float scale, str backend) -> (Tensor, Tensor)",
    _run_attention,
    _fake_attention,
    _attention_backward,
    _save_attention,
)


def _run_backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = implementation("latent_attention_backward", backend, key)
    if _is_empty(query, key):
        return torch.zeros_like(query), key.new_zeros(key.shape), value.new_zeros(value.shape)
    return run(grad_output, grad_logsumexp, query, key, value, valid, output, logsumexp, scale)


def _fake_backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[2:5])  # query, key, value


def _no_second_derivative(ctx, *gradients: Tensor | None) -> tuple:
    raise RuntimeError("latent_attention: there is no second derivative")


define(
    "latent_attention_backward(Tensor grad_output, Tensor? grad_logsumexp, Tensor query, Tensor key, Tensor value, Tensor? valid, "
    "Tensor output, Tensor logsumexp, float scale, str backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    _no_second_derivative,
)


def _run_logsumexp(
    query: Tensor, key: Tensor, valid: Tensor | None, scale: float, backend: str
) -> Tensor:
    run = implementation("attention_logsumexp", backend, key)
    if _is_empty(query, key):
        return _fake_logsumexp(query, key).fill_(-torch.inf)
    return run(query, key, valid, scale)


def _fake_logsumexp(query: Tensor, key: Tensor, *_: object) -> Tensor:
    return query.new_empty((key.shape[0], *query.shape[:2]), dtype=_accumulation(query.dtype))


define(
    "attention_logsumexp(Tensor query, Tensor key, Tensor? valid, float scale, str backend) -> Tensor",
    _run_logsumexp,
    _fake_logsumexp,
)


def _run_importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
    backend: str,
) -> Tensor:
    run = implementation("attention_importance", backend, key)
    if _is_empty(query, key):
        return _fake_importance(query, key).zero_()
    return run(query, key, logsumexp, latents, valid, scale)


def _fake_importance(query: Tensor, key: Tensor, *_: object) -> Tensor:
    return key.new_empty(key.shape[:2], dtype=_accumulation(key.dtype))


define(
    "attention_importance(Tensor query, Tensor key, Tensor logsumexp, Tensor latents, Tensor? valid, float scale, str backend) -> Tensor",
    _run_importance,
    _fake_importance,
)


def _run_mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    sample_ids: Tensor | None,
    seed: Tensor,
    step: Tensor,
    eps: float,
    inverse_temperature: float,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = implementation("token_mask", backend, key)
    if _is_empty(query, key):
        importance = _fake_importance(query, key).zero_()
        return torch.zeros_like(importance, dtype=torch.bool), importance
    choice = Choice(maskable, num_masked, 0.0, latents, len(latents))
    weighting, draw = Weighting(eps, inverse_temperature), Draw(seed, step, sample_ids)
    return run(query, key, logsumexp, valid, scale, choice, weighting, draw)


def _fake_mask(query: Tensor, key: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    importance = _fake_importance(query, key)
    return torch.empty_like(importance, dtype=torch.bool), importance


define(
    "token_mask(Tensor query, Tensor key, Tensor logsumexp, Tensor latents, Tensor? valid, Tensor? maskable, Tensor num_masked, "
    "Tensor? sample_ids, Tensor seed, Tensor step, float eps, float inverse_temperature, float scale, str backend) -> (Tensor, Tensor)",
    _run_mask,
    _fake_mask,
)


def _dense_width(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _check_heads(query: object, key: object, others: dict[str, object]) -> None:
    """query (N, H, d), key and the others (B, L, H, d), of one dtype on one device."""
    checks.require_floating("query", query, "(N, H, d)", 3)
    checks.require_floating("key", key, "(B, L, H, d)", 4)
    checks.require_shape("key", key, (None, None, *query.shape[1:]), "(B, L, H, d)")
    for name, x in others.items():
        checks.require_floating(name, x, "(B, L, H, d)", 4)
        checks.require_shape(name, x, key.shape, "(B, L, H, d)")
    for name, x in {"key": key, **others}.items():
        checks.require_device(name, x, query.device, "query")
        if x.dtype != query.dtype:
            raise TypeError(
                f"{name}: expected {query.dtype}, as query is; got {checks.describe(x)}"
            )


def _scale(scale: float | None, query: Tensor) -> float:
    if scale is None:
        return 1.0 / math.sqrt(max(query.shape[-1], 1))
    return checks.require_number("scale", scale, -sys.float_info.max, sys.float_info.max)


def latent_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of latents, shared by the batch, over the tokens of each cell:
    ``softmax(scale Q K^T) V``, head by head.

    Args:
        query: (N, H, d): latents, heads, head width; float32, float16, bfloat16, or float64
            (reference). Differentiable.
        key, value: (B, L, H, d), of the dtype of ``query``. Differentiable.
        valid: (B, L) bool, True where there is a token; None: everywhere. What stands elsewhere,
            NaN too, has no effect.
        scale: factor of the scores; None: ``1 / sqrt(d)``.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Returns:
        output (B, N, H, d), of the dtype of ``query``, and the log-sum-exp of the scores (B, N, H),
        float32 (float64 for float64). Both
        are differentiable, once. A cell without tokens: 0 and -inf.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    _check_heads(query, key, {"value": value})
    valid = checks.require_flags("valid", valid, key.shape[0], key.shape[1], key.device)
    for name, x, where in (("query", query, None), ("key", key, valid), ("value", value, valid)):
        checks.require_finite(name, x, where)
    query, key, value = _dense_width(query), _dense_width(key), _dense_width(value)
    return differentiable("latent_attention")(
        query, key, value, valid, _scale(scale, query), requested(backend)
    )


def attention_logsumexp(
    query: Tensor, key: Tensor, valid: Tensor | None, scale: float, backend: str
) -> Tensor:
    """The log-sum-exp of ``latent_attention`` alone, without gradient, on arguments that were
    checked; (B, N, H).
    """
    return torch.ops.mam_kernels.attention_logsumexp(
        query.detach(), key.detach(), valid, scale, backend
    )


def token_mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    maskable: Tensor | None,
    num_masked: Tensor,
    draw: checks.Draw,
    eps: float,
    inverse_temperature: float,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Importance of the chosen latents and the draw, without gradient, on arguments that were
    checked: (B, L) bool, (B, L).
    """
    return torch.ops.mam_kernels.token_mask(
        query.detach(), key.detach(), logsumexp.detach(), latents, valid, maskable, num_masked, draw.sample_ids, draw.seed, draw.step,
        eps, inverse_temperature, scale, backend,
    )  # fmt: skip


def attention_importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """How much attention each token receives: ``s[b, l] = sum over n in latents, h of exp(scale q.k
    - logsumexp)``.

    Args:
        query: (N, H, d). key: (B, L, H, d), of the same dtype. As in ``latent_attention``.
        logsumexp: (B, N, H), what ``latent_attention`` returned.
        latents: int64 (R,), R >= 1 distinct indices of latents. On a GPU their range is looked at
            only inside ``check_values``.
        valid, scale, backend: as in ``latent_attention``.

    Returns:
        (B, L), float32 (float64 for float64), 0 where not valid. No gradient.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    _check_heads(query, key, {})
    checks.require_floating("logsumexp", logsumexp, "(B, N, H)", 3)
    checks.require_shape("logsumexp", logsumexp, (key.shape[0], *query.shape[:2]), "(B, N, H)")
    checks.require_device("logsumexp", logsumexp, query.device, "query")
    latents = checks.indices("latents", latents, query.shape[0], query.device)
    valid = checks.require_flags("valid", valid, key.shape[0], key.shape[1], key.device)
    query, key = _dense_width(query.detach()), _dense_width(key.detach())
    logsumexp = logsumexp.detach().to(_accumulation(key.dtype)).contiguous()
    return torch.ops.mam_kernels.attention_importance(
        query, key, logsumexp, latents, valid, _scale(scale, query), requested(backend)
    )
