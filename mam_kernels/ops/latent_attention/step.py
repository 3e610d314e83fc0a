"""The masking step on tokens as one operation: from parameters and embeddings to mask, context and
penalty, and its gradient.

A backend may offer the whole step, with the projection of the tokens inside its kernels:

    step(tokens, valid, parameters, heads, choice, weighting, draw, visible, keep)
        -> mask, importance, context, penalty, state
    step_backward(grad_context, grad_penalty, tokens, valid, parameters, heads, state, wants_tokens)
        -> the gradient of the tokens (None unless it is wanted), and Parameters of gradients

for float32 parameters; ``state`` is a ``TokenState`` whose ``keys_values`` is empty unless ``keep``
says that a gradient will be asked for. On other backends and types the step is made of its parts,
see ``composed.py``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..._core.call import Choice, Draw, Parameters, TokenState, Weighting
from ..._core.dispatch import chosen, optional
from ..._core.registration import Operation, no_second_derivative
from . import arguments, composed


def _whole_step(
    function: str, parameters: Parameters, tokens: Tensor, backend: str
) -> Callable | None:
    """The backend's own ``step`` or ``step_backward``, where it has one for these types and there
    is something to compute.
    """
    if parameters.latents.dtype != torch.float32 or tokens.numel() == 0:
        return None
    return optional("token_mask", function, chosen("token_mask", backend, tokens))


def _run(
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    heads: int,
    visible: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    parts = (tokens, valid, parameters, heads, choice, weighting, draw, visible, keep)
    if step := _whole_step("step", parameters, tokens, backend):
        *results, state = step(*parts)
    else:
        *results, state = composed.step(*arguments.step(*parts), backend)
    return *results, *state


def _fake(
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    heads: int,
    visible: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    rows, positions, _ = tokens.shape
    count, width = parameters.latents.shape
    head_dim, exact = width // heads, torch.promote_types(tokens.dtype, torch.float32)
    return (
        tokens.new_empty((rows, positions), dtype=torch.bool),
        tokens.new_empty((rows, positions), dtype=exact),
        tokens.new_empty((rows, width), dtype=exact),
        tokens.new_empty((), dtype=exact),
        tokens.new_empty((rows, count, heads, head_dim)),
        tokens.new_empty((rows, count, heads), dtype=exact),
        tokens.new_empty((rows, positions, 2, heads, head_dim) if keep else (0,)),
        tokens.new_empty((rows, positions) if visible else (0,), dtype=torch.bool),
    )


def _run_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    state: TokenState,
    heads: int,
    wants_tokens: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    parts = (grad_context, grad_penalty, tokens, valid, parameters, heads, state, wants_tokens)
    if backward := _whole_step("step_backward", parameters, tokens, backend):
        grad_tokens, gradients = backward(*parts)
    else:
        parts = arguments.step_backward(*parts)
        grad_tokens, gradients = composed.step_backward(*parts, backend)
    return tokens.new_empty(0) if grad_tokens is None else grad_tokens, *gradients


def _fake_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    state: TokenState,
    heads: int,
    wants_tokens: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    grad_tokens = tokens.new_empty(tokens.shape if wants_tokens else (0,))
    return grad_tokens, *(x.new_empty(x.shape) for x in parameters)


masking_backward = Operation(
    "token_masking_backward",
    {
        "grad_context": Tensor | None,
        "grad_penalty": Tensor | None,
        "tokens": Tensor,
        "valid": Tensor | None,
        "parameters": Parameters,
        "state": TokenState,
        "heads": int,
        "wants_tokens": bool,
        "backend": str,
    },
    {"grad_tokens": Tensor, "grad": Parameters},
    _run_backward,
    _fake_backward,
    backward=no_second_derivative("token_masking"),
)


def _save(ctx, parts: list, results: tuple[Tensor, ...]) -> None:
    tokens, valid, parameters, *_, heads, _visible, _keep, backend = parts
    mask, importance, _context, _penalty, *state = results
    ctx.mark_non_differentiable(mask, importance, *state)
    ctx.save_for_backward(tokens, valid, *parameters, *state)
    ctx.heads, ctx.wants_tokens = heads, tokens.requires_grad
    # The backend of the forward pass runs the backward pass too.
    ctx.backend = chosen("token_mask", backend, tokens)


def _backward(ctx, _mask, _importance, grad_context, grad_penalty, *_state) -> dict:
    tokens, valid, *others = ctx.saved_tensors
    count = len(Parameters._fields)
    grad_tokens, *gradients = masking_backward.in_backward(
        ctx,
        grad_context,
        grad_penalty,
        tokens,
        valid,
        Parameters(*others[:count]),
        TokenState(*others[count:]),
        ctx.heads,
        ctx.wants_tokens,
        ctx.backend,
    )
    return {"tokens": grad_tokens if ctx.wants_tokens else None, "parameters": gradients}


masking = Operation(
    "token_masking",
    {
        "tokens": Tensor,
        "valid": Tensor | None,
        "parameters": Parameters,
        "choice": Choice,
        "weighting": Weighting,
        "draw": Draw,
        "heads": int,
        "visible": bool,
        "keep": bool,
        "backend": str,
    },
    {
        "mask": Tensor,
        "importance": Tensor,
        "context": Tensor,
        "penalty": Tensor,
        "state": TokenState,
    },
    _run,
    _fake,
    save=_save,
    backward=_backward,
    differentiable=("tokens", "parameters"),
)
"""Mask, importance, context and penalty of a batch of cells, then the state of the gradient;
differentiable in the tokens and the parameters, which are of one dtype, float32 or better.
"""
