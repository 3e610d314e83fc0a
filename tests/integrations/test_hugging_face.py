"""Masked-language models of transformers, trained on real cells by Trainer and by accelerate."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers import BertForMaskedLM as Theirs

from mam_kernels.integrations import MamConfig, MamForMaskedLM, PaddingCollator
from tests.real_cells import CLS, EOS, MASK, PAD, SPECIAL, counts, rank_encoded

MASKING = {"latent_dim": 16, "num_latents": 8, "num_heads": 2, "mask_ratio": 0.3}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
ENDS = {"bos_token_id": CLS, "cls_token_id": CLS, "eos_token_id": EOS, "sep_token_id": EOS}


def geneformer(**changes) -> Theirs:
    """The shape of Geneformer, smaller."""
    torch.manual_seed(0)
    options = {
        **SMALL,
        "vocab_size": len(SPECIAL) + counts().shape[1],
        "pad_token_id": PAD,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
    }
    return Theirs(BertConfig(**options, attention_probs_dropout_prob=0.0, **changes))


def wrapped(model=None, **options) -> MamForMaskedLM:
    model = geneformer() if model is None else model
    torch.manual_seed(1)
    return MamForMaskedLM.wrap(
        model, mask_token_id=MASK, special_token_ids=SPECIAL, **{"masking": MASKING, **options}
    )


def cells() -> list[dict]:
    return [
        {"input_ids": ids, "sample_ids": 1000 + cell, "length": len(ids)}
        for cell, ids in enumerate(rank_encoded())
    ]


def first_batch(size=16) -> dict[str, torch.Tensor]:
    return PaddingCollator(PAD)(cells()[:size])


def trainer(model, folder, **options) -> Trainer:
    arguments = {
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "report_to": "none",
        **options,
    }
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=5,
        prediction_loss_only=True,
        **arguments,
    )
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=3e-3, masking_lr=1e-3))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    collator = PaddingCollator(PAD)
    return Trainer(
        model, arguments, collator, cells()[:96], cells()[96:], optimizers=(optimizer, rate)
    )


def test_trainer_trains_model_and_latents(tmp_path):
    model = wrapped()
    latents = model.masking.masker.latents.detach().clone()
    training = trainer(model, tmp_path, max_steps=60)
    before = training.evaluate()["eval_loss"]
    training.train()
    after = training.evaluate()["eval_loss"]
    assert after < before - 0.3  # nats; guessing starts at the logarithm of the vocabulary
    logged = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert logged[-1] < logged[0]
    assert not torch.equal(model.masking.masker.latents, latents)
    assert model.masking.steps == 60
    assert all(
        parameter.grad is None or torch.isfinite(parameter.grad).all()
        for parameter in model.parameters()
    )


def test_accelerate_trains_model_and_latents():
    model = wrapped(corruption="all")
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(
        cells(),
        32,
        shuffle=True,
        collate_fn=PaddingCollator(PAD),
        generator=torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=3e-3, masking_lr=1e-3))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(6):
        for batch in loader:
            loss = model(**batch).loss
            optimizer.zero_grad()
            accelerator.backward(loss)
            assert accelerator.unwrap_model(model).masking.masker.latents.grad.abs().max() > 0
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize("corruption", ["80/10/10", "all", "90/10"])
@pytest.mark.parametrize("tokens_from", [None, "bert.embeddings"])
def test_special_tokens_and_padding_are_never_hidden(corruption, tokens_from):
    model, batch = wrapped(corruption=corruption, tokens_from=tokens_from), first_batch()
    gene = batch["input_ids"] >= len(SPECIAL)
    often = torch.zeros_like(batch["input_ids"])
    for _ in range(20):
        masked = model.mask_batch(**batch)
        often += masked.mask
        assert masked.mask.sum(dim=1).tolist() == [int(0.3 * n) for n in gene.sum(dim=1).tolist()]
        assert torch.equal(masked.labels[masked.mask], batch["input_ids"][masked.mask])
        assert (masked.labels[~masked.mask] == -100).all()
        assert torch.equal(masked.inputs[~masked.mask], batch["input_ids"][~masked.mask])
        assert ((masked.inputs >= len(SPECIAL)) | (masked.inputs == MASK))[gene].all()
    assert not often[~gene].any()
    assert often[gene].bool().float().mean() > 0.9
    if corruption == "all":
        assert (masked.inputs[masked.mask] == MASK).all()
    else:
        assert 0.6 < (masked.inputs[masked.mask] == MASK).float().mean() < 0.98


def test_a_random_token_is_any_gene_of_the_vocabulary():
    model, batch = (
        wrapped(corruption=[0.0, 1.0], masking={**MASKING, "mask_ratio": 1.0}),
        first_batch(),
    )
    seen = torch.cat([(masked := model.mask_batch(**batch)).inputs[masked.mask] for _ in range(20)])
    assert set(seen.tolist()) == set(range(len(SPECIAL), geneformer().config.vocab_size))


def test_masks_follow_seed_step_and_cell():
    model, batch = wrapped(), first_batch()
    order = torch.arange(15, -1, -1)
    first = model.mask_batch(**batch, step=7)
    again = model.mask_batch(**{name: x[order] for name, x in batch.items()}, step=7)
    assert torch.equal(first.inputs, again.inputs[order])
    assert not torch.equal(first.mask, model.mask_batch(**batch, step=8).mask)
    assert not torch.equal(first.mask, model.mask_batch(**batch, step=7, seed=5).mask)
    counted = [model.mask_batch(**batch).mask for _ in range(2)]
    assert not torch.equal(*counted)
    model.eval()
    assert torch.equal(model.mask_batch(**batch).mask, model.mask_batch(**batch).mask)
    assert model.masking.steps == 2


def test_a_resumed_training_is_the_same(tmp_path):
    through = trainer(wrapped(), tmp_path / "a", max_steps=6)
    through.train()
    trainer(wrapped(), tmp_path / "b", max_steps=3, save_strategy="steps", save_steps=3).train()
    resumed = trainer(wrapped(), tmp_path / "b", max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.model.masking.steps == 6
    for name, parameter in through.model.named_parameters():
        torch.testing.assert_close(resumed.model.get_parameter(name), parameter, msg=name)


def test_saved_and_loaded(tmp_path):
    model, batch = wrapped(corruption="90/10", masking_seed=4).eval(), first_batch()
    model.save_pretrained(tmp_path / "both")
    loaded = MamForMaskedLM.from_pretrained(tmp_path / "both").eval()
    assert loaded.config.masking == {"mask_ratio": 0.3, **MASKING}
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    embeddings = loaded.model.bert.embeddings.word_embeddings.weight
    assert loaded.model.cls.predictions.decoder.weight is embeddings  # still tied

    model.model.save_pretrained(tmp_path / "alone")
    alone = Theirs.from_pretrained(tmp_path / "alone")
    for name, parameter in model.model.named_parameters():
        assert torch.equal(alone.get_parameter(name), parameter)
    with pytest.raises(
        ValueError, match="architecture: expected a class of transformers; got 'Mine': pass model="
    ):
        MamForMaskedLM(MamConfig(model.config.backbone, "Mine", mask_token_id=MASK))


class BertForMaskedLM(Theirs):
    """A user's model that has the name of one of transformers."""

    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **options
    ):
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            labels=labels,
        )  # fmt: skip
        output.loss = output.loss * 2
        return output


@pytest.mark.parametrize("given", [False, True], ids=["found by its name", "given"])
def test_a_class_of_the_user_s_stays_what_it_is(tmp_path, given):
    model, batch = BertForMaskedLM(geneformer().config), first_batch()
    whole = wrapped(model).eval()
    whole.save_pretrained(tmp_path)
    options = {"model": BertForMaskedLM(model.config)} if given else {}
    loaded = MamForMaskedLM.from_pretrained(tmp_path, **options).eval()
    assert type(loaded.model) is BertForMaskedLM
    torch.testing.assert_close(loaded(**batch).loss, whole(**batch).loss, rtol=0, atol=0)
    positions = loaded.model.bert.embeddings.position_ids  # which no file holds
    assert positions.tolist() == [list(range(256))]
    assert loaded.masking.steps == whole.masking.steps
    if given:
        other = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
        config = BertConfig(**{**model.config.to_dict(), **other})
        with pytest.raises(ValueError, match="model: expected the class that was saved in"):
            MamForMaskedLM.from_pretrained(tmp_path, model=Theirs(config))


def test_weights_that_are_not_tied_stay_apart(tmp_path):
    model = Theirs(BertConfig(**{**geneformer().config.to_dict(), "tie_word_embeddings": False}))
    wrapped(model).save_pretrained(tmp_path)
    loaded = MamForMaskedLM.from_pretrained(tmp_path).model
    assert loaded.cls.predictions.decoder.weight is not loaded.get_input_embeddings().weight
    assert torch.equal(loaded.cls.predictions.decoder.weight, model.cls.predictions.decoder.weight)


def test_wrapping_leaves_the_weights_alone():
    model = geneformer()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inside = wrapped(model).model.state_dict()
    assert all(torch.equal(inside[name], x) for name, x in before.items())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Theirs, BertConfig(vocab_size=104, **SMALL)),
        (RobertaForMaskedLM, RobertaConfig(vocab_size=104, pad_token_id=PAD, **SMALL)),
        (
            DistilBertForMaskedLM,
            DistilBertConfig(vocab_size=104, dim=32, n_layers=1, n_heads=2, hidden_dim=64),
        ),
        (
            ModernBertForMaskedLM,
            ModernBertConfig(vocab_size=104, pad_token_id=PAD, **ENDS, **SMALL),
        ),
    ],
)  # fmt: skip
def test_any_masked_language_model_predicts_as_it_would_without(kind, config):
    model, batch = kind(config).eval(), first_batch(4)
    alone = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    inside = (
        wrapped(model, masking={**MASKING, "mask_ratio": 0.0}, injection="none")
        .eval()(**batch)
        .logits
    )
    there = batch["attention_mask"].bool()
    torch.testing.assert_close(inside[there], alone[there])
    output = wrapped(model).train()(**batch)
    output.loss.backward()
    assert isinstance(output, type(model(batch["input_ids"])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("what", ["model", "both", "autocast"])
def test_trains_in_any_precision(dtype, what):
    model = wrapped(geneformer().to(dtype) if what == "model" else None)
    model = model.to(dtype) if what == "both" else model
    expected = wrapped()(**first_batch()).loss
    with torch.autocast("cpu", dtype, enabled=what == "autocast" and dtype != torch.float64):
        loss = model(**first_batch()).loss
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0.0)
    loss.backward()
    assert model.masking.masker.latents.grad.abs().max() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_compiles_whole():
    model, batch = wrapped(), first_batch()
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True, backend="eager")(**batch, step=3).loss,
        model(**batch, step=3).loss,
    )


def test_the_loss_is_the_model_s_plus_the_penalty():
    model, batch = wrapped(injection="none", penalty_weight=0.5).eval(), first_batch()
    output, masked = model(**batch), model.mask_batch(**batch)
    expected = model.model(
        masked.inputs, attention_mask=batch["attention_mask"], labels=masked.labels
    ).loss
    torch.testing.assert_close(output.loss, expected + 0.5 * masked.penalty)


def test_checks_a_first_batch_with_its_own_facts():
    model, batch = wrapped(), first_batch()
    assert model.check(batch["input_ids"], batch["attention_mask"]).right
    assert "looks inverted" in str(model.check(batch["input_ids"], 1 - batch["attention_mask"]))


def test_two_groups_hold_every_parameter_once():
    model = wrapped()
    groups = {group["name"]: group for group in model.parameter_groups(1e-4, 1e-3, 0.1, 0.0)}
    assert (groups["model"]["lr"], groups["masking"]["lr"]) == (1e-4, 1e-3)
    assert (groups["model"]["weight_decay"], groups["masking"]["weight_decay"]) == (0.1, 0.0)
    ids = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    assert {id(parameter) for parameter in groups["masking"]["params"]} == {
        id(parameter) for parameter in model.masking.parameters()
    }


# Bad input


def test_the_collator_pads_and_refuses_empty_cells():
    collator = PaddingCollator(PAD, pad_to_multiple_of=8)
    batch = collator([{"input_ids": [2, 9, 8]}, {"input_ids": [2, 9, 8, 7, 6, 5, 4, 9, 3]}])
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == (2, 16)
    assert torch.equal(batch["input_ids"] != PAD, batch["attention_mask"] == 1)
    with pytest.raises(
        ValueError,
        match=r"examples: expected at least one token in input_ids of each; got .* at 1",
    ):
        collator([{"input_ids": [2]}, {"input_ids": []}])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda config: torch.nn.Linear(2, 2),
            "model: expected a transformers.PreTrainedModel with a .* head; got Linear",
        ),
        (
            BertModel,
            "model: expected a masked-language model, .*; got BertModel, which has no head",
        ),
        (
            BertForSequenceClassification,
            "got BertForSequenceClassification, which has no head that predicts tokens",
        ),
        (BertLMHeadModel, "got BertLMHeadModel, which generates text"),
        (
            lambda config: T5ForConditionalGeneration(
                T5Config(d_model=16, d_kv=8, num_layers=1, num_heads=2)
            ),
            "which generates text",
        ),
    ],
)
def test_what_is_no_masked_language_model_is_refused(model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        wrapped(model(BertConfig(vocab_size=104, **SMALL)))


def test_a_vocabulary_without_mask_token_is_refused():
    with pytest.raises(
        ValueError, match="mask_token_id: expected the id of a mask token; got None"
    ):
        MamForMaskedLM.wrap(geneformer(), mask_token_id=None, special_token_ids=SPECIAL)
    with pytest.raises(
        ValueError,
        match=r"mask_token_id: expected ids in \[0, 104\), the model's vocabulary; got 104",
    ):
        MamForMaskedLM.wrap(geneformer(), mask_token_id=104, special_token_ids=SPECIAL)


def test_bad_batches_are_refused():
    model, batch = wrapped(), first_batch(4)
    for change, message in (
        (
            {"input_ids": batch["input_ids"] + 90},
            r"input_ids: expected ids in \[0, 104\), the vocabulary; got ids from 90 to",
        ),
        (
            {"attention_mask": batch["attention_mask"] * 0},
            r"attention_mask: expected a token \(1\) in each row; got none in row 0",
        ),
        (
            {"attention_mask": batch["attention_mask"] * 2},
            "attention_mask: expected 0 and 1; got values from 0 to 2",
        ),
        (
            {"attention_mask": batch["attention_mask"].float()},
            "attention_mask: expected a bool or integer tensor",
        ),
        (
            {"attention_mask": batch["attention_mask"][:, 1:]},
            r"attention_mask: expected shape \(B, L\)",
        ),
        (
            {"input_ids": batch["input_ids"].to("meta")},
            "input_ids: expected on cpu, as the model is; got .* on meta",
        ),
        ({"labels": batch["input_ids"]}, "labels: expected None, since masking makes them"),
        ({"return_loss": False}, "return_loss: expected True"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            model(**{**batch, **change})
    assert model.masking.steps == 0
