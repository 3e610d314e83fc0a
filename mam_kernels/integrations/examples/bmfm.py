"""BMFM-RNA: their ``Masker`` with our strategy, and ``SCBertForMaskedLM``."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bmfm import LatentMaskingStrategy
from . import cells
from .loading import require_source, sources_on_path, submodule
from .training import Example, Step, masker

UNK, SEP, PAD, CLS, MASK = SPECIAL = tuple(range(5))  # in the order of their tokenizers
WIDTH, RATIO = 32, 0.15


class Tokenizer:
    """What their masker and ours ask a tokenizer for."""

    unk_token_id, sep_token_id, pad_token_id, cls_token_id, mask_token_id = SPECIAL
    all_special_ids = SPECIAL


def code(source: Path | None) -> SimpleNamespace:
    """Their classes, of a checkout."""
    with sources_on_path(require_source("BMFM-RNA", source)):
        masker_class = submodule("bmfm_targets.training.masking.masking").Masker
        config = submodule("bmfm_targets.config")
        modeling = submodule("bmfm_targets.models.predictive.scbert.modeling_scbert")
    return SimpleNamespace(
        Masker=masker_class, FieldInfo=config.FieldInfo, SCBertConfig=config.SCBertConfig,
        SCBertForMaskedLM=modeling.SCBertForMaskedLM,
    )  # fmt: skip


def example(theirs: SimpleNamespace) -> Example:
    """Two fields, genes and continuous expressions, of which the second is masked."""
    fields = [
        theirs.FieldInfo("genes", vocab_size=cells.GENES + len(SPECIAL)),
        theirs.FieldInfo(
            "expressions", is_masked=True, tokenization_strategy="continuous_value_encoder",
            decode_modes={"regression": {}}, num_special_tokens=len(SPECIAL),
            encoder_kwargs={"kind": "mlp_with_special_token_embedding"},
        ),
    ]  # fmt: skip
    genes, values = cells.pairs(CLS, PAD, -(PAD + 1), len(SPECIAL))
    values[:, 0] = -(CLS + 1)
    torch.manual_seed(0)
    model = theirs.SCBertForMaskedLM(theirs.SCBertConfig(
        fields=fields, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        hidden_size=WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    ))  # fmt: skip
    strategy = LatentMaskingStrategy(masker(mask_ratio=RATIO), WIDTH, tokenizer=Tokenizer, seed=0)
    their_masker = theirs.Masker(
        change_ratio=RATIO, mask_ratio=1.0, switch_ratio=0.0, tokenizer=Tokenizer,
        masking_strategy=strategy,
    )  # fmt: skip

    def batch_of(rows: Tensor) -> dict[str, dict[str, Tensor]]:
        return {
            name: {
                "input_ids": ids[rows].clone(), "attention_mask": (genes[rows] != PAD).long(),
                "special_tokens_mask": (genes[rows] < len(SPECIAL)).long(),
            }
            for name, ids in (("genes", genes), ("expressions", values))
        }  # fmt: skip

    def step(rows: Tensor) -> Step:
        input_ids, labels, attention_mask = their_masker.mask_inputs(fields, batch_of(rows))
        masked = strategy(
            input_ids[:, 1], labels["expressions"], attention_mask, gene_ids=input_ids[:, 0]
        )
        with masked.injected(model.scbert.encoder):
            output = model(input_ids=input_ids, attention_mask=attention_mask)
        predicted = output.logits["expressions_regression"].squeeze(-1)
        loss = F.mse_loss(predicted[masked.mask], labels["expressions"][masked.mask])
        return Step(loss, masked)

    is_gene = genes >= len(SPECIAL)
    return Example(
        model, strategy, step, is_gene, is_gene.sum(dim=1).double() * RATIO,
        strategy.check(batch_of(torch.arange(len(genes))), cells.GENES + len(SPECIAL)),
        exact=False,
    )  # fmt: skip
