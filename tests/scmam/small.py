"""Settings of a model and of latents as small as they come, for tests of what surrounds them."""

PUBLISHED_MASKS = {
    "masking.strategy": "mam",
    "masking.ratio": 0.3,
    "masking.zero_ratio": None,
}
SMALL_MODEL = {
    **PUBLISHED_MASKS,
    "model.width": 8,
    "model.heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "masking.num_latents": 4,
    "masking.latent_dim": 8,
    "masking.latent_heads": 2,
}
