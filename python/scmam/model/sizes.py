"""Sizes of the model. ``paper`` is scFoundation's, which the published study pretrained."""

from typing import Any

from .cell_model import CellModel

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "width": 64,
        "heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "bins": 16,
        "max_encoder_tokens": 512,
        "decoder_genes": 128,
        "mlp_ratio": 2,
    },
    "small": {
        "width": 128,
        "heads": 4,
        "encoder_layers": 4,
        "decoder_layers": 2,
        "bins": 32,
        "max_encoder_tokens": 1024,
        "decoder_genes": 1024,
    },
    "base": {
        "width": 256,
        "heads": 8,
        "encoder_layers": 6,
        "decoder_layers": 2,
        "bins": 64,
        "max_encoder_tokens": 2048,
        "decoder_genes": 2048,
    },
    "paper": {
        "width": 768,
        "heads": 12,
        "encoder_layers": 12,
        "decoder_layers": 6,
        "decoder_width": 512,
        "decoder_heads": 8,
        "bins": 100,
        "max_encoder_tokens": 6000,
        "recompute": True,  # 20 000 genes in six layers of the decoder are 5 GB a cell otherwise
    },
}
OUTPUTS = {"mse": 1, "nb": 2}


def build_model(settings: Any, num_genes: int, *, loss: str = "mse") -> CellModel:
    """A `CellModel` of the `model` section of a configuration: the preset of its size, and what is
    set beside it.

    Args:
        settings: an object with ``size``, ``depth``, ``dropout`` and, None where the size decides,
            the names of a preset.
        num_genes: ``G``.
        loss: "mse" (a head predicts a value) or "nb" (mean and dispersion).
    """
    preset = {
        "decoder_width": None,
        "decoder_heads": None,
        "decoder_genes": None,
        **SIZES[settings.size],
    }
    if (
        settings.width is not None or settings.heads is not None
    ):  # a preset's decoder does not fit another encoder
        preset.update(decoder_width=None, decoder_heads=None)
    for name in (
        "width",
        "heads",
        "encoder_layers",
        "decoder_layers",
        "bins",
        "max_encoder_tokens",
        "decoder_genes",
        "recompute",
    ):
        value = getattr(settings, name)
        if value is not None:
            preset[name] = value
    return CellModel(
        num_genes, **preset, depth=settings.depth, dropout=settings.dropout, outputs=OUTPUTS[loss]
    )
