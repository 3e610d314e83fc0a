"""Settings of a model and of latents as small as they come, for tests of what surrounds them."""

SMALL_MODEL = {
    "model.width": 8,
    "model.heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "masking.num_latents": 4,
    "masking.latent_dim": 8,
    "masking.latent_heads": 2,
}
