"""Multinomial Attention Masking as a PyTorch module: the masking step.

Method: Naziri, Asgari, An, Sachlos and Seyyed-Kalantari, "Multinomial Attention Masking", PMLR
333:295-311, 2026.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from . import effective_weights
from ._core import checks
from ._core.call import WITH_THE_REST, Choice, Parameters, Weighting
from ._core.describing import shortened
from ._core.dispatch import named
from ._core.precision import autocast_dtype, without_autocast
from .ops.latent_attention import composed as token_path
from .ops.latent_attention.step import masking as mask_tokens
from .ops.value_attention import collapse
from .ops.value_attention.step import masking as mask_values

CONTEXTS = ("all", "visible")
INITIALISATIONS = ("standard", "published")


class MaskingOutput(NamedTuple):
    """The result of a masking step."""

    #: (B, L) bool, True = hidden
    mask: Tensor
    #: (B, L) float32: attention summed over heads and the drawn latents; no gradient
    importance: Tensor
    #: (B, Dz): mean over the latents of the attended output; differentiable
    context: Tensor
    #: scalar: mean over cells of the squared norm of the attended output; differentiable
    penalty: Tensor


# By this name an exported program that returns it is saved and loaded.
_pytree._register_namedtuple(MaskingOutput, serialized_type_name="mam_kernels.MaskingOutput")


class MultinomialAttentionMasking(nn.Module):
    """Learn which genes to hide: trainable latents attend over a cell's tokens, and attention is
    the probability of being hidden.

    For a cell with tokens projected to ``Dz``, multi-head attention of the latents gives weights
    ``A (H, N, L)`` and outputs ``O (N, Dz)``. A random subset ``R`` of the latents is drawn once a
    call; the importance of a position is ``s_l = sum_{n in R, h} A[h, n, l]``; ``k`` positions are
    drawn without replacement in proportion to ``(s_l + eps) ** (1 / temperature)`` and hidden. The
    context is the mean of ``O`` over the latents. The mask carries no gradient: the latents are
    trained by the context, injected by ``ContextInjection``, and by the penalty.

    Neither ``A`` nor, for scalar values, the projected tokens or ``O`` are ever stored (see
    ``value_attention/README.md``). The parameters are those of ``torch.nn.Linear`` and
    ``torch.nn.MultiheadAttention``, by the same names and shapes.

    The submodules are never called; their weights are read. ``torch.nn.utils.parametrize`` works
    on each. ``input_proj`` and ``cross_attention.out_proj`` may be replaced by a module that is
    affine, such as a linear layer with LoRA, or carry ``torch.nn.utils.weight_norm``: the weights
    are found by applying it to the unit vectors, at the cost of one call on ``2 D + 1`` rows.
    Whatever else would change their forward pass (hooks, a module that is not affine, another
    ``cross_attention``) is refused by name.

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
        eps: > 0, added to the importance; below 2**-100 it counts as 0.
        slope_norm: > 0, for scalar values alone: the slopes, which decide the attention to a value
            ``x`` as ``exp(slope * x)``, are rescaled to a root mean square of ``slope_norm``.
            Training may shrink them until every position is hidden alike; here they can turn and
            trade between the latents, but not vanish. None: as published.
        backend: one of ``mam_kernels.backends()``; None chooses.

    Raises:
        TypeError, ValueError: an argument is not as above, or sizes that cannot be allocated.
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
        slope_norm: float | None = None,
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
        if not isinstance(context_from, str) or context_from not in CONTEXTS:
            raise ValueError(
                f"context_from: expected one of {', '.join(CONTEXTS)}; "
                f"got {shortened(context_from)}"
            )
        self.context_from = context_from
        if slope_norm is not None:
            if input_dim is not None:
                raise ValueError(
                    "slope_norm: expected None with input_dim, since embeddings have no slopes; "
                    f"got {shortened(slope_norm)}"
                )
            slope_norm = checks.require_number("slope_norm", slope_norm, 0.0, 1e6, open_low=True)
        self.slope_norm = slope_norm
        named(backend)
        self.backend = backend

        token_dim = 1 if input_dim is None else input_dim
        try:
            self.latents = nn.Parameter(torch.empty(num_latents, latent_dim))
            self.input_proj = nn.Linear(token_dim, latent_dim)
            # Holds the parameters by the names of the published code; its own forward, which
            # would store the attention, is never called.
            self.cross_attention = nn.MultiheadAttention(latent_dim, num_heads, batch_first=True)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(
                f"latent_dim: expected sizes that can be allocated; got latent_dim={latent_dim}, "
                f"num_latents={num_latents}, input_dim={input_dim}"
            ) from error
        self.reset_parameters()

    def reset_parameters(self, init: str = "standard") -> None:
        """Draw the parameters anew.

        Args:
            init: "standard": standard normal latents, and torch's own initialisation of the rest;
                "published": latents of standard deviation 0.02, Xavier with zero bias for
                ``input_proj``, and torch's own for ``cross_attention``.

        Raises:
            ValueError: ``init`` is something else.
        """
        if not isinstance(init, str) or init not in INITIALISATIONS:
            raise ValueError(
                f"init: expected one of {', '.join(INITIALISATIONS)}; got {shortened(init)}"
            )
        published = init == "published"
        nn.init.normal_(self.latents, std=0.02 if published else 1.0)
        if published:
            nn.init.xavier_uniform_(self.input_proj.weight)
            nn.init.zeros_(self.input_proj.bias)
        else:
            self.input_proj.reset_parameters()
        self.cross_attention.out_proj.reset_parameters()
        self.cross_attention._reset_parameters()

    @property
    def head_dim(self) -> int:
        """``d = Dz / H``."""
        return self.latent_dim // self.num_heads

    def extra_repr(self) -> str:
        names = ("input_dim", "latent_dim", "num_latents", "num_heads", "mask_ratio")
        rest = ("latent_fraction", "temperature", "context_from", "eps", "slope_norm", "backend")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names + rest)

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
        *,
        mask_ratio: float | None = None,
        zero_ratio: float | None = None,
        num_zeros: int | Tensor | None = None,
    ) -> MaskingOutput:
        """One masking step, from tokens to mask.

        Zeros may be drawn apart, each alike: where ``zero_ratio`` or ``num_zeros`` is given. Then
        ``mask_ratio`` and ``num_masked`` are of the values that are not zero, and the importance of
        a zero is 0. The latents attend to all of them.

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
            mask_ratio: in [0, 1], in place of the module's.
            zero_ratio: in [0, 1], of scalar values alone: ``floor(zero_ratio * n)`` of a cell's
                ``n`` zeros that may be hidden are, apart from the rest.
            num_zeros: an int or integers (B,), in place of that.

        Returns:
            ``MaskingOutput(mask, importance, context, penalty)``. A cell without valid tokens:
            nothing hidden, importance 0, and the context of an attended output that is 0 before the
            output projection.

        Raises:
            TypeError, ValueError: an argument is not as above, or a submodule cannot be read;
                ``BackendUnavailableError`` if the named backend cannot run.
            NotImplementedError: forward-mode differentiation.
        """
        if self.input_dim is None:
            cells = checks.require_cells("tokens", tokens, valid)
            data, valid, shape = cells.values, cells.valid, (cells.rows, cells.num_positions)
        else:
            self._require_embeddings(tokens)
            data, shape = tokens, (tokens.shape[0], tokens.shape[1])
            valid = checks.require_flags("valid", valid, *shape, tokens.device)
            checks.require_finite("tokens", tokens, valid)
        held = self.latents
        checks.require_device("tokens", data, held.device, "the module")
        if self.input_dim is not None and not (zero_ratio is None and num_zeros is None):
            given, x = ("zero_ratio", zero_ratio) if num_zeros is None else ("num_zeros", num_zeros)
            raise ValueError(
                f"{given}: expected None with input_dim, since only values have zeros; got "
                f"{shortened(x)}"
            )
        where = (shape, data.device)
        choice = Choice(
            _drawable(maskable, valid, *where),
            *_amount("num_masked", num_masked, "mask_ratio", mask_ratio, self.mask_ratio, *where),
            self._chosen(latents, data.device),
            self.num_drawn_latents,
            *_amount("num_zeros", num_zeros, "zero_ratio", zero_ratio, WITH_THE_REST, *where),
        )
        weighting = Weighting(self.eps, 1.0 / self.temperature)
        draw = checks.draw_source(seed, step, sample_ids, shape[0], data.device)
        parts = (choice, weighting, draw)
        visible, backend = self.context_from == "visible", named(self.backend)
        if self.input_dim is None:
            dtype = torch.promote_types(cells.accumulated, held.dtype)
            options = (self.num_heads, visible, backend)
            results = mask_values(self._read_parameters(dtype), cells, *parts, *options)
        else:
            tokens, parameters = self._computed(tokens)
            # Keys and values are kept only where a gradient may be asked for.
            keep = torch.is_grad_enabled() and any(x.requires_grad for x in (tokens, *parameters))
            results = mask_tokens(
                tokens, valid, parameters, *parts, self.num_heads, visible, keep, backend
            )
        mask, importance, context, penalty, *_ = results
        return MaskingOutput(mask, importance, context, penalty)

    def _require_embeddings(self, tokens: object) -> None:
        shape = f"(B, L, {self.input_dim})"
        found = checks.require_floating("tokens", tokens, shape, 3)
        checks.require_shape("tokens", found, (None, None, self.input_dim), "(B, L, input_dim)")

    def _chosen(self, latents: Tensor | None, device: torch.device) -> Tensor | None:
        if latents is None:
            return None
        return checks.indices("latents", latents, self.num_latents, device)

    def _read_parameters(self, dtype: torch.dtype) -> Parameters:
        """The weights that the module computes with, in ``dtype``; differentiable."""
        latents = self.latents
        in_weight, in_bias, out_proj = effective_weights.attention(
            "cross_attention", self.cross_attention, self.latent_dim, self.num_heads
        )
        token_dim = 1 if self.input_dim is None else self.input_dim
        token_weight, token_bias = effective_weights.linear(
            "input_proj", self.input_proj, token_dim, latents
        )
        out_weight, out_bias = effective_weights.linear(
            "cross_attention.out_proj", out_proj, self.latent_dim, latents
        )
        parameters = Parameters(
            latents,
            in_weight,
            in_bias,
            token_weight,
            token_bias,
            out_weight,
            out_bias,
        )
        checks.require_whole(latents)
        if {x.dtype for x in parameters} != {dtype}:
            parameters = Parameters(*(x.to(dtype) for x in parameters))
        if self.slope_norm is not None:
            with without_autocast(self.latents.device):
                return collapse.with_slope_norm(parameters, self.num_heads, self.slope_norm)
        return parameters

    def _computed(self, tokens: Tensor) -> tuple[Tensor, Parameters]:
        """Tokens in the type of the computation, which is that of autocast where it is on, and the
        parameters in float32 or better.
        """
        tokens = tokens.to(autocast_dtype(tokens))
        return tokens, self._read_parameters(torch.promote_types(tokens.dtype, torch.float32))

    @torch.no_grad()
    def slopes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, H): latent ``n`` and head ``h`` attend to a scalar value ``x`` as
        ``exp(slope * x)``; no gradient.

        Raises:
            ValueError: the module takes embeddings.
        """
        if self.input_dim is not None:
            raise ValueError(
                f"input_dim: expected None, since embeddings have no slopes; got {self.input_dim}"
            )
        parameters = self._read_parameters(torch.promote_types(dtype, self.latents.dtype))
        return collapse.project(parameters, self.num_heads).slope.to(dtype)

    @torch.no_grad()
    def queries_and_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, d) and (B, L, H, d): the attention to embeddings (B, L, D) is the softmax over
        tokens of their products, times ``head_dim ** -0.5``; no gradient.

        Raises:
            TypeError, ValueError: not such embeddings, or the module takes scalar values.
        """
        if self.input_dim is None:
            raise ValueError("input_dim: expected the width of embeddings; got None")
        self._require_embeddings(tokens)
        tokens, parameters = self._computed(tokens)
        query, weight, _ = token_path.fold(parameters, self.num_heads, tokens.dtype)
        return query, token_path.project(tokens, weight, self.num_heads)[:, :, 0]


def _drawable(
    maskable: Tensor | None, valid: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    """The checked positions that may be hidden; None: as valid."""
    # One tensor may be an argument of a compiled operation only once: None is "as valid".
    if maskable is None or maskable is valid:
        return None
    flags = checks.require_flags("maskable", maskable, *shape, device)
    return flags if flags is None or valid is None else flags & valid


def _amount(
    name: str,
    number: int | Tensor | None,
    ratio_name: str,
    ratio: float | None,
    otherwise: float,
    shape: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor | None, float]:
    """How many are hidden: the checked numbers of the rows or None, and the ratio without them."""
    if number is None:
        if ratio is None:
            return None, otherwise
        return None, checks.require_number(ratio_name, ratio, 0.0, 1.0)
    if ratio is not None:
        raise ValueError(
            f"{ratio_name}: expected None where {name} is given; got {shortened(ratio)}"
        )
    return checks.row_counts(name, number, *shape, device), otherwise
