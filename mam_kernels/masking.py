"""Multinomial Attention Masking as a PyTorch module: the masking step.

Method: Naziri, Asgari, An, Sachlos and Seyyed-Kalantari, "Multinomial Attention Masking", PMLR
333:295-311, 2026.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from . import functional
from ._core import checks
from ._core.dispatch import requested
from ._core.registration import refuse_compiled_transforms
from .ops.latent_attention.ops import attention_logsumexp, latent_attention, token_mask
from .ops.selection.ops import draw_latents
from .ops.value_attention.ops import take_apart
from .ops.value_attention.step import scalar_masking

CONTEXTS = ("all", "visible")


class MaskingOutput(NamedTuple):
    """What one masking step returns."""

    mask: Tensor  #: (B, L) bool, True = hidden
    importance: (
        Tensor  #: (B, L) float32: attention summed over heads and the drawn latents; no gradient
    )
    context: Tensor  #: (B, Dz): mean over the latents of the attended output; differentiable
    #: scalar: mean over cells of the squared norm of the attended output; differentiable
    penalty: Tensor


# By this name an exported program that returns it is saved and loaded.
_pytree._register_namedtuple(MaskingOutput, serialized_type_name="mam_kernels.MaskingOutput")


class _Options(NamedTuple):
    """What a call may say besides its tokens; as the arguments of
    ``MultinomialAttentionMasking.forward``.
    """

    valid: Tensor | None
    maskable: Tensor | None
    num_masked: int | Tensor | None
    seed: int | Tensor | None
    step: int | Tensor
    sample_ids: Tensor | None
    latents: Tensor | None


class _Prepared(NamedTuple):
    """The same, checked."""

    valid: Tensor | None  # (B, L) bool
    maskable: Tensor | None  # (B, L) bool, only where valid
    num_masked: Tensor | None  # k: (B,) int32; None: by the ratio
    draw: checks.Draw
    chosen: Tensor | None  # R: (|R|,) int64; None: to be drawn


class _TokenProjection(torch.autograd.Function):
    """``tokens @ weight.T`` whose gradient ignores what stands in the padding.

    The products of padded rows are never used, so the gradient that arrives for them is 0; but 0 *
    NaN is NaN, and the padding may hold NaN. Zeroing the padding here, in the backward pass alone,
    spares the forward pass a copy of its input.
    """

    @staticmethod
    def forward(tokens: Tensor, weight: Tensor, valid: Tensor | None) -> Tensor:
        return F.linear(tokens, weight)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        tokens, weight, valid = ctx.saved_tensors
        grad_tokens = gradient @ weight if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            kept = tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)
            grad_weight = gradient.flatten(0, 1).T @ kept.flatten(0, 1)
        return grad_tokens, grad_weight, None


class MultinomialAttentionMasking(nn.Module):
    """Learn which genes to hide: trainable latents attend over a cell's tokens, and attention is
    the probability of being hidden.

    For a cell with tokens projected to ``Dz``, multi-head attention of the latents gives weights
    ``A (H, N, L)`` and outputs ``O (N, Dz)``. A random subset ``R`` of the latents is drawn once a
    call; the importance of a position is ``s_l = sum_{n in R, h} A[h, n, l]``; ``k`` positions are
    drawn without replacement in proportion to ``(s_l + eps) ** (1 / temperature)`` and hidden. The
    context is the mean of ``O`` over the latents. The mask carries no gradient: what trains the
    latents is the context, injected by ``ContextInjection``, and the penalty.

    Neither ``A`` nor, for scalar values, the projected tokens or ``O`` are ever stored (see
    ``value_attention/README.md``). The parameters are those of ``torch.nn.Linear`` and
    ``torch.nn.MultiheadAttention``, by the same names and shapes.

    Args:
        input_dim: None for scalar values (B, L) or sparse CSR (B, G); ``D`` for embeddings (B, L,
            D).
        latent_dim: ``Dz``, the width of the latents.
        num_latents: ``N``.
        num_heads: ``H``; divides ``latent_dim``.
        mask_ratio: in [0, 1]: ``k = floor(mask_ratio * n)`` of a cell's ``n`` maskable positions.
        latent_fraction: in [0, 1]: ``|R| = max(1, floor(N * latent_fraction))``. None:
            ``mask_ratio``, as published.
        temperature: > 0; 1 is the published method, smaller is sharper.
        context_from: "all", as published: the context is computed before the masking and carries
            something of the hidden values; "visible": it is computed from what is left, so nothing
            leaks.
        eps: > 0, added to the importance.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(
        self,
        input_dim: int | None = None,
        latent_dim: int = 256,
        num_latents: int = 128,
        num_heads: int = 8,
        mask_ratio: float = 0.3,
        latent_fraction: float | None = None,
        temperature: float = 1.0,
        context_from: str = "all",
        eps: float = 1e-8,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = None if input_dim is None else checks.require_count("input_dim", input_dim)
        self.latent_dim = checks.require_count("latent_dim", latent_dim)
        self.num_latents = checks.require_count("num_latents", num_latents)
        self.num_heads = checks.require_count("num_heads", num_heads)
        if latent_dim % num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of latent_dim = {latent_dim}; got {num_heads}"
            )
        self.mask_ratio = checks.require_number("mask_ratio", mask_ratio, 0.0, 1.0)
        fraction = mask_ratio if latent_fraction is None else latent_fraction
        self.latent_fraction = checks.require_number("latent_fraction", fraction, 0.0, 1.0)
        # |R|, how many of the latents decide a mask. Kept as an int, which torch.compile takes as
        # it is; from a float that it holds for something that may change, this size would be one
        # too.
        self.num_drawn_latents = min(
            num_latents, max(1, math.floor(num_latents * self.latent_fraction))
        )
        self.temperature = checks.require_number(
            "temperature", temperature, 0.0, 1e6, open_low=True
        )
        self.eps = checks.require_number("eps", eps, 0.0, 1e6, open_low=True)
        if context_from not in CONTEXTS:
            raise ValueError(
                f"context_from: expected one of {', '.join(CONTEXTS)}; got {context_from!r}"
            )
        self.context_from = context_from
        requested(backend)
        self.backend = backend

        self.latents = nn.Parameter(torch.empty(num_latents, latent_dim))
        self.input_proj = nn.Linear(1 if input_dim is None else input_dim, latent_dim)
        # Holds the parameters by the names of the published code; its own forward, which would
        # store the attention, is never called.
        self.cross_attention = nn.MultiheadAttention(latent_dim, num_heads, batch_first=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew: standard normal latents, and torch's own initialisation of the
        rest.
        """
        nn.init.normal_(self.latents)
        self.input_proj.reset_parameters()
        self.cross_attention.out_proj.reset_parameters()
        self.cross_attention._reset_parameters()

    @property
    def head_dim(self) -> int:
        """``d = Dz / H``."""
        return self.latent_dim // self.num_heads

    def extra_repr(self) -> str:
        return (
            f"input_dim={self.input_dim}, latent_dim={self.latent_dim}, num_latents={self.num_latents}, num_heads={self.num_heads}, "
            f"mask_ratio={self.mask_ratio}, latent_fraction={self.latent_fraction}, temperature={self.temperature}, "
            f"context_from={self.context_from!r}, eps={self.eps}, backend={self.backend!r}"
        )

    def forward(
        self,
        tokens: Tensor,
        valid: Tensor | None = None,
        maskable: Tensor | None = None,
        num_masked: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor = 0,
        sample_ids: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> MaskingOutput:
        """One masking step, from tokens to mask.

        Args:
            tokens: (B, L) values or sparse CSR (B, G), whose missing entries are zeros that take
                part; with ``input_dim`` (B, L, D) embeddings. Floating point. Embeddings may
                require a gradient, values may not.
            valid: (B, L) bool, True where there is a real token: those are attended to. None:
                everywhere.
            maskable: (B, L) bool, True where a token may be hidden; only valid ones ever are. None:
                ``valid``.
            num_masked: ``k``, an int or integers (B,), in place of ``floor(mask_ratio * n)``.
            seed: an int, an integer tensor of one element, or None for one from torch's generator
                of the device.
            step: an int in [0, 2**32) or an integer tensor of one element. The mask is a function
                of (seed, step, sample id).
            sample_ids: (B,) integers, 32 bits, a stable id of each cell. None: the index of the
                row.
            latents: int64 ``(|R|,)``, to fix the subset ``R``; None draws it.

        Returns:
            ``MaskingOutput(mask, importance, context, penalty)``. A cell without valid tokens:
            nothing hidden, importance 0, and the context of an attended output that is 0 before the
            output projection.

        Raises:
            TypeError, ValueError: an argument is not as above; ``BackendUnavailableError`` if the
                named backend cannot run.
        """
        options = _Options(valid, maskable, num_masked, seed, step, sample_ids, latents)
        refuse_compiled_transforms()
        return (
            self._mask_values(tokens, options)
            if self.input_dim is None
            else self._mask_tokens(tokens, options)
        )

    def _prepare(
        self, data: Tensor, rows: int, positions: int, options: _Options, *, ints: bool = False
    ) -> _Prepared:
        device = data.device
        checks.require_device("tokens", data, self.latents.device, "the module")
        valid = checks.require_flags("valid", options.valid, rows, positions, device)
        maskable = checks.require_flags("maskable", options.maskable, rows, positions, device)
        if maskable is None:
            maskable = valid
        elif valid is not None:
            maskable = maskable & valid
        counts, chosen = options.num_masked, options.latents
        if counts is not None:
            counts = checks.row_counts("num_masked", counts, rows, positions, device)
        if chosen is not None:
            chosen = checks.indices("latents", chosen, self.num_latents, device)
        draw = checks.draw_source(
            options.seed, options.step, options.sample_ids, rows, device, ints=ints
        )
        return _Prepared(valid, maskable, counts, draw, chosen)

    def _decided(
        self, data: Tensor, rows: int, positions: int, prepared: _Prepared, backend: str
    ) -> tuple[Tensor, Tensor]:
        """``k`` of every row and ``R``: those given, or by the ratio and drawn."""
        counts, chosen, draw = prepared.num_masked, prepared.chosen, prepared.draw
        if counts is None:
            counts = checks.count_masked(
                self.mask_ratio, prepared.maskable, rows, positions, data.device
            )
        if chosen is None:
            chosen = draw_latents(
                data, self.num_latents, self.num_drawn_latents, draw.seed, draw.step, backend
            )
        return counts, chosen

    # Scalar values

    def _mask_values(self, tokens: Tensor, options: _Options) -> MaskingOutput:
        values = take_apart("tokens", tokens)
        backend = requested(self.backend)
        whole = not self._composed and not functional.required()
        ints = (
            whole and not torch.compiler.is_compiling()
        )  # which would compile a call anew for every seed
        prepared = self._prepare(values.data, values.rows, values.positions, options, ints=ints)
        valid, maskable, counts, draw, chosen = prepared
        if values.crow is None:
            checks.require_finite("tokens", tokens, valid)
        # a tensor may be an input of an autograd.Function only once where that is compiled
        drawn_from = None if maskable is valid else maskable
        visible, positions = self.context_from == "visible", values.positions
        weighting = (self.eps, 1.0 / self.temperature)
        if whole:
            exact = torch.promote_types(
                torch.promote_types(values.data.dtype, torch.float32), self.latents.dtype
            )
            out = scalar_masking(
                *self._scalar_parameters(exact), _cast(self.cross_attention.out_proj.bias, exact),
                values.data, values.crow, values.col, valid, drawn_from, counts, chosen, draw.sample_ids, draw.seed, draw.step,
                self.num_heads, self.num_drawn_latents, self.mask_ratio, *weighting, visible, positions, backend,
            )  # fmt: skip
            return MaskingOutput(*out)
        with torch.autocast(device_type=values.device.type, enabled=False):
            counts, chosen = self._decided(values.data, values.rows, positions, prepared, backend)
            slope, directions, constant = self._scalar_projections(
                torch.promote_types(values.data.dtype, torch.float32)
            )
            out = functional.scalar_masking(
                slope, directions, constant, _cast(self.cross_attention.out_proj.bias, slope.dtype), visible,
                values.data, values.crow, values.col, valid, drawn_from, counts, chosen, draw.sample_ids, draw.seed, draw.step,
                *weighting, positions, backend,
            )  # fmt: skip
            return MaskingOutput(*out)

    _composed = False
    """Whether the step is always made of differentiable operations: for a subclass with a
    ``_scalar_projections`` of its own.
    """

    def _scalar_parameters(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        attention, token = self.cross_attention, self.input_proj
        parameters = (
            self.latents, attention.in_proj_weight, attention.in_proj_bias, token.weight, token.bias, attention.out_proj.weight
        )  # fmt: skip
        checks.require_whole(parameters)
        return tuple(_cast(x, dtype) for x in parameters)

    def _scalar_projections(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes (N, H) in ``dtype``, directions (H, Dz) and constant (Dz,): see
        ``value_attention.collapse.project``.
        """
        parameters = self._scalar_parameters(torch.promote_types(dtype, self.latents.dtype))
        projected = functional.scalar_projections(
            *parameters, self.num_heads, requested(self.backend)
        )
        slope, directions, constant = (_cast(x, dtype) for x in projected)
        return slope, directions, constant

    # Embeddings

    def _mask_tokens(self, tokens: Tensor, options: _Options) -> MaskingOutput:
        checks.require_floating("tokens", tokens, f"(B, L, {self.input_dim})", 3)
        checks.require_shape("tokens", tokens, (None, None, self.input_dim), "(B, L, input_dim)")
        rows, positions, _ = tokens.shape
        backend = requested(self.backend)
        prepared = self._prepare(tokens, rows, positions, options)
        valid, maskable, _, draw, _ = prepared
        counts, chosen = self._decided(tokens, rows, positions, prepared, backend)
        checks.require_finite("tokens", tokens, valid)
        scale = self.head_dim**-0.5
        weighting = (self.eps, 1.0 / self.temperature, scale)
        query, key, value, value_bias = self._project_tokens(tokens, valid)
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            if self.context_from == "all":
                output, logsumexp = latent_attention(
                    query, key, value, valid=valid, scale=scale, backend=self.backend
                )
                mask, importance = token_mask(
                    query,
                    key,
                    logsumexp,
                    chosen,
                    valid,
                    maskable,
                    counts,
                    draw,
                    *weighting,
                    backend,
                )
                attended = valid
            else:
                drawn = query.detach()[chosen]
                logsumexp = attention_logsumexp(drawn, key, valid, scale, backend)
                every = torch.arange(chosen.shape[0], device=chosen.device)
                mask, importance = token_mask(
                    drawn, key, logsumexp, every, valid, maskable, counts, draw, *weighting, backend
                )
                attended = _visible(mask, valid)
                output, _ = latent_attention(
                    query, key, value, valid=attended, scale=scale, backend=self.backend
                )
            context, penalty = self._token_context(output, value_bias, attended, positions)
        return MaskingOutput(mask, importance, context, penalty)

    def _project_tokens(
        self, tokens: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """query (N, H, d), key and value (B, L, H, d), and the bias of the values (Dz,).

        The two projections of a token are one: ``K = X (W_k W_p)^T``. The bias of the keys adds the
        same to every score of a query, so it cancels in the softmax; that of the values is added to
        the attended output, since attention sums to 1.
        """
        attention = self.cross_attention
        checks.require_whole(
            (
                self.latents,
                attention.in_proj_weight,
                self.input_proj.weight,
                attention.out_proj.weight,
            )
        )
        device = tokens.device.type
        compute = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        )
        exact = torch.promote_types(compute, torch.float32)
        with torch.autocast(device_type=device, enabled=False):
            query_weight, token_weight = attention.in_proj_weight.tensor_split(
                (self.latent_dim,)
            )  # (Dz, Dz), (2 Dz, Dz)
            query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
            query = F.linear(
                self.latents.to(exact), query_weight.to(exact), query_bias.to(exact)
            ).to(compute)
            folded = (token_weight.to(exact) @ self.input_proj.weight.to(exact)).to(
                compute
            )  # (2 Dz, D)
            project = (
                functional.token_projection if functional.required() else _TokenProjection.apply
            )
            both = project(tokens.to(compute), folded, valid)
            key, value = both.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(dim=2)
            bias = token_weight[self.latent_dim :].to(exact) @ self.input_proj.bias.to(
                exact
            ) + value_bias.to(exact)
        return query.unflatten(-1, (self.num_heads, self.head_dim)), key, value, bias

    def _token_context(
        self, output: Tensor, value_bias: Tensor, attended: Tensor | None, positions: int
    ) -> tuple[Tensor, Tensor]:
        """``O = (output + b_v) W_o^T + b_o``, the bias of the values only where a cell has tokens;
        its mean and mean squared norm.
        """
        concatenated = output.flatten(2).to(value_bias.dtype)  # (B, N, Dz)
        if attended is None:
            concatenated = concatenated + value_bias * float(positions > 0)
        else:
            concatenated = concatenated + value_bias * attended.any(dim=1)[:, None, None]
        projection = self.cross_attention.out_proj
        projected = F.linear(
            concatenated,
            projection.weight.to(value_bias.dtype),
            projection.bias.to(value_bias.dtype),
        )
        return projected.mean(dim=1), projected.square().sum() / max(projected.shape[0], 1)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, which costs a call of its own even where there is nothing to do; at a batch
    of one, such calls are what is left.
    """
    return x if x.dtype == dtype else x.to(dtype)


def _visible(mask: Tensor, valid: Tensor | None) -> Tensor:
    return ~mask if valid is None else valid & ~mask
