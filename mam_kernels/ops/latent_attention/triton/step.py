"""The masking step of embeddings: mask, context and penalty, and its gradient. See README.md of the
operation.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Choice, Draw, Parameters, TokenState, Weighting
from ...selection.triton import draw_latents
from . import gradient, gradient_by_blocks
from .context import attended_gradient, context_and_penalty, projected_gradient
from .importance import mask
from .launches import held
from .plan import plan
from .positions import Positions
from .prepare import prepare
from .projection import Keep, attend


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, TokenState]:
    """Mask (B, L), importance (B, L), context (B, Dz), penalty, and what the gradient needs.

    Args:
        tokens: (B, L, D), in the type that is computed in. Padding may hold anything.
        valid: (B, L) bool; None: everywhere.
        parameters: in any floating type.
        heads: ``H``.
        choice, weighting, draw: see ``_core.call``.
        visible: whether the context is of what the mask leaves.
        keep: whether a gradient will be asked for, for which keys and values are kept.
    """
    given, tokens = tokens.dtype, held(tokens)
    batch, num_positions, _ = tokens.shape
    valid = None if valid is None else valid.contiguous()
    maskable = valid if choice.maskable is None else choice.maskable.contiguous()
    with launch.on(tokens.device):
        counted = None
        if choice.num_masked is None:
            counted = (batch, num_positions, maskable, choice.mask_ratio)
        query, folded, value_bias, counts = prepare(parameters, heads, tokens.dtype, counted)
        chosen = choice.latents
        if chosen is None:
            chosen = draw_latents(query.shape[0], choice.num_drawn, draw, tokens.device)
        decision = choice._replace(
            maskable=maskable,
            num_masked=choice.num_masked if counts is None else counts,
            latents=chosen,
        )
        scale, everywhere = query.shape[-1] ** -0.5, Positions.of(valid, None)
        attend_to = functools.partial(
            attend, tokens, folded=folded, fused=plan(query, tokens) is not None
        )
        keeping = Keep.BOTH if keep else Keep.KEYS
        if visible:  # only the latents that decide are computed for the mask
            deciding = query[chosen]
            decision = decision._replace(latents=torch.arange(len(chosen), device=chosen.device))
            before = attend_to(
                deciding, positions=everywhere, kept=None, keep=keeping, with_output=False
            )
            parts = (deciding, before.keys, before.logsumexp, valid, scale)
            hidden, importance = mask(*parts, decision, weighting, draw)
            positions = Positions.of(valid, hidden)
            of = attend_to(
                query, positions=positions, kept=before.kept, keep=Keep.BOTH if keep else None,
                with_output=True,
            )  # fmt: skip
        else:
            positions = None
            of = attend_to(query, positions=everywhere, kept=None, keep=keeping, with_output=True)
            parts = (query, of.keys, of.logsumexp, valid, scale)
            hidden, importance = mask(*parts, decision, weighting, draw)
        context, penalty = context_and_penalty(of.output, of.logsumexp, parameters, value_bias)
    nothing = tokens.new_empty(0, dtype=given)
    state = TokenState(
        of.output.to(given),
        of.logsumexp,
        of.kept.to(given) if keep else nothing,
        nothing.bool() if positions is None else positions.flags,
    )
    return hidden, importance, context, penalty, state


def step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    tokens: Tensor,
    valid: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: TokenState,
    wants_tokens: bool,
) -> tuple[Tensor | None, Parameters]:
    """Gradients of the tokens (None unless ``wants_tokens``) and of the parameters, in their
    types.
    """
    given, exact = tokens.dtype, torch.float32
    tokens = held(tokens)
    attended, logsumexp = held(state.attended), state.logsumexp
    batch, _, num_heads, head_width = attended.shape
    num_positions, width = tokens.shape[1], num_heads * head_width
    live = state.visible if state.visible.dim() == 2 else valid
    live = None if live is None else live.contiguous()
    with launch.on(tokens.device):
        query, folded, value_bias, _ = prepare(parameters, heads, tokens.dtype, None)
        grad_projected = projected_gradient(
            grad_context, grad_penalty, attended, logsumexp, parameters, value_bias
        )
        tile = gradient.one_pass(query)
        one_pass = tile is not None
        if not one_pass:
            tile = gradient_by_blocks.tile_of(query)
        grad_attended, statistics = attended_gradient(
            grad_projected, attended, logsumexp, parameters.out_weight, tile
        )
        kept = held(state.keys_values)
        if kept.dim() == 1:
            kept = F.linear(tokens, folded).unflatten(-1, (2, num_heads, head_width))
        # Side by side where the kernel can write them so.
        shape = (batch, num_positions, num_heads, head_width)
        grad_kept = kept.new_empty((*shape[:2], 2, *shape[2:]) if one_pass else (2, *shape))
        run = gradient.run_one_pass if one_pass else gradient_by_blocks.run
        partial = run(
            grad_attended, statistics, query, *kept.unbind(dim=2), live,
            *grad_kept.unbind(dim=2 if one_pass else 0), head_width**-0.5, tile,
        )  # fmt: skip
    grad_query = partial.sum(dim=0).flatten(1)  # (N, Dz)
    if not one_pass:
        grad_kept = grad_kept.movedim(0, 2)
    grad_kept = grad_kept.reshape(batch * num_positions, 2 * width)
    grad_tokens = None
    if wants_tokens:
        grad_tokens = (grad_kept @ folded).view(tokens.shape).to(given)
    there = tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)
    grad_folded = (grad_kept.T @ there.reshape(-1, tokens.shape[-1])).to(exact)

    # From here on everything has the size of the parameters.
    latents, in_weight, _, token_weight, token_bias, out_weight, _ = (
        x.to(exact) for x in parameters
    )
    query_weight, token_side = in_weight.tensor_split((width,))
    summed = grad_projected.sum(dim=1, dtype=exact)  # (B, Dz)
    occupied = (logsumexp[:, 0, 0] != -torch.inf).to(exact)
    with_tokens = occupied @ summed
    grad_out_weight = grad_projected.flatten(0, 1).T @ attended.flatten(0, 1).flatten(1)
    grad_out_weight = torch.addr(grad_out_weight.to(exact), with_tokens, value_bias)
    grad_value_bias = with_tokens @ out_weight
    grad_token_side = grad_folded @ token_weight.T
    grad_token_side[width:].addr_(grad_value_bias, token_bias)
    nothing = torch.zeros_like(grad_value_bias)  # the bias of the keys cancels in the softmax
    gradients = Parameters(
        latents=grad_query @ query_weight,
        in_weight=torch.cat([grad_query.T @ latents, grad_token_side]),
        in_bias=torch.cat([grad_query.sum(dim=0), nothing, grad_value_bias]),
        token_weight=token_side.T @ grad_folded,
        token_bias=grad_value_bias @ token_side[width:],
        out_weight=grad_out_weight,
        out_bias=summed.sum(dim=0),
    )
    return grad_tokens, Parameters(
        *(x.to(p.dtype) for x, p in zip(gradients, parameters, strict=True))
    )
