"""The Lightning mixin: masking added to a module that exists, trained by Lightning's Trainer on
real cells.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mam_kernels.integrations import MaskedPretrainingMixin, ScGptMasking
from tests.integrations.stand_ins import WIDTH, TransformerModel
from tests.real_cells import counts, sequences, small_masker

PAD, CLS = 0, 1
GENES_OF_16 = int((sequences(CLS, PAD, -2)[0][:16] >= 3).sum())


class Pairs(Dataset):
    """Cells as genes and values."""

    def __init__(self, cells: slice) -> None:
        gene_ids, values = sequences(CLS, PAD, -2)
        self.gene_ids, self.values = gene_ids[cells], values[cells]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, cell: int) -> dict[str, torch.Tensor]:
        return {
            "gene_ids": self.gene_ids[cell],
            "values": self.values[cell],
            "src_key_padding_mask": self.gene_ids[cell] == PAD,
        }


class Theirs(LightningModule):
    """A module as it was before: it expects batches that a collator has masked."""

    def __init__(self, optimizers="adam", lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = TransformerModel(counts().shape[1] + 3)
        self.validation_losses = []

    def loss(self, batch):
        output = self.model(
            batch["gene_ids"],
            batch["masked_values"],
            src_key_padding_mask=batch["src_key_padding_mask"],
        )
        return F.mse_loss(output["mlm_output"][batch["mask"]], batch["values"][batch["mask"]])

    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(batch), "kept": batch_idx}

    def validation_step(self, batch, batch_idx):
        self.validation_losses.append(float(self.loss(batch)))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)
        kind = self.hparams.optimizers
        if kind == "adam":
            return optimizer
        if kind == "model alone":
            return torch.optim.SGD(self.model.parameters(), lr=self.hparams.lr)
        if kind == "own groups":
            return torch.optim.Adam(self.masking.parameter_groups(self, lr=1e-3, masking_lr=1e-4))
        if kind == "lambda":
            return [optimizer], [
                {
                    "scheduler": torch.optim.lr_scheduler.LambdaLR(
                        optimizer, lambda step: 1 / (step + 1)
                    ),
                    "interval": "step",
                }
            ]
        if kind == "one cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.hparams.lr, total_steps=50
            )
        else:
            parts = [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
            ]
            schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithMam(MaskedPretrainingMixin, Theirs):
    def __init__(self, *args, added: dict | None = None, **options) -> None:
        super().__init__(*args, **options)
        masking = ScGptMasking(small_masker(), WIDTH, special_ids=(PAD, CLS, 2), seed=0)
        self.add_masking(
            masking,
            encoder="model.transformer_encoder",
            **{"lr": 3e-4, "weight_decay": 0.0, **(added or {})},
        )

    def mask_batch(self, batch):
        masked = self.masking(batch["gene_ids"], batch["values"], batch["src_key_padding_mask"])
        return {**batch, "masked_values": masked.inputs, "mask": masked.mask}, masked


def module(*args, **added) -> WithMam:
    torch.manual_seed(0)
    return WithMam(*args, added=added)


def fit(model, folder, steps=6, **options) -> Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "logger": False,
    }
    path = options.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        **quiet,
        **{"enable_checkpointing": False, **options},
    )
    train, held_out = DataLoader(Pairs(slice(96)), 32), DataLoader(Pairs(slice(96, None)), 32)
    trainer.fit(model, train, held_out, ckpt_path=path)
    return trainer


def test_an_existing_module_trains(tmp_path):
    model = module()
    latents = model.masking.masker.latents.detach().clone()
    trainer = fit(model, tmp_path, steps=30)
    assert model.validation_losses[-1] < 0.7 * model.validation_losses[0]
    assert not torch.equal(model.masking.masker.latents, latents)
    assert model.masking.steps == 30  # validation does not count
    assert 0.5 < float(trainer.callback_metrics["masking/entropy"]) <= 1.0
    assert trainer.callback_metrics["masking/penalty"] > 0


def test_the_penalty_joins_the_loss_and_the_rest_of_the_output_stays(tmp_path):
    model = module(penalty=0.5)
    model.log_dict = lambda values: logged.update(values)
    logged = {}
    batch = next(iter(DataLoader(Pairs(slice(16)), 16)))
    masked_batch, masked = model.mask_batch(batch)
    model.masking.steps.zero_()
    with masked.injected(model.model.transformer_encoder):
        plain = Theirs.training_step(model, masked_batch, 3)["loss"]
    output = model.training_step(batch, 3)
    torch.testing.assert_close(output["loss"], plain + 0.5 * masked.penalty)
    assert output["kept"] == 3
    assert logged.keys() == {
        f"masking/{name}"
        for name in ("penalty", "entropy", "hidden", "hidden_nonzero", "hidden_zero")
    }
    torch.testing.assert_close(logged["masking/hidden"], masked.mask.sum() / GENES_OF_16)
    output["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.masking.parameters())


@pytest.mark.parametrize(
    "kind", ["adam", "lambda", "one cycle", "warm-up, then cosine", "model alone", "own groups"]
)
def test_the_masking_has_a_learning_rate_of_its_own(kind, tmp_path):
    model = module(kind)
    trainer = fit(model, tmp_path, steps=8)
    groups = trainer.optimizers[0].param_groups
    assert len(groups) == 2
    assert [id(p) for p in groups[1]["params"]] == [id(p) for p in model.masking.parameters()]
    assert not {id(p) for p in groups[0]["params"]} & {id(p) for p in groups[1]["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert groups[1]["lr"] == pytest.approx(
        0.1 * groups[0]["lr"]
    )  # 3e-4 beside 3e-3, at every moment of the schedule
    assert groups[1]["weight_decay"] == 0.0
    if kind in ("adam", "lambda"):
        assert groups[0]["weight_decay"] == 0.01
    if kind == "lambda":
        assert groups[0]["lr"] == pytest.approx(3e-3 / 9)


def test_a_resumed_training_is_the_same(tmp_path):
    through = module("lambda")
    fit(through, tmp_path / "a", steps=6)
    first = fit(module("lambda"), tmp_path / "b", steps=3)  # an epoch
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module("lambda")
    fit(resumed, tmp_path / "c", steps=6, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.masking.steps == 6
    for name, parameter in through.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), parameter, msg=name)
    loaded = WithMam.load_from_checkpoint(tmp_path / "half.ckpt")
    assert loaded.masking.steps == 3


def test_a_module_that_does_not_validate_is_not_made_to():
    class Training(LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    class Masked(MaskedPretrainingMixin, Training):
        pass

    assert Masked.validation_step is LightningModule.validation_step
    assert WithMam.validation_step is not Theirs.validation_step

    class Further(WithMam):
        pass

    assert Further.validation_step is WithMam.validation_step  # masked once


def test_what_cannot_be_added_is_refused():
    masking = ScGptMasking(small_masker(), WIDTH, special_ids=())
    with pytest.raises(
        TypeError,
        match=r"masking: expected a MaskingStep of mam_kernels\.integrations; got Multinomial",
    ):
        MaskedPretrainingMixin.add_masking(Theirs(), small_masker())
    with pytest.raises(
        ValueError,
        match="masking: expected a module without an attribute of this name; WithMam has one",
    ):
        module().add_masking(masking)
    with pytest.raises(AttributeError, match="has no attribute `no_such`"):
        MaskedPretrainingMixin.add_masking(Theirs(), masking, encoder="model.no_such")
    manual = Theirs()
    manual.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic_optimization: expected True"):
        MaskedPretrainingMixin.add_masking(manual, masking)
    with pytest.raises(NotImplementedError, match="mask_batch: WithMam does not say how"):
        MaskedPretrainingMixin.mask_batch(module(), {})
