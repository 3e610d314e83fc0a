"""Hugging Face: ``BertForMaskedLM`` as Geneformer is, on genes ranked by expression."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from . import cells
from .training import Example, Step

PAD, MASK, CLS, EOS = SPECIAL = (0, 1, 2, 3)
WIDTH = 32


def code(source: Path | None) -> SimpleNamespace:
    """Their classes."""
    from transformers import BertConfig, BertForMaskedLM

    return SimpleNamespace(BertConfig=BertConfig, BertForMaskedLM=BertForMaskedLM)


def example(theirs: SimpleNamespace) -> Example:
    """As Geneformer's pretraining, with <cls> and <eos> named as special tokens too."""
    from ..hugging_face import MamForMaskedLM

    input_ids = cells.ranked(len(SPECIAL), [CLS], [EOS], PAD)
    attention_mask = (input_ids != PAD).long()
    torch.manual_seed(0)
    config = theirs.BertConfig(
        vocab_size=cells.GENES + len(SPECIAL), hidden_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, hidden_act="relu", pad_token_id=PAD,
        max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    sizes = {"latent_dim": 16, "num_latents": 8, "num_heads": 2, "mask_ratio": 0.3}
    wrapped = MamForMaskedLM.wrap(
        theirs.BertForMaskedLM(config), mask_token_id=MASK, special_token_ids=SPECIAL,
        masking=sizes,
    )  # fmt: skip
    masking = wrapped.masking

    def step(rows: Tensor) -> Step:
        batch = {
            "input_ids": input_ids[rows], "attention_mask": attention_mask[rows],
            "sample_ids": rows,
        }  # fmt: skip
        number = int(masking.steps) if masking.training else 0
        masked = wrapped.mask_batch(**batch, step=number)
        masking.steps += int(masking.training)
        loss = wrapped(**batch, step=number).loss
        return Step(loss - wrapped.config.penalty_weight * masked.penalty, masked)

    is_gene = input_ids >= len(SPECIAL)
    return Example(
        wrapped.model, masking, step, is_gene, torch.floor(is_gene.sum(dim=1).double() * 0.3),
        wrapped.check(input_ids, attention_mask),
    )  # fmt: skip
