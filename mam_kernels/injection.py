"""Injection of the context into an encoder and a decoder."""

from torch import Tensor, nn

from ._core import checks
from ._core.describing import shortened

SCHEMES = ("encoder", "decoder", "both", "separate")
STARTS = ("random", "zero", "published")


def _require_name(argument: str, name: object, names: tuple[str, ...]) -> None:
    """One of the names; anything else, an array too, is an error."""
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{argument}: expected one of {', '.join(names)}; got {shortened(name)}")


class ContextInjection(nn.Module):
    """Inject the context into a model: a linear adapter ``Dz -> De`` makes a vector that is added
    to every token embedding.

    Args:
        latent_dim: ``Dz``, the width of ``MaskingOutput.context``.
        embed_dim: ``De``, the width of the model's token embeddings, of the encoder where the
            decoder differs.
        scheme: where it is added: "encoder"; "decoder", the published best; "both", by one adapter;
            "separate", both, an adapter each.
        decoder_dim: the width of the decoder's token embeddings. None: ``embed_dim``, as published.
        start: first weights of the adapters: "random", as of ``torch.nn.Linear``; "zero", so that
            training starts without the context; "published": Xavier with zero bias.

    Raises:
        TypeError, ValueError: an argument is not as above, or "both" with two widths.
    """

    def __init__(
        self,
        latent_dim: int,
        embed_dim: int,
        scheme: str = "decoder",
        *,
        decoder_dim: int | None = None,
        start: str = "random",
    ) -> None:
        super().__init__()
        self.latent_dim = checks.require_count("latent_dim", latent_dim)
        self.embed_dim = checks.require_count("embed_dim", embed_dim)
        self.decoder_dim = (
            embed_dim if decoder_dim is None else checks.require_count("decoder_dim", decoder_dim)
        )
        _require_name("scheme", scheme, SCHEMES)
        _require_name("start", start, STARTS)
        if scheme == "both" and self.decoder_dim != embed_dim:
            raise ValueError(
                f"decoder_dim: expected embed_dim = {embed_dim}, since one adapter serves both; "
                f"got {decoder_dim}"
            )
        self.scheme = scheme
        if scheme == "separate":
            self.encoder_adapter = nn.Linear(latent_dim, embed_dim)
            self.decoder_adapter = nn.Linear(latent_dim, self.decoder_dim)
        else:
            self.adapter = nn.Linear(
                latent_dim, self.decoder_dim if scheme == "decoder" else embed_dim
            )
        for name, parameter in self.named_parameters():
            if start == "published" and name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)
            elif start != "random":
                nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        widths = "" if self.decoder_dim == self.embed_dim else f"decoder_dim={self.decoder_dim}, "
        return (
            f"latent_dim={self.latent_dim}, embed_dim={self.embed_dim}, {widths}"
            f"scheme={self.scheme!r}"
        )

    def forward(self, context: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """From the context (B, Dz) to (encoder_shift, decoder_shift), each (B, 1, De), or None
        where the scheme adds nothing.

        The shifts are of the type of the adapter's parameters (of the type of autocast inside it),
        whatever that of the context.

        Raises:
            TypeError, ValueError: the context is not a floating-point tensor (B, Dz).
        """
        checks.require_floating("context", context, f"(B, {self.latent_dim})", 2)
        checks.require_shape("context", context, (None, self.latent_dim), "(B, latent_dim)")
        checks.require_device("context", context, next(self.parameters()).device, "the module")
        if self.scheme == "separate":
            return _shift(self.encoder_adapter, context), _shift(self.decoder_adapter, context)
        shift = _shift(self.adapter, context)
        return (shift if self.scheme != "decoder" else None), (
            shift if self.scheme != "encoder" else None
        )


def _shift(adapter: nn.Linear, context: Tensor) -> Tensor:
    """(B, 1, De).

    The context is float32 also where the model, the adapter with it, was cast to a narrower type.
    """
    return adapter(context.to(adapter.weight.dtype))[:, None]
