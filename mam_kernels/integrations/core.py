"""One masking step in anybody's terms: which positions are hidden, what stands there, what is to be
predicted, and the context.

Every adapter translates a framework's arguments into those of ``MaskingStep``. What True means in a
padding mask is translated in one place, ``real_tokens``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core import checks
from ..corruption import corruption_shares, draw_outcomes
from ..injection import Injection
from ..masking import MultinomialAttentionMasking
from ..strategies import Masking, masking_entropy
from .parameter_groups import parameter_groups

PENALTY = 1e-5
"""The published weight of ``MaskedBatch.penalty`` in a loss."""

CORRUPTION_STREAM = 2
"""Of the random bits: 0 and 1 are those of the positions and of the latents."""


class MaskedBatch(NamedTuple):
    """What a masking step makes of a batch."""

    # (B, L), of the type of the inputs: with the mask value, or a random one, at hidden positions
    inputs: Tensor
    labels: (
        Tensor  # (B, L), likewise: what is true at hidden positions, the value to ignore elsewhere
    )
    mask: Tensor  # (B, L) bool, True = hidden: where a loss is computed
    importance: (
        Tensor  # (B, L) float32 >= 0: what positions were drawn in proportion to; no gradient
    )
    encoder_shift: (
        Tensor | None
        # (B, 1, De): the context, to be added to every token of the encoder; None: the scheme adds
        # nothing
    )
    decoder_shift: Tensor | None  # (B, 1, De), of the decoder
    # scalar, before its weight: mean over cells of the squared norm of the latents' output
    penalty: Tensor

    @contextmanager
    def injected(
        self, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> Iterator[None]:
        """While active, the context is added to the first argument of ``encoder`` and of
        ``decoder``, each time they are called.

        Args:
            encoder: the model's stack of encoder layers, whose first argument is the token
                embeddings (B, L, De); None where the scheme adds nothing to the encoder.
            decoder: the same of a decoder.

        Raises:
            ValueError: the scheme adds the context where no module is given, or does not where one
                is; or the first argument of a module is not (B, L, De).
            RuntimeError: a module was not called, so the context reached nothing.
        """
        hooks = []
        for name, module, shift in (
            ("encoder", encoder, self.encoder_shift),
            ("decoder", decoder, self.decoder_shift),
        ):
            if (module is None) != (shift is None):
                there = "nothing to add" if shift is None else "a context to add"
                raise ValueError(
                    f"{name}: expected {'None' if shift is None else 'a module'}, as the scheme has {there}; got {module}"
                )
            if module is not None:
                hooks.append(_ContextHook.of(module))
                hooks[-1].name, hooks[-1].shift, hooks[-1].called = name, shift, False
        try:
            yield
        finally:
            for hook in hooks:
                hook.shift = None
        for hook in hooks:
            if not hook.called:
                raise RuntimeError(
                    f"{hook.name}: its module was not called while the context was injected; name the one that the model runs, and where"
                    " the model was compiled before its first injection, call torch.compiler.reset()"
                )


class _ContextHook:
    """A forward pre-hook that adds ``shift`` to the first argument, and does nothing while that is
    None.

    It stays with its module: torch.compile does not notice hooks that come and go.
    """

    def __init__(self) -> None:
        self.name, self.shift, self.called = "", None, False

    @classmethod
    def of(cls, module: nn.Module) -> "_ContextHook":
        """The hook of a module, which is given one the first time."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, cls):
                return hook
        hook = cls()
        module.register_forward_pre_hook(hook, with_kwargs=True)
        return hook

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        shift = self.shift
        if shift is None:
            return None
        tokens = args[0] if args else None
        if (
            not isinstance(tokens, Tensor)
            or tokens.dim() != 3
            or (tokens.shape[0], tokens.shape[2]) != (shift.shape[0], shift.shape[2])
        ):
            wanted = f"({shift.shape[0]}, L, {shift.shape[2]})"
            got = (
                checks.describe(tokens)
                if isinstance(tokens, Tensor)
                else f"{type(tokens).__name__} by position"
            )
            raise ValueError(
                f"{self.name}: expected a module whose first argument is token embeddings {wanted}; got {got}"
            )
        self.called = True
        return (tokens + shift.to(tokens.dtype), *args[1:]), kwargs


class MaskingStep(nn.Module):
    """From a batch to what a model reads and predicts, by the engine's latents.

    A mask is a function of (seed, step, sample id). Without a ``step``, training counts its calls,
    in a buffer that checkpoints hold, so that a resumed training hides the same; evaluation takes
    step 0, the same masks each time.

    Args:
        masker: the engine's module; how many positions are hidden, and how sharply, is set there.
        mask_value: what stands at a hidden position: the id of the mask token, or a value that no
            gene has.
        ignore_value: of ``labels`` where nothing is hidden.
        corruption: one of ``mam_kernels.corruption.CORRUPTIONS``, or the shares of mask token and
            random value; the rest is unchanged.
        random_ids: what random values are taken from, each as likely; None: the non-zero values of
            the same cell.
        embed_dim: ``De``, the width of the model's token embeddings, of the encoder where the
            decoder differs.
        decoder_dim: of the decoder; None: the same.
        scheme: where the context is added: "encoder", "decoder", "both", "separate", or "none".
        injection_start: first weights of its adapters, "random" or "zero".
        seed: of the masks; None: one from torch's generator for each call.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(
        self,
        masker: MultinomialAttentionMasking,
        *,
        mask_value: float,
        embed_dim: int,
        ignore_value: float = -100,
        corruption: str | tuple[float, float] = "all",
        random_ids: Iterable[int] | None = None,
        decoder_dim: int | None = None,
        scheme: str = "encoder",
        injection_start: str = "random",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.masker = masker
        self.injection = (
            None
            if scheme == "none"
            else Injection(
                masker.latent_dim,
                embed_dim,
                decoder_dim or embed_dim,
                scheme,
                start=injection_start,
            )
        )
        self.mask_value, self.ignore_value = mask_value, ignore_value
        self.shares = corruption_shares(corruption)
        self.seed = seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.random_ids = None if random_ids is None else _IdSet(random_ids)

    @property
    def device(self) -> torch.device:
        """Of the module, and of the batches it takes."""
        return self.masker.latents.device

    def extra_repr(self) -> str:
        return f"mask_value={self.mask_value}, ignore_value={self.ignore_value}, shares={self.shares}, seed={self.seed}"

    def forward(
        self,
        inputs: Tensor,
        tokens: Tensor,
        valid: Tensor,
        *,
        maskable: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a batch.

        Args:
            inputs: (B, L), what the model reads at each position: token ids, bins or values.
            tokens: (B, L) float values or (B, L, D) embeddings, which the latents attend to.
            valid: (B, L) bool, True where there is a gene, neither padding nor a special token:
                what latents attend to.
            maskable: (B, L) bool, the genes that may be hidden; None: all.
            seed, step: ints or integer tensors of one element. None: those of the module.
            sample_ids: (B,) integers, a stable id of each cell. None: the index of the row.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        draw = self._draw(inputs, seed, step, sample_ids)
        masking = self.select(tokens, valid, maskable, draw)
        encoder_shift, decoder_shift = (
            (None, None) if self.injection is None else self.injection(masking.context)
        )
        corrupted = self._corrupt(inputs, masking.mask, valid, draw)
        labels = inputs.masked_fill(~masking.mask, self.ignore_value)
        return MaskedBatch(
            corrupted,
            labels,
            masking.mask,
            masking.importance,
            encoder_shift,
            decoder_shift,
            masking.penalty,
        )

    def select(
        self, tokens: Tensor, valid: Tensor, maskable: Tensor | None, draw: checks.Draw
    ) -> Masking:
        """Which positions are hidden."""
        out = self.masker(
            tokens, valid, maskable, seed=draw.seed, step=draw.step, sample_ids=draw.sample_ids
        )
        drawable = valid if maskable is None else valid & maskable
        return Masking(out.mask, out.importance * drawable, out.context, out.penalty)

    def entropy(self, masked: MaskedBatch) -> Tensor:
        """Of the distribution that positions were drawn from, over the logarithm of their number: 1
        is uniform masking. Scalar.
        """
        return masking_entropy(
            Masking(masked.mask, masked.importance, None, None),
            self.masker.eps,
            self.masker.temperature,
        )

    def tokens(self, values: Tensor, embeddings: Tensor | None) -> Tensor:
        """What the latents attend to: the values, or the embeddings where ``masker.input_dim`` is
        theirs.
        """
        if self.masker.input_dim is None and embeddings is None:
            return values
        if self.masker.input_dim is None or embeddings is None:
            expected = (
                "None" if self.masker.input_dim is None else f"(B, L, {self.masker.input_dim})"
            )
            raise ValueError(
                f"embeddings: expected {expected}, as input_dim of the masker says; got {checks.describe(embeddings)}"
            )
        return embeddings

    def parameter_groups(
        self,
        model: nn.Module,
        lr: float,
        masking_lr: float,
        weight_decay: float = 0.0,
        masking_weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Two groups for an optimizer: "model", the parameters of ``model`` that are not of this
        module, and "masking", those of this.
        """
        both = nn.ModuleDict(
            {"model": model, "masking": self}
        )  # a parameter of both is named by the first
        ours = {id(parameter) for parameter in self.parameters()}
        names = {name for name, parameter in both.named_parameters() if id(parameter) in ours}
        return parameter_groups(both, names, lr, masking_lr, weight_decay, masking_weight_decay)

    def _draw(
        self,
        inputs: Tensor,
        seed: int | Tensor | None,
        step: int | Tensor | None,
        sample_ids: Tensor | None,
    ) -> checks.Draw:
        if step is None:
            step = self.steps.clone() if self.training else 0
            if self.training:
                self.steps += 1
        draw = checks.draw_source(
            self.seed if seed is None else seed, step, sample_ids, len(inputs), inputs.device
        )
        ids = (
            torch.arange(len(inputs), device=inputs.device)
            if draw.sample_ids is None
            else draw.sample_ids
        )
        return draw._replace(sample_ids=ids)

    def _corrupt(self, inputs: Tensor, mask: Tensor, valid: Tensor, draw: checks.Draw) -> Tensor:
        if self.shares[0] == 1.0:
            return inputs.masked_fill(mask, self.mask_value)
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        ids = draw.sample_ids[:, None]
        token, wrong, which = draw_outcomes(
            self.shares, positions, ids, seed=draw.seed, step=draw.step, stream=CORRUPTION_STREAM
        )
        if self.shares[1] > 0:
            inputs = torch.where(mask & wrong, self._random_values(inputs, valid, which), inputs)
        return inputs.masked_fill(mask & token, self.mask_value)

    def _random_values(self, inputs: Tensor, valid: Tensor, which: Tensor) -> Tensor:
        """(B, L), of ``random_ids`` or of the non-zero genes of the same cell, by the bits
        ``which`` (B, L).
        """
        if self.random_ids is not None:
            return self.random_ids.choose(which).to(inputs.dtype)
        upto = (valid & (inputs != 0)).cumsum(
            dim=1
        )  # the n-th such gene of a cell is where this first exceeds n
        count = upto[:, -1:]
        place = torch.searchsorted(upto, which % count.clamp(min=1), right=True)
        return torch.where(
            count > 0, inputs.gather(1, place.clamp(max=inputs.shape[1] - 1)), inputs
        )


class _IdSet:
    """A set of token ids, from which random bits choose by arithmetic alone: a table would have to
    follow the module to its device.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        ordered = sorted(set(ids))
        if not ordered:
            raise ValueError("random_ids: expected at least one id; got none")
        self.size, self.first = len(ordered), ordered[0]
        steps = (
            (rank, high - low - 1) for rank, (low, high) in enumerate(pairwise(ordered), start=1)
        )
        self.gaps = [
            (rank, gap) for rank, gap in steps if gap
        ]  # from the id of this rank on, so many more are left out

    def choose(self, which: Tensor) -> Tensor:
        """Ids for int64 random bits, each as likely but for the remainder of 2**32."""
        rank = which % self.size
        ids = rank + self.first
        for start, gap in self.gaps:
            ids = ids + gap * (rank >= start)
        return ids


def real_tokens(name: str, mask: Tensor | None, inputs: Tensor, *, true_means: str) -> Tensor:
    """Where there is a token and no padding, from a framework's padding mask.

    Args:
        name: of the mask in the framework, for messages.
        mask: (B, L), bool or integers 0 and 1. None: no padding.
        inputs: (B, L), for shape and device.
        true_means: what True, or 1, stands for: "token" or "padding".

    Returns:
        (B, L) bool, True = token.

    Raises:
        TypeError, ValueError: a mask is not as above; or (on the CPU, and inside
            ``mam_kernels.check_values``) it holds other numbers, or a row that is all padding.
    """
    require_meaning(true_means)
    if mask is None:
        return torch.ones_like(inputs, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, *checks.INTEGERS):
        raise TypeError(
            f"{name}: expected a bool or integer tensor of shape {tuple(inputs.shape)}; got {checks.describe(mask)}"
        )
    checks.require_shape(name, mask, inputs.shape, "(B, L)")
    checks.require_device(name, mask, inputs.device, "the batch")
    if (
        values_are_looked_at(mask)
        and mask.dtype != torch.bool
        and bool(((mask != 0) & (mask != 1)).any())
    ):
        raise ValueError(f"{name}: expected 0 and 1; got values from {mask.min()} to {mask.max()}")
    valid = mask.bool() if true_means == "token" else ~mask.bool()
    require_any(name, valid, f"a token ({1 if true_means == 'token' else 0})")
    return valid


def require_meaning(true_means: str) -> None:
    """One of the two things that True stands for in padding masks."""
    if true_means not in ("token", "padding"):
        raise ValueError(f"true_means: expected token or padding; got {true_means!r}")


def require_ids(name: str, ids: Tensor, vocab_size: int, device: torch.device) -> None:
    """Integers (B, L) on the model's device and in [0, vocab_size); the range is looked at as in
    ``real_tokens``.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{name}: expected an int64 or int32 tensor of shape (B, L); got {checks.describe(ids)}"
        )
    checks.require_shape(name, ids, (None, None), "(B, L)")
    checks.require_device(name, ids, device, "the model")
    if (
        values_are_looked_at(ids)
        and ids.numel()
        and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size)
    ):
        raise ValueError(
            f"{name}: expected ids in [0, {vocab_size}), the vocabulary; got ids from {int(ids.min())} to {int(ids.max())}"
        )


def require_any(name: str, flags: Tensor, what: str) -> None:
    """At least one True in each row of ``flags`` (B, L); looked at as in ``real_tokens``."""
    if values_are_looked_at(flags) and not bool(flags.any(dim=1).all()):
        row = int((~flags.any(dim=1)).nonzero()[0])
        raise ValueError(f"{name}: expected {what} in each row; got none in row {row}")


def not_among(ids: Tensor, special_ids: Iterable[int]) -> Tensor:
    """(B, L) bool, True where an id is none of these."""
    other = torch.ones_like(ids, dtype=torch.bool)
    for special in special_ids:
        other = other & (ids != special)
    return other


def require_values(name: str, values: Tensor, device: torch.device) -> None:
    """Floating-point values (B, L) on the device of the module."""
    checks.require_floating(name, values, "(B, L)", 2)
    checks.require_device(name, values, device, "the module")


def values_are_looked_at(x: Tensor) -> bool:
    """Whether looking at values costs little: on the CPU, or where it was asked for."""
    return checks.values_are_checked() or (
        x.device.type == "cpu" and not torch.compiler.is_compiling()
    )
