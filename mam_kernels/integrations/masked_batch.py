"""The result of a masking step on a batch, and how its context reaches a model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .places import ContextHook, Place, module_of, place_of
from .reading import NotReadError, ReadingWatch, is_compiled


class MaskedBatch(NamedTuple):
    """The result of a masking step on a batch."""

    # (B, L), of the type of the inputs: with the mask value, or a random one, at hidden positions
    inputs: Tensor
    # (B, L), likewise: what is true at hidden positions, the value to ignore elsewhere
    labels: Tensor
    mask: Tensor  # (B, L) bool, True = hidden: where a loss is computed
    # (B, L) float32 >= 0: what positions were drawn in proportion to; no gradient
    importance: Tensor
    # (B, 1, De): the context, to be added to every token of the encoder; None: the scheme adds
    # nothing
    encoder_shift: Tensor | None
    decoder_shift: Tensor | None  # (B, 1, De), of the decoder
    # scalar, before its weight: mean over cells of the squared norm of the latents' output
    penalty: Tensor
    # other tensors that were made of ``inputs``, for a model that reads those instead
    derived: tuple[Tensor, ...] = ()

    @contextmanager
    def injected(
        self,
        encoder: nn.Module | Place | None = None,
        decoder: nn.Module | Place | None = None,
    ) -> Iterator[None]:
        """While active, the context is added to the token embeddings of ``encoder`` and of
        ``decoder``, each time they are called.

        The first time, it is seen whether those embeddings were made of the masked inputs; not
        where the module was compiled.

        Args:
            encoder: the model's stack of encoder layers, whose first argument is the token
                embeddings (B, L, De); a ``Place`` names another argument, a key of a dict, another
                layout, or what the module returns. None where the scheme adds nothing to the
                encoder.
            decoder: the same of a decoder.

        Raises:
            TypeError, ValueError: the scheme adds the context where no module is given, or does
                not where one is; or there are no token embeddings at the place.
            NotReadError: the model did not read the masked inputs.
            RuntimeError: a module was not called, so the context reached nothing.
        """
        hooks = []
        for name, place, shift in (
            ("encoder", encoder, self.encoder_shift),
            ("decoder", decoder, self.decoder_shift),
        ):
            if (place is None) != (shift is None):
                there = "nothing to add" if shift is None else "a context to add"
                raise ValueError(
                    f"{name}: expected {'None' if shift is None else 'a module'}, "
                    f"as the scheme has {there}; got {place}"
                )
            if place is not None and shift is not None:
                checked = place_of(name, place)
                hook = ContextHook.of(checked)
                hook.start(name, shift, checked.layout)
                hooks.append((hook, module_of(checked)))
        with ExitStack() as stack:
            watch = self._watch(hooks)
            if watch is not None:
                stack.enter_context(watch)
            try:
                yield
            finally:
                for hook, _ in hooks:
                    hook.stop()
        for hook, _ in hooks:
            if not hook.called:
                raise RuntimeError(
                    f"{hook.name}: its module was not called while the context was injected; name "
                    f"the one that the model runs, and where the model was compiled before its "
                    f"first injection, call torch.compiler.reset()"
                )
        if watch is not None:
            self._require_read([hook for hook, _ in hooks])

    def _watch(self, hooks: list[tuple[ContextHook, nn.Module]]) -> ReadingWatch | None:
        """A watch for the hooks whose inputs were not verified yet; None after the first step."""
        new = [hook for hook, module in hooks if not (hook.verified or is_compiled(module))]
        if not new or torch.compiler.is_compiling() or self.inputs.device.type == "meta":
            return None
        watch = ReadingWatch((self.inputs, *self.derived))
        for hook in new:
            hook.watch = watch
        return watch

    @staticmethod
    def _require_read(hooks: list[ContextHook]) -> None:
        unread = [hook.name for hook in hooks if not (hook.verified or hook.reads_masked)]
        if unread:
            raise NotReadError(
                f"{unread[0]}: its token embeddings were not made of the masked inputs of this "
                f"step, so the model trains on another mask; give the model masked.inputs"
            )
        for hook in hooks:
            hook.verified = True
