"""Injection of the context into an encoder and a decoder."""

from torch import Tensor, nn

import mam_kernels as mam

STARTS = ("random", "zero")


class Injection(nn.Module):
    """``ContextInjection`` for an encoder and a decoder that may differ in width.

    Args:
        latent_dim: ``Dz``, the width of the context.
        encoder_width, decoder_width: of their token embeddings.
        scheme: as in ``mam_kernels.ContextInjection``.
        start: first weights of the adapters. "random"; "zero": the context comes in as far as training wants it.
    """

    def __init__(self, latent_dim: int, encoder_width: int, decoder_width: int, scheme: str, *, start: str = "random") -> None:
        super().__init__()
        if start not in STARTS:
            raise ValueError(f"start: expected one of {', '.join(STARTS)}; got {start!r}")
        if scheme == "both" and encoder_width != decoder_width:
            raise ValueError(f"injection: both shares one adapter, so widths must be equal; got {encoder_width} and {decoder_width}")
        if scheme == "separate":
            self.encoder = mam.ContextInjection(latent_dim, encoder_width, "encoder")
            self.decoder = mam.ContextInjection(latent_dim, decoder_width, "decoder")
        else:
            self.shared = mam.ContextInjection(latent_dim, encoder_width if scheme == "encoder" else decoder_width, scheme)
        self.scheme = scheme
        if start == "zero":
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, context: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """From the context (B, Dz) to (encoder_shift, decoder_shift), each (B, 1, width), or None where the scheme adds nothing."""
        context = context.to(next(self.parameters()).dtype)  # the engine computes in float32 or better
        if self.scheme == "separate":
            return self.encoder(context)[0], self.decoder(context)[1]
        return self.shared(context)
