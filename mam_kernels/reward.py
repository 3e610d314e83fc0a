"""A mask with a gradient: latents that learn which positions to hide from the rewards of those that
were hidden.

See ``ops/inclusion/README.md``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._core import checks
from ._core.dispatch import implementation, named
from ._core.precision import without_autocast
from .masking import MaskingOutput, MultinomialAttentionMasking
from .ops.inclusion.reward import reward_gradient
from .ops.latent_attention.composed import fold
from .ops.latent_attention.ops import latent_attention
from .shares import Draw
from .strategies import (
    CellValues,
    EmbeddingAttention,
    Masking,
    MaskingStrategy,
)


def reward_loss(
    masker: MultinomialAttentionMasking,
    tokens: Tensor,
    out: MaskingOutput,
    reward: Tensor,
    *,
    temperature: float = 1.0,
    scored: Tensor | None = None,
    valid: Tensor | None = None,
    maskable: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    latents: Tensor | None = None,
) -> Tensor:
    """A loss that teaches the latents to hide positions of high reward.

    Its gradient is ``-mean over cells of sum_l gradient_l d log w_l``, with ``gradient`` of
    ``reward_gradient`` and the weights ``w = (s + eps) ** (1 / T)`` that the module draws by, ``s``
    the importance. Its value is 0 to rounding. Only attention to the drawn latents is computed
    again, since ``sum_l c_l s_l`` is attention whose values are ``c``.

    Args:
        masker: for embeddings.
        tokens: (B, L, D), those of the call. No gradient reaches them.
        out: what the call returned.
        reward: (B, L), such as the squared error of the prediction at the hidden positions; read
            where ``out.mask`` and ``scored`` are True.
        temperature: of the reward, > 0; see ``reward_gradient``.
        scored: (B, L) bool, True where the reward is known; None: at every hidden position.
        valid, maskable, seed, step, latents: those of the call. ``seed`` or ``latents`` must be
            given, since they say which latents were drawn.

    Returns:
        A scalar, differentiable in the parameters of the module that decide its masks.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    if masker.input_dim is None:
        raise ValueError("masker: expected one for embeddings; got input_dim=None")
    if seed is None and latents is None:
        raise ValueError("seed: expected that of the call, or its latents; got None for both")
    rows, device = len(out.mask), out.mask.device
    drawable = valid if maskable is None else maskable if valid is None else valid & maskable
    sharpness = 1.0 / masker.temperature
    weights = (out.importance + masker.eps) ** sharpness
    counts = out.mask.sum(dim=1)
    gradient = reward_gradient(
        weights,
        out.mask if scored is None else out.mask & scored,
        reward,
        temperature=temperature,
        num_samples=counts,
        valid=drawable,
        backend=masker.backend,
    )
    by_importance = gradient * sharpness / (out.importance + masker.eps)
    with without_autocast(device):
        parameters = masker._read_parameters(torch.float32)
        query, weight, _ = fold(parameters, masker.num_heads, torch.float32)
        key = F.linear(tokens.detach().float(), weight[: masker.latent_dim])
        key = key.unflatten(-1, (masker.num_heads, -1))
        if latents is None:
            draw = checks.draw_source(seed, step, None, rows, device)
            run = implementation("draw_latents", named(masker.backend), key)
            latents = run(masker.num_latents, masker.num_drawn_latents, draw, device)
        value = by_importance.float()[:, :, None, None].expand(key.shape)
        attended, _ = latent_attention(
            query[latents], key, value, valid=valid, backend=masker.backend
        )
        return -attended[..., 0].sum() / max(rows, 1)


def strategy_reward_loss(
    strategy: MaskingStrategy,
    cells: CellValues,
    draw: Draw,
    masking: Masking,
    reward: Tensor,
    *,
    temperature: float = 1.0,
    scored: Tensor | None = None,
) -> Tensor:
    """``reward_loss`` for the latents of a strategy. Positions that it hides without them, such as
    a share of the zeros, do not count.

    Args:
        strategy: an ``EmbeddingAttention``, which decided the mask.
        cells, draw: those of the call.
        masking: what it returned.
        reward: (B, G), read where positions are hidden and ``scored``.
        temperature, scored: as in ``reward_loss``, (B, G).

    Returns:
        A scalar, differentiable in the latents' parameters.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    if not isinstance(strategy, EmbeddingAttention):
        raise TypeError(f"strategy: expected EmbeddingAttention; got {type(strategy).__name__}")
    if masking.importance is None or masking.context is None or masking.penalty is None:
        raise ValueError("masking: expected what the strategy returned; got one without importance")
    drawable = masking.importance > 0
    hidden = masking.mask & drawable
    parts = [hidden, masking.importance, reward, hidden if scored is None else scored, drawable]
    valid = cells.valid
    if masking.attended is not None:
        there, tokens = masking.attended
        valid = there.valid
        parts = [x.gather(1, there.gene_ids) for x in parts]
    elif isinstance(cells.embed, Tensor):
        tokens = cells.embed
    else:
        raise ValueError(
            "cells: expected those of the call, with their embeddings; got others, or a masking"
            " without what it attended to"
        )
    mask, importance, reward, known, drawable = parts
    if valid is not None:  # the padding repeats a position
        mask = mask & valid
    return reward_loss(
        strategy.latents,
        tokens,
        MaskingOutput(mask, importance, masking.context, masking.penalty),
        reward,
        temperature=temperature,
        scored=known,
        valid=valid,
        maskable=drawable,
        seed=draw.seed,
        step=draw.step,
    )
