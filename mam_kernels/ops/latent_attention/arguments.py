"""The arguments of the token path's functions: each is checked by its namesake here, before a
backend's (see _core/arguments.py), and returned ready for use.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core import arguments
from ..._core.arguments import accumulation, flags, flat, one
from ..._core.call import Choice, Draw, Parameters, TokenState, Weighting
from ..._core.checks import FLOATING


def _dense_width(x: Tensor) -> Tensor:
    """The same with an innermost stride of 1, which kernels rely on."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _tokens(query: Tensor, keys: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """query (N, H, d), then key and value (B, L, H, d), of one type."""
    one("query", query, FLOATING, (None, None, None), None)
    shape: Sequence[int | None] = (None, None, *query.shape[1:])
    for name, x in keys.items():
        shape = one(name, x, (query.dtype,), shape, query.device).shape
    return tuple(_dense_width(x) for x in (query, *keys.values()))


def _scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number; got {scale}")


def _sums(name: str, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The log-sum-exp, or its gradient."""
    shape = (key.shape[0], *query.shape[:2])
    return flat(name, x, accumulation(query), shape, query.device)


def _attention(query: Tensor, keys: dict[str, Tensor], valid: Tensor | None, scale: float) -> tuple:
    """query, key and value as far as there is one, valid, scale."""
    query, *tokens = _tokens(query, keys)
    _scale(scale)
    rows, positions = tokens[0].shape[:2]
    return query, *tokens, flags("valid", valid, rows, positions, tokens[0].device), scale


def forward(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float) -> tuple:
    """Arguments of ``forward``."""
    return _attention(query, {"key": key, "value": value}, valid, scale)


def logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> tuple:
    """Arguments of ``logsumexp``."""
    return _attention(query, {"key": key}, valid, scale)


def backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple:
    """Arguments of ``backward``."""
    query, key, value, valid, scale = forward(query, key, value, valid, scale)
    kind, shape, device = (query.dtype,), (key.shape[0], *query.shape), key.device
    if grad_logsumexp is not None:
        grad_logsumexp = _sums("grad_logsumexp", grad_logsumexp, query, key)
    return (
        flat("grad_output", grad_output, kind, shape, device),
        grad_logsumexp,
        query,
        key,
        value,
        valid,
        flat("output", output, kind, shape, device),
        _sums("logsumexp", logsumexp, query, key),
        scale,
    )


def importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
) -> tuple:
    """Arguments of ``importance``."""
    query, key, valid, scale = _attention(query, {"key": key}, valid, scale)
    logsumexp = _sums("logsumexp", logsumexp, query, key)
    latents = flat("latents", latents, arguments.INT64, (None,), key.device)
    latents = arguments.existing(latents, len(query))
    return query, key, logsumexp, latents, valid, scale


def mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    valid: Tensor | None,
    scale: float,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
) -> tuple:
    """Arguments of ``mask``."""
    query, key, valid, scale = _attention(query, {"key": key}, valid, scale)
    logsumexp = _sums("logsumexp", logsumexp, query, key)
    (rows, positions), device = key.shape[:2], key.device
    arguments.require_given(choice)
    choice = arguments.checked_choice(choice, rows, positions, len(query), device)
    draw = arguments.checked_draw(draw, rows, device)
    return query, key, logsumexp, valid, scale, choice, arguments.checked_weighting(weighting), draw


def _embeddings(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """tokens (B, L, D)."""
    one("tokens", tokens, FLOATING, (None, None, None), None)
    rows, positions, _ = tokens.shape
    return _dense_width(tokens), flags("valid", valid, rows, positions, tokens.device)


def step(
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Parameters, int, Choice, Weighting, Draw, bool, bool]:
    """Arguments of ``step``."""
    tokens, valid = _embeddings(tokens, valid)
    (rows, positions, token_width), device = tokens.shape, tokens.device
    parameters = arguments.checked_parameters(parameters, heads, device, token_width)
    num_latents = len(parameters.latents)
    choice = arguments.checked_choice(choice, rows, positions, num_latents, device)
    if choice.latents is not None:
        choice = choice._replace(latents=arguments.existing(choice.latents, num_latents))
    draw = arguments.checked_draw(draw, rows, device)
    weighting = arguments.checked_weighting(weighting)
    return tokens, valid, parameters, heads, choice, weighting, draw, visible, keep


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: TokenState,
    wants_tokens: bool,
) -> tuple:
    """Arguments of ``step_backward``."""
    tokens, valid = _embeddings(tokens, valid)
    (rows, positions, token_width), device = tokens.shape, tokens.device
    parameters = arguments.checked_parameters(parameters, heads, device, token_width)
    count, width = parameters.latents.shape
    incoming = arguments.incoming(
        grad_context, grad_penalty, (torch.float32, torch.float64), (rows, width), device
    )
    attended, logsumexp, keys_values, left = state
    kind, by_head = (tokens.dtype,), (heads, width // heads)
    shape = (rows, positions, 2, *by_head) if keys_values.dim() > 1 else (0,)
    flags = (rows, positions) if left.dim() > 1 else (0,)
    state = TokenState(
        flat("state_attended", attended, kind, (rows, count, *by_head), device),
        flat("state_logsumexp", logsumexp, accumulation(tokens), (rows, count, heads), device),
        flat("state_keys_values", keys_values, kind, shape, device),
        flat("state_visible", left, (torch.bool,), flags, device),
    )
    return *incoming, tokens, valid, parameters, heads, state, wants_tokens
