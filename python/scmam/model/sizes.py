"""Sizes of the model. ``paper`` is scFoundation's, which the published study pretrained."""

from typing import Any

from .cell_model import CellModel

NAMES = (
    *("width", "heads", "encoder_layers", "decoder_layers", "bins"),
    *("max_encoder_tokens", "decoder_genes"),
)
PRESETS = {
    "tiny": (64, 2, 2, 1, 16, 512, 128),
    "small": (128, 4, 4, 2, 32, 1024, 1024),
    "base": (256, 8, 6, 2, 64, 2048, 2048),
    "paper": (768, 12, 12, 6, 100, 6000, None),
}
SIZES: dict[str, dict[str, Any]] = {
    size: dict(zip(NAMES, preset, strict=True)) for size, preset in PRESETS.items()
}
SIZES["tiny"] |= {"mlp_ratio": 2}
# Without recomputation 20 000 genes in six layers of the decoder take 5 GB a cell.
SIZES["paper"] |= {"decoder_width": 512, "decoder_heads": 8, "recompute": True}
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
    preset = dict(SIZES[settings.size])
    if settings.width is not None or settings.heads is not None:
        # The decoder of a preset does not fit another encoder.
        preset |= {"decoder_width": None, "decoder_heads": None}
    chosen = {name: getattr(settings, name) for name in (*NAMES, "recompute")}
    preset |= {name: value for name, value in chosen.items() if value is not None}
    more = {"depth": settings.depth, "dropout": settings.dropout, "outputs": OUTPUTS[loss]}
    return CellModel(num_genes, **preset, **more)
