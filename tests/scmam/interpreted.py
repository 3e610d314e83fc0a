"""Runs with hand-made weights, for the tests of the interpretation."""

from pathlib import Path

import torch
from scmam.config import Config, load_config
from scmam.data import Cells
from scmam.objective import Pretraining, build_pretraining
from scmam.runs import Run, create_folder, open_run, update_record, write_weights

from tests.scmam.small import PUBLISHED_MASKS

SMALL = {
    **PUBLISHED_MASKS,
    "masking.latent_dim": 16,
    "masking.num_latents": 12,
    "masking.latent_heads": 2,
    "training.device": "cpu",
    "training.steps": 3,
}


def configured(**masking: object) -> Config:
    """A configuration with few latents."""
    return load_config(None, SMALL | {f"masking.{name}": value for name, value in masking.items()})


def set_slopes(pretraining: Pretraining, slopes: torch.Tensor) -> None:
    """Give the latents these slopes (N, H): the token's direction is the first of each head, which
    the queries hold the slope in.
    """
    latents = pretraining.strategy.latents
    width, heads = latents.latent_dim, latents.num_heads
    direction = torch.zeros(heads, width // heads)
    direction[:, 0] = 1.0
    with torch.no_grad():
        latents.input_proj.weight.zero_()[0] = 1.0
        attention = latents.cross_attention
        attention.in_proj_weight[:width] = torch.eye(width)
        attention.in_proj_weight[width : 2 * width].zero_()[:, 0] = direction.flatten()
        attention.in_proj_bias.zero_()
        latents.latents.copy_((slopes[..., None] * direction * latents.head_dim**0.5).flatten(1))


def finished_run(
    folder: Path,
    config: Config,
    cells: Cells,
    pretraining: Pretraining | None = None,
    schedule: torch.Tensor | None = None,
) -> Run:
    """A run folder as pretraining leaves it."""
    pretraining = (
        build_pretraining(config, cells.num_genes, schedule=schedule)
        if pretraining is None
        else pretraining
    )
    create_folder(folder, config, cells.genes, {"status": "running", "steps": 0}, schedule)
    write_weights(folder, config, cells.genes, pretraining.state_dict())
    update_record(folder, status="done", steps=config.training.steps)
    return open_run(folder)
