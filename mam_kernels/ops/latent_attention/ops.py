"""Attention of latents over tokens as operations: schemas, shapes, gradient, dispatch.

See README.md beside this file.
"""

import math
import sys

import torch
from torch import Tensor

from ..._core import checks
from ..._core.describing import describe
from ..._core.dispatch import chosen, implementation, named
from ..._core.registration import Operation, no_second_derivative
from . import arguments


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_empty(query: Tensor, key: Tensor) -> bool:
    return query.numel() == 0 or key.numel() == 0


def attend(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Attended values (B, N, H, d) and log-sum-exp (B, N, H) by a backend, without gradient."""
    run = implementation("latent_attention", backend, key)
    if _is_empty(query, key):
        arguments.forward(query, key, value, valid, scale)
        output, logsumexp = _fake_attention(query, key)
        return output.zero_(), logsumexp.fill_(-torch.inf)
    return run(query, key, value, valid, scale)


def _fake_attention(query: Tensor, key: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    output = query.new_empty((key.shape[0], *query.shape))
    return output, output.new_empty(output.shape[:-1], dtype=_accumulation(query.dtype))


def attend_backward(
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
    """Gradients of the query, the key and the value by a backend."""
    run = implementation("latent_attention_backward", backend, key)
    given = (grad_output, grad_logsumexp, query, key, value, valid, output, logsumexp, scale)
    if _is_empty(query, key):
        arguments.backward(*given)
        return query.new_zeros(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)
    return run(*given)


def _fake_backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: object,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


_INPUTS = {"query": Tensor, "key": Tensor, "value": Tensor, "valid": Tensor | None}

attention_backward = Operation(
    "latent_attention_backward",
    {
        "grad_output": Tensor,
        "grad_logsumexp": Tensor | None,
        **_INPUTS,
        "output": Tensor,
        "logsumexp": Tensor,
        "scale": float,
        "backend": str,
    },
    {"grad_query": Tensor, "grad_key": Tensor, "grad_value": Tensor},
    attend_backward,
    _fake_backward,
    backward=no_second_derivative("latent_attention"),
)


def _save(ctx, parts: list, results: tuple[Tensor, Tensor]) -> None:
    query, key, value, valid, ctx.scale, backend = parts
    ctx.save_for_backward(query, key, value, valid, *results)
    # The backend of the forward pass runs the backward pass too.
    ctx.backend = chosen("latent_attention", backend, key)


def _backward(ctx, grad_output: Tensor | None, grad_logsumexp: Tensor | None) -> dict:
    query, key, value, valid, output, logsumexp = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    gradients = attention_backward.in_backward(
        ctx,
        grad_output.contiguous(),
        None if grad_logsumexp is None else grad_logsumexp.contiguous(),
        query,
        key,
        value,
        valid,
        output,
        logsumexp,
        ctx.scale,
        ctx.backend,
    )
    return dict(zip(("query", "key", "value"), gradients, strict=True))


attention = Operation(
    "latent_attention",
    {**_INPUTS, "scale": float, "backend": str},
    {"output": Tensor, "logsumexp": Tensor},
    attend,
    _fake_attention,
    save=_save,
    backward=_backward,
    differentiable=("query", "key", "value"),
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
        arguments.importance(query, key, logsumexp, latents, valid, scale)
        return _fake_importance(query, key).zero_()
    return run(query, key, logsumexp, latents, valid, scale)


def _fake_importance(query: Tensor, key: Tensor, *_: object) -> Tensor:
    return key.new_empty(key.shape[:2], dtype=_accumulation(key.dtype))


importance = Operation(
    "attention_importance",
    {
        "query": Tensor,
        "key": Tensor,
        "logsumexp": Tensor,
        "latents": Tensor,
        "valid": Tensor | None,
        "scale": float,
        "backend": str,
    },
    {"importance": Tensor},
    _run_importance,
    _fake_importance,
    save=lambda ctx, _parts, importance: ctx.mark_non_differentiable(importance),
    backward=lambda ctx, _: {},
)


def _dense_width(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _check_heads(query: object, key: object, others: dict[str, object]) -> None:
    """query (N, H, d), key and the others (B, L, H, d), of one dtype on one device."""
    query = checks.require_floating("query", query, "(N, H, d)", 3)
    key = checks.require_floating("key", key, "(B, L, H, d)", 4)
    checks.require_shape("key", key, (None, None, *query.shape[1:]), "(B, L, H, d)")
    tensors = {"key": key}
    for name, other in others.items():
        tensors[name] = checks.require_floating(name, other, "(B, L, H, d)", 4)
        checks.require_shape(name, tensors[name], key.shape, "(B, L, H, d)")
    for name, x in tensors.items():
        checks.require_device(name, x, query.device, "query")
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype}, as query is; got {describe(x)}")


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
        float32 (float64 for float64). Both are differentiable, once. A cell without tokens: 0 and
        -inf.

    Raises:
        TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the named
            backend cannot run.
    """
    _check_heads(query, key, {"value": value})
    valid = checks.require_flags("valid", valid, key.shape[0], key.shape[1], key.device)
    for name, x, where in (("query", query, None), ("key", key, valid), ("value", value, valid)):
        checks.require_finite(name, x, where)
    query, key, value = _dense_width(query), _dense_width(key), _dense_width(value)
    return attention(query, key, value, valid, _scale(scale, query), named(backend))


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
    query, key = _dense_width(query), _dense_width(key)
    logsumexp = logsumexp.to(_accumulation(key.dtype)).contiguous()
    return importance(query, key, logsumexp, latents, valid, _scale(scale, query), named(backend))
