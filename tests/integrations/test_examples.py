"""The examples of the pages, trained with stand-ins that are called as the frameworks' classes."""

import importlib

import pytest
import torch
from lightning.pytorch import LightningModule

from mam_kernels.integrations import NicheformerMasking, NotReadError
from mam_kernels.integrations.__main__ import main
from mam_kernels.integrations.examples import NAMES, training
from mam_kernels.integrations.examples.nicheformer import N_TOKENS
from mam_kernels.integrations.lightning import MaskedPretrainingMixin
from tests.integrations import stand_ins

STOOD_IN_FOR = ["scgpt", "scfoundation", "scbert", "nicheformer", "bmfm"]


def example(name: str) -> training.Example:
    module = importlib.import_module(f"mam_kernels.integrations.examples.{NAMES[name]}")
    return module.example(stand_ins)


@pytest.mark.parametrize("name", STOOD_IN_FOR)
def test_an_example_trains_as_its_page_says(name):
    found = training.train(example(name))
    assert found.right, found
    assert {finding.subject for finding in found.findings} >= {
        "loss", "latents", "never hidden", "hidden share", "mask value", "labels",
    }  # fmt: skip


def test_what_differs_is_found():
    one = example("scgpt")
    right = {finding.subject for finding in training.train(one, 2).wrong}
    assert not right - {"loss"}
    for changed, subject in (
        (one._replace(genes=one.genes & (torch.arange(one.genes.shape[1]) > 9)), "never hidden"),
        (one._replace(expected=one.expected + 1), "hidden share"),
        (one._replace(lr=50.0), "loss"),
    ):
        assert subject in {finding.subject for finding in training.train(changed, 2).wrong}
    one.masking.mask_value, one.masking.shares = -1, (0.5, 0.0)
    seen = training.train(one, 2)
    assert not [finding for finding in seen.wrong if finding.subject == "mask value"]
    one.masking._corrupt = lambda inputs, mask, valid, draw: inputs.clone()
    assert "mask value" in {finding.subject for finding in training.train(one, 2).wrong}


def test_a_step_that_masks_by_itself_is_an_error():
    """Nicheformer's own steps call ``complete_masking``, and never read what was masked."""

    class Unchanged(MaskedPretrainingMixin, stand_ins.Nicheformer):
        def mask_batch(self, batch):
            return self.masking(batch, self.embeddings)

    options = {
        "dim_model": 32, "nheads": 2, "dim_feedforward": 64, "nlayers": 1, "dropout": 0.0,
        "batch_first": True, "masking_p": 0.3, "n_tokens": N_TOKENS, "context_length": 20,
        "lr": 1e-3, "warmup": 1, "batch_size": 4, "max_epochs": 1,
    }  # fmt: skip
    batch = {"X": torch.randint(30, N_TOKENS, (4, 20))}
    for scheme in ("encoder", "none"):
        module = Unchanged(**options)
        module.log = module.log_dict = lambda *arguments, **options: None
        module.add_masking(
            NicheformerMasking(training.masker(32), 32, n_tokens=N_TOKENS, seed=0, scheme=scheme),
            encoder="encoder" if scheme == "encoder" else None,
        )
        for step in ("training_step", "validation_step"):
            with pytest.raises(
                NotReadError,
                match=rf"{step}: the model did not read the masked inputs, so Nicheformer\.{step} "
                rf"masks by itself .*; override {step}",
            ):
                getattr(module, step)(dict(batch), 0)
    assert issubclass(Unchanged, LightningModule)


def test_the_command_says_what_it_lacks(capsys):
    assert main(["check", "scbert"]) == 2
    assert "scBERT is not in the package registry: name a checkout" in capsys.readouterr().err
    assert main(["check", "scbert", "--source", "/no/such/folder"]) == 2
    assert "--source: expected a checkout" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "scgpt", "--steps", "0"])
    assert "--steps: expected at least 1; got 0" in capsys.readouterr().err
