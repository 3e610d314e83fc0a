"""The pages of the integrations: their Python blocks run, one after the other, with what a page
calls yours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, TrainingArguments

import mam_kernels as mam
from mam_kernels.sequences import gather
from tests.examples import run_examples
from tests.integrations import stand_ins
from tests.integrations.test_adapters import FIRST_GENE
from tests.integrations.test_lightning import Pairs, Theirs
from tests.real_cells import SPECIAL, counts, rank_encoded, sequences

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
GENES = counts().shape[1]


def uniform(positions: Tensor, ratio: float, extra: int = 0) -> Tensor:
    """A share of the True of each row, as frameworks hide without latents; then ``extra`` columns
    that are not hidden.
    """
    drawn = mam.sample_without_replacement(positions.float(), (positions.sum(dim=1) * ratio).long())
    return F.pad(drawn, (0, extra))


def hugging_face(folder: Path) -> dict[str, Any]:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    arguments = TrainingArguments(
        str(folder / "run"),
        use_cpu=True,
        max_steps=3,
        per_device_train_batch_size=8,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    cells = [{"input_ids": ids, "sample_ids": cell} for cell, ids in enumerate(rank_encoded()[:32])]
    vocabulary = {
        token: i
        for i, token in enumerate(
            ["<pad>", "<mask>", "<cls>", "<eos>", *(f"gene {gene}" for gene in range(GENES))]
        )
    }
    names = {
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "cls_token": "<cls>",
        "eos_token": "<eos>",
    }
    return {
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(vocabulary, "<pad>")), **names
        ),
        "model": BertForMaskedLM(
            BertConfig(vocab_size=len(SPECIAL) + GENES, pad_token_id=0, **sizes)
        ),
        "arguments": arguments,
        "cells": cells,
        "folder": folder,
    }


def scgpt(folder: Path) -> dict[str, Any]:
    vocab = {"<pad>": 0, "<cls>": 1, "<eoc>": 2, **{f"gene {i}": 3 + i for i in range(GENES)}}
    return {
        "model": stand_ins.TransformerModel(len(vocab)),
        "loader": DataLoader(Pairs(slice(48)), 16),
        "vocab": vocab,
        "random_mask_value": lambda values, mask_ratio, mask_value, pad_value: values.masked_fill(
            uniform(values != pad_value, mask_ratio), mask_value
        ),
        "masked_mse_loss": lambda predicted, target, mask: F.mse_loss(
            predicted[mask], target[mask]
        ),
    }


def scfoundation(folder: Path) -> dict[str, Any]:
    total = torch.log10(counts().sum(dim=1, keepdim=True))
    config = {
        "seq_len": GENES + 2,
        "mask_token_id": 102,
        "pad_token_id": 103,
        "encoder": {"hidden_dim": 32},
        "decoder": {"hidden_dim": 16},
    }
    values = torch.cat([torch.log1p(counts()), total, total], dim=1)

    def uniform_mask(values: Tensor, value_ratio: float, zero_ratio: float) -> Tensor:
        return uniform(values[:, :GENES] != 0, value_ratio, extra=2) | uniform(
            values[:, :GENES] == 0, zero_ratio, extra=2
        )

    def get_encoder_decoder_data(
        data: Tensor, data_raw: Tensor, config: dict[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """What theirs returns: encoder data, positions, padding and labels; decoder data and
        padding; raw data, None, decoder positions.
        """
        there = gather(data, data_raw > 0)
        positions = there.gene_ids.masked_fill(~there.valid, config["seq_len"])
        x = there.values.masked_fill(~there.valid, config["pad_token_id"])
        genes = torch.arange(data.shape[1]).expand(len(data), -1)
        return (
            x,
            positions,
            ~there.valid,
            data_raw > 0,
            data.clone(),
            torch.zeros_like(data, dtype=torch.bool),
            data_raw,
            None,
            genes,
        )

    model = stand_ins.MaeAutobin(
        num_tokens=GENES + 2, max_seq_len=GENES + 2, embed_dim=32, decoder_embed_dim=16,
        pad_token_id=103, mask_token_id=102,
    )  # fmt: skip
    model.encoder = stand_ins.pytorchTransformerModule(GENES + 2, 32, 1, 2)
    model.decoder = stand_ins.pytorchTransformerModule(GENES + 2, 16, 1, 2)
    return {
        "model": model,
        "config": config,
        "loader": values[:48].split(16),
        "uniform_mask": uniform_mask,
        "getEncoerDecoderData": get_encoder_decoder_data,
    }


def scbert(folder: Path) -> dict[str, Any]:
    model = stand_ins.PerformerLM(num_tokens=7, max_seq_len=GENES + 1)

    def data_mask(tokens: Tensor, mask_prob: float) -> tuple[Tensor, Tensor]:
        mask = uniform(tokens > 0, mask_prob)
        return tokens.masked_fill(mask, 6), tokens.masked_fill(~mask, 6)

    return {
        "model": model,
        "loader": F.pad(torch.log2(1 + counts()[:48]).clamp(max=5).long(), (0, 1)).split(16),
        "data_mask": data_mask,
    }


def nicheformer(folder: Path) -> dict[str, Any]:
    rows = [
        row.argsort(descending=True)[: int((row > 0).sum())] + FIRST_GENE for row in counts()[:48]
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    n_tokens = FIRST_GENE + GENES
    model = stand_ins.Nicheformer(
        dim_model=32, nheads=2, dim_feedforward=64, nlayers=1, dropout=0.0, batch_first=True,
        masking_p=0.15, n_tokens=n_tokens, context_length=ids.shape[1], lr=1e-3, warmup=1,
        batch_size=16, max_epochs=1,
    )  # fmt: skip

    def complete_masking(batch: dict[str, Tensor], p: float, n_tokens: int) -> dict[str, Tensor]:
        x = batch["X"].masked_fill(batch["X"] == 0, 1)
        mask = uniform(x > 1, p)
        return {
            "X": x,
            "masked_indices": x.masked_fill(mask, 0),
            "mask": 1 - mask.int(),
            "attention_mask": x == 1,
        }

    return {
        "model": model,
        "n_tokens": n_tokens,
        "loader": [{"X": x} for x in ids.split(16)],
        "complete_masking": complete_masking,
    }


def bmfm(folder: Path) -> dict[str, Any]:
    gene_ids, values = sequences(1, 0, -1)
    rest = {"attention_mask": (gene_ids != 0).long(), "special_tokens_mask": (gene_ids < 3).long()}
    fields = {
        "genes": {"input_ids": gene_ids, **rest},
        "expressions": {"input_ids": values.masked_fill(gene_ids == 1, -2), **rest},
    }
    loader = [
        {name: {key: x[i : i + 16] for key, x in field.items()} for name, field in fields.items()}
        for i in (0, 16, 32)
    ]

    class Tokenizer:
        mask_token_id, all_special_ids = 2, [0, 1, 2]

    class Same:
        """Every token alike."""

        def __init__(self, tokenizer: object) -> None:
            self.tokenizer = tokenizer

        def get_mask_probs(self, batch: dict[str, dict[str, Tensor]]) -> Tensor:
            return torch.ones_like(batch["genes"]["input_ids"], dtype=torch.float32)

    pair = [
        stand_ins.FieldInfo("genes", vocab_size=GENES + 3),
        stand_ins.FieldInfo("expressions", is_masked=True),
    ]
    return {
        "model": stand_ins.SCBertForMaskedLM(
            stand_ins.SCBertConfig(fields=pair, hidden_size=32, num_attention_heads=2)
        ),
        "Masker": stand_ins.Masker,
        "tokenizer": Tokenizer,
        "fields": pair,
        "MaskingStrategy": Same,
        "loader": loader,
    }


YOURS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "index": lambda folder: {},
    "hugging-face": hugging_face,
    "lightning": lambda folder: {"TheirModule": Theirs, "loader": DataLoader(Pairs(slice(96)), 16)},
    "scgpt": scgpt,
    "scfoundation": scfoundation,
    "scbert": scbert,
    "nicheformer": nicheformer,
    "bmfm": bmfm,
    "maskings": lambda folder: {},
}
READ = {  # no block that runs alone
    "cellarium-ml", "cellplm", "scprint", "scvi-tools", "state", "tahoe-x1", "uce",
}  # fmt: skip


@pytest.mark.parametrize("page", YOURS)
def test_the_examples_of_a_page_run(page, tmp_path, capsys):
    path = PAGES / f"{page}.md"
    names = run_examples(path, YOURS[page](tmp_path))
    if page == "maskings":
        return
    masking = {
        "hugging-face": lambda: names["wrapped"].masking,
        "lightning": lambda: names["module"].masking,
        "bmfm": lambda: names["strategy"],
    }
    latents = masking.get(page, lambda: names["masking"])().masker.latents
    assert latents.grad is not None or page in (
        "hugging-face",
        "lightning",
    )  # their optimizers forget it
    promised = [
        line.partition("# ")[2]
        for line in path.read_text().splitlines()
        if line.startswith("print(") and "# " in line
    ]
    printed = capsys.readouterr().out
    assert all(output in printed for output in promised)


def test_every_page_is_tried_and_listed():
    assert {path.stem for path in PAGES.glob("*.md")} == set(YOURS) | READ
    index = (PAGES / "index.md").read_text()
    assert all(f"({page}.md)" in index for page in (set(YOURS) | READ) - {"index"})


def test_every_page_says_what_was_run_what_to_look_at_and_what_it_costs():
    for path in PAGES.glob("*.md"):
        text = path.read_text()
        assert "not measured yet" not in text
        assert "TIMING" not in text
        if path.stem in ("index", "maskings"):
            continue
        assert "what they should\nbe](index.md#the-first-hundred-steps)" in text or (
            "[what they should be](index.md#the-first-hundred-steps)" in text
        ), path.stem
        assert "## Cost" in text, path.stem
