"""The masking step on tokens, for backends without a whole step of their own: the projections in
products of torch around the backend's attention.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._core.call import Choice, Draw, Parameters, TokenState, Weighting
from ..._core.dispatch import implementation
from ..._core.precision import without_autocast
from ..selection.ops import completed
from .ops import attend, attend_backward


class Folded(NamedTuple):
    """The parameters, folded into what is applied to the tokens."""

    query: Tensor  # (N, H, d), in the type of the tokens
    weight: Tensor  # (2 Dz, D), of keys and values, in the type of the tokens
    value_bias: Tensor  # (Dz,)


def fold(parameters: Parameters, heads: int, dtype: torch.dtype) -> Folded:
    """The two projections of a token as one: ``K = X (W_k W_p)^T``.

    The bias of the keys adds the same to every score of a query, so it cancels in the softmax;
    that of the values is added to the attended output, since attention sums to 1.
    """
    width = parameters.latents.shape[1]
    query_weight, token_weight = parameters.in_weight.tensor_split((width,))
    query_bias, value_bias = parameters.in_bias[:width], parameters.in_bias[2 * width :]
    query = F.linear(parameters.latents, query_weight, query_bias).to(dtype)
    return Folded(
        query.unflatten(-1, (heads, -1)),
        (token_weight @ parameters.token_weight).to(dtype),
        torch.addmv(value_bias, token_weight[width:], parameters.token_bias),
    )


def project(tokens: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Keys and values of tokens (B, L, D), side by side; (B, L, 2, H, d)."""
    return F.linear(tokens, weight).unflatten(-1, (2, heads, -1))


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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, TokenState]:
    """Mask, importance, context, penalty, and the state."""
    shape, device = (tokens.shape[0], tokens.shape[1]), tokens.device
    with without_autocast(device):
        query, weight, value_bias = fold(parameters, heads, tokens.dtype)
        keys_values = project(tokens, weight, heads)
        key, value = keys_values.unbind(dim=2)
        scale = query.shape[-1] ** -0.5
        choice = completed(choice, valid, query.shape[0], shape, draw, backend, tokens)
        if visible:  # only the latents that decide are computed for the mask
            deciding = query[choice.latents]
            every = torch.arange(deciding.shape[0], device=device)
            chosen = choice._replace(latents=every)
            logsumexp = _logsumexp(deciding, key, valid, scale, backend)
            arguments = (deciding, key, logsumexp, valid, scale, chosen, weighting, draw)
            mask, importance = _mask(*arguments, backend)
            left: Tensor | None = ~mask if valid is None else valid & ~mask
            attended, logsumexp = attend(query, key, value, left, scale, backend)
        else:
            left = valid
            attended, logsumexp = attend(query, key, value, valid, scale, backend)
            arguments = (query, key, logsumexp, valid, scale, choice, weighting, draw)
            mask, importance = _mask(*arguments, backend)
        output = _output(attended, value_bias, _occupied(left, shape, value_bias), parameters)
        context = output.mean(dim=1)
        penalty = output.square().sum() / max(shape[0], 1)
        kept = keys_values if keep else tokens.new_empty(0)
        unused = tokens.new_empty(0, dtype=torch.bool)
        seen = left if visible and left is not None else unused
        state = TokenState(attended, logsumexp, kept, seen)
        return mask, importance, context, penalty, state


def _occupied(attended: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """1 where a cell has tokens that are attended to, else 0; (B,)."""
    if attended is None:
        return like.new_full((shape[0],), float(shape[1] > 0))
    return attended.any(dim=1).to(like.dtype)


def _concatenated(attended: Tensor, value_bias: Tensor, occupied: Tensor) -> Tensor:
    """The attended values of all heads, with the bias of the values where a cell has tokens;
    (B, N, Dz).
    """
    shift = occupied[:, None, None] * value_bias
    return attended.flatten(2).to(value_bias.dtype) + shift


def _output(
    attended: Tensor, value_bias: Tensor, occupied: Tensor, parameters: Parameters
) -> Tensor:
    """``O``: the attended values after the output projection; (B, N, Dz)."""
    concatenated = _concatenated(attended, value_bias, occupied)
    return F.linear(concatenated, parameters.out_weight, parameters.out_bias)


def _is_empty(query: Tensor, key: Tensor) -> bool:
    return query.numel() == 0 or key.numel() == 0


def _logsumexp(
    query: Tensor, key: Tensor, valid: Tensor | None, scale: float, backend: str
) -> Tensor:
    run = implementation("attention_logsumexp", backend, key)
    if _is_empty(query, key):
        dtype = torch.promote_types(query.dtype, torch.float32)
        return query.new_full((key.shape[0], *query.shape[:2]), -torch.inf, dtype=dtype)
    return run(query, key, valid, scale)


def _mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    valid: Tensor | None,
    scale: float,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = implementation("token_mask", backend, key)
    if _is_empty(query, key):
        importance = logsumexp.new_zeros(key.shape[:2])
        return importance.to(torch.bool), importance
    return run(query, key, logsumexp, valid, scale, choice, weighting, draw)


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: TokenState,
    wants_tokens: bool,
    backend: str,
) -> tuple[Tensor | None, Parameters]:
    """The gradient of the tokens, None unless it is wanted, and those of the parameters."""
    rows, width, compute = tokens.shape[0], parameters.latents.shape[1], tokens.dtype
    with without_autocast(tokens.device):
        query, weight, value_bias = fold(parameters, heads, compute)
        attended = state.visible if state.visible.dim() == 2 else valid
        occupied = _occupied(attended, tokens.shape[:2], value_bias)
        concatenated = _concatenated(state.attended, value_bias, occupied)

        # The output projection
        grad_output = torch.zeros_like(concatenated)
        if grad_context is not None:
            grad_output += (grad_context / max(concatenated.shape[1], 1))[:, None]
        if grad_penalty is not None:
            output = F.linear(concatenated, parameters.out_weight, parameters.out_bias)
            grad_output += grad_penalty * (2.0 / max(rows, 1)) * output
        flat = grad_output.flatten(0, 1)  # (B N, Dz)
        grad_out_weight = flat.t() @ concatenated.flatten(0, 1)
        grad_out_bias = flat.sum(dim=0)
        grad_concatenated = grad_output @ parameters.out_weight
        grad_value_bias = torch.mv(grad_concatenated.sum(dim=1).t(), occupied)

        # The attention
        keys_values = state.keys_values
        if keys_values.dim() == 1:
            keys_values = project(tokens, weight, heads)
        key, value = keys_values.unbind(dim=2)
        grad_attended = grad_concatenated.to(compute).unflatten(-1, (heads, -1)).contiguous()
        grad_query, grad_key, grad_value = attend_backward(
            grad_attended,
            None,
            query,
            key,
            value,
            attended,
            state.attended,
            state.logsumexp,
            query.shape[-1] ** -0.5,
            backend,
        )

        # The projection of the tokens, whose padding may hold NaN: its gradient is 0, and 0 * NaN
        # is NaN.
        kept = tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)
        kept = kept.flatten(0, 1)
        grads = [x.flatten(2).flatten(0, 1) for x in (grad_key, grad_value)]  # (B L, Dz) each
        grad_weight = torch.cat([x.t() @ kept for x in grads]).to(parameters.in_weight.dtype)
        grad_tokens = None
        if wants_tokens:
            by_key, by_value = weight.tensor_split((width,))
            grad_tokens = torch.addmm(grads[0] @ by_key, grads[1], by_value).view_as(tokens)
        grad_query = grad_query.flatten(1).to(parameters.latents.dtype)
        gradients = _unfolded(grad_query, grad_weight, grad_value_bias, parameters)
        return grad_tokens, gradients._replace(out_weight=grad_out_weight, out_bias=grad_out_bias)


def _unfolded(
    grad_query: Tensor, grad_weight: Tensor, grad_value_bias: Tensor, parameters: Parameters
) -> Parameters:
    """Gradients of the parameters of ``fold``; those of the output projection are left as the
    parameters themselves.
    """
    width = parameters.latents.shape[1]
    query_weight, token_weight = parameters.in_weight.tensor_split((width,))
    grad_token_weight = grad_weight @ parameters.token_weight.t()  # (2 Dz, Dz)
    grad_token_weight[width:].addr_(grad_value_bias, parameters.token_bias)
    grad_query_bias = grad_query.sum(dim=0)
    return parameters._replace(
        latents=grad_query @ query_weight,
        in_weight=torch.cat([grad_query.t() @ parameters.latents, grad_token_weight]),
        in_bias=torch.cat([grad_query_bias, torch.zeros_like(grad_query_bias), grad_value_bias]),
        token_weight=token_weight.t() @ grad_weight,
        token_bias=torch.mv(token_weight[width:].t(), grad_value_bias),
    )
