"""Steps of single-cell frameworks: their real classes at their published widths and lengths, two
layers deep, with the maskings of their pages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mam_kernels as mam
from mam_kernels.integrations import (
    BatchFormat,
    LatentMaskingStrategy,
    MaskedBatch,
    MaskingStep,
    NicheformerMasking,
    Place,
    ScBertMasking,
    ScFoundationMasking,
    ScGptMasking,
)
from mam_kernels.integrations.examples import (
    bmfm,
    cellplm,
    nicheformer,
    scbert,
    scfoundation,
    scgpt,
    scvi_tools,
    uce,
)


@dataclass
class Case:
    """A framework's step: ``mask`` hides and gives what ``loss`` reads, ``place`` is where the
    context is added.
    """

    what: str
    masking: nn.Module
    model: nn.Module
    mask: Callable[[], tuple[MaskedBatch, Any]]
    loss: Callable[[MaskedBatch, Any], Tensor]
    places: dict[str, Any]


def masker(input_dim: int | None = None) -> mam.MultinomialAttentionMasking:
    """The published sizes."""
    return mam.MultinomialAttentionMasking(input_dim, mask_ratio=0.3)


def expression(cells: int, genes: int, density: float = 0.1) -> Tensor:
    """(cells, genes) log counts."""
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(cells, genes, generator=generator) < density
    counts = torch.empty(cells, genes).exponential_(0.5, generator=generator).ceil()
    return torch.log1p(counts * there)


def tokens(cells: int, length: int, first: int, vocabulary: int) -> Tensor:
    """(cells, length) int64 ids of genes, without padding."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(first, vocabulary, (cells, length), generator=generator)


def of_scgpt(source: Path | None) -> Case:
    """512 wide, 1,200 genes and <cls>."""
    ids, values = tokens(4, 1201, 3, 60_000), expression(4, 1201, 1.0).round(decimals=0)
    ids[:, 0] = 1
    model = scgpt.code(source).TransformerModel(
        60_000, 512, 8, 512, 2, vocab={"<pad>": 0}, dropout=0.0, pad_token="<pad>", pad_value=-2,
        do_mvc=True,
    )  # fmt: skip
    masking = ScGptMasking(masker(), 512, special_ids=(0, 1, 2), seed=0)
    padding = ids == 0

    def loss(masked: MaskedBatch, _: Any) -> Tensor:
        output = model(ids, masked.inputs, padding, MVC=True)
        return sum(
            F.mse_loss(output[name][masked.mask], values[masked.mask])
            for name in ("mlm_output", "mvc_output")
        )

    return Case(
        "4 cells x 1,201 tokens, width 512, 2 of 12 layers", masking, model,
        lambda: (masking(ids, values, padding), None), loss,
        {"encoder": model.transformer_encoder},
    )  # fmt: skip


def of_hugging_face(source: Path | None) -> Case:
    """``BertForMaskedLM`` as the first Geneformer: 256 wide, 2,048 genes by rank."""
    from transformers import BertConfig, BertForMaskedLM

    from mam_kernels.integrations import MamForMaskedLM

    ids = tokens(4, 2048, 4, 25_426)
    config = BertConfig(
        vocab_size=25_426, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, hidden_act="relu", pad_token_id=0, max_position_embeddings=2048,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    wrapped = MamForMaskedLM.wrap(
        BertForMaskedLM(config), mask_token_id=1, special_token_ids=(0, 1, 2, 3),
        masking={"mask_ratio": 0.15},
    )  # fmt: skip

    def loss(masked: MaskedBatch, _: Any) -> Tensor:
        embeddings = wrapped.model.get_input_embeddings()(masked.inputs)
        return wrapped.model(inputs_embeds=embeddings, labels=masked.labels).loss

    return Case(
        "4 cells x 2,048 tokens, width 256, 2 of 6 layers", wrapped.masking, wrapped.model,
        lambda: (wrapped.mask_batch(ids), None), loss, {"encoder": wrapped.model.bert.encoder},
    )  # fmt: skip


def of_scfoundation(source: Path | None) -> Case:
    """768 wide over 19,264 genes; the decoder, 512 wide, reads all of them."""
    genes = 19_264
    with scfoundation.sources_on_path(
        scfoundation.require_source("scFoundation", source) / "model"
    ):
        from pretrainmodels.select_model import select_model

    model = select_model({
        "model": "mae_autobin", "seq_len": genes + 2, "n_class": genes + 2, "bin_alpha": 1.0,
        "bin_num": 100, "pad_token_id": 103, "mask_token_id": 102,
        "encoder": {"module_type": "transformer", "hidden_dim": 768, "depth": 2, "heads": 12},
        "decoder": {"module_type": "performer", "hidden_dim": 512, "depth": 2, "heads": 8,
                    "dim_head": 64},
    })  # fmt: skip
    values = F.pad(expression(1, genes), (0, 2), value=4.0)
    masking = ScFoundationMasking(
        masker(), 768, seq_len=genes + 2, num_genes=genes, mask_token_id=102, pad_token_id=103,
        seed=0,
    )  # fmt: skip

    def loss(masked: MaskedBatch, arguments: Any) -> Tensor:
        return F.mse_loss(model(**arguments)[masked.mask], values[masked.mask])

    return Case(
        "1 cell x 19,264 genes, widths 768 and 512, 2 of 12 and 2 of 6 layers", masking, model,
        lambda: masking(values), loss, {"decoder": model.decoder_embed},
    )  # fmt: skip


def of_scbert(source: Path | None) -> Case:
    """200 wide over 16,906 genes and their last token."""
    data = F.pad(expression(1, 16_906).clamp(max=5).ceil().long(), (0, 1))
    model = scbert.code(source).PerformerLM(
        num_tokens=7, dim=200, depth=2, max_seq_len=16_907, heads=10, local_attn_heads=0,
        g2v_position_emb=False,
    )  # fmt: skip
    masking = ScBertMasking(masker(), 200, seed=0)
    return Case(
        "1 cell x 16,907 tokens, width 200, 2 of 6 layers", masking, model,
        lambda: (masking(data), None),
        lambda masked, _: masking.mean_loss(model(masked.inputs), masked),
        {"encoder": model.performer},
    )  # fmt: skip


def of_nicheformer(source: Path | None) -> Case:
    """512 wide, 1,500 tokens."""
    n_tokens = 20_340
    batch = {"X": tokens(4, 1500, 30, n_tokens)}
    model = nicheformer.code(source).Nicheformer(
        dim_model=512, nheads=16, dim_feedforward=1024, nlayers=2, dropout=0.0, batch_first=True,
        masking_p=0.15, n_tokens=n_tokens, context_length=1500, lr=1e-3, warmup=10, batch_size=4,
        max_epochs=1,
    )  # fmt: skip
    masking = NicheformerMasking(masker(512), 512, n_tokens=n_tokens, seed=0)

    def mask() -> tuple[MaskedBatch, Any]:
        made, masked = masking(batch, model.embeddings)
        return masked, made

    def loss(masked: MaskedBatch, made: Any) -> Tensor:
        output = model(made["masked_indices"], made["attention_mask"])["mlm_prediction"]
        return model._compute_loss(output, model._prepare_target_indices(made["mask"], made["X"]))

    return Case(
        "4 cells x 1,500 tokens, width 512, 2 of 12 layers", masking, model, mask, loss,
        {"encoder": model.encoder},
    )  # fmt: skip


def of_bmfm(source: Path | None) -> Case:
    """768 wide, 1,024 genes; the strategy's probabilities and context, their ``Masker`` hides."""
    theirs = bmfm.code(source)
    fields = [
        theirs.FieldInfo("genes", vocab_size=30_000),
        theirs.FieldInfo(
            "expressions", is_masked=True, tokenization_strategy="continuous_value_encoder",
            decode_modes={"regression": {}}, num_special_tokens=5,
            encoder_kwargs={"kind": "mlp_with_special_token_embedding"},
        ),
    ]  # fmt: skip
    genes, values = tokens(4, 1024, 5, 30_000), expression(4, 1024, 1.0)
    model = theirs.SCBertForMaskedLM(theirs.SCBertConfig(
        fields=fields, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072,
        hidden_size=768, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=2,
    ))  # fmt: skip
    strategy = LatentMaskingStrategy(masker(), 768, tokenizer=bmfm.Tokenizer, seed=0)
    their_masker = theirs.Masker(
        change_ratio=0.15, mask_ratio=1.0, switch_ratio=0.0, tokenizer=bmfm.Tokenizer,
        masking_strategy=strategy,
    )  # fmt: skip
    rest = {
        "attention_mask": torch.ones_like(genes),
        "special_tokens_mask": torch.zeros_like(genes),
    }

    def mask() -> tuple[MaskedBatch, Any]:
        batch = {
            name: {"input_ids": x.clone(), **rest}
            for name, x in (("genes", genes), ("expressions", values))
        }
        input_ids, labels, attention_mask = their_masker.mask_inputs(fields, batch)
        made = strategy(input_ids[:, 1], labels["expressions"], attention_mask, gene_ids=genes)
        return made, (input_ids, attention_mask)

    def loss(masked: MaskedBatch, made: Any) -> Tensor:
        logits = model(input_ids=made[0], attention_mask=made[1]).logits
        predicted = logits["expressions_regression"].squeeze(-1)
        return F.mse_loss(predicted[masked.mask], values[masked.mask])

    return Case(
        "4 cells x 1,024 tokens, width 768, 2 of 12 layers; their Masker included", strategy, model,
        mask, loss, {"encoder": model.scbert.encoder},
    )  # fmt: skip


def of_scvi_tools(source: Path | None) -> Case:
    """The model's own sizes: 128 cells of 2,000 genes, one hidden layer of 128."""
    counts = torch.expm1(expression(128, 2000)).round()
    model = scvi_tools.code(source).VAE(2000, n_hidden=128, n_latent=10, n_layers=1)
    masking = MaskingStep(
        masker(), mask_value=0.0, embed_dim=128, seed=0, batches=BatchFormat("scvi-tools")
    )
    everywhere, one = torch.ones_like(counts, dtype=torch.bool), torch.zeros(128, 1)

    def loss(masked: MaskedBatch, _: Any) -> Tensor:
        return model({"X": masked.inputs, "batch": one, "labels": one})[2].loss

    return Case(
        "128 cells x 2,000 genes, the whole model", masking, model,
        lambda: (masking(counts, torch.log1p(counts), everywhere), None), loss,
        {"encoder": Place(model.z_encoder.encoder, output=True, layout="cells")},
    )  # fmt: skip


def of_cellplm(source: Path | None) -> Case:
    """1,024 wide over 13,500 genes."""
    cells, genes = 128, 13_500
    counts = torch.expm1(expression(cells, genes)).round()
    model = cellplm.code(source).OmicsFormer(
        gene_list=[f"gene {gene}" for gene in range(genes)], enc_mod="flowformer", enc_hid=1024,
        enc_layers=2, post_latent_dim=512, dec_mod="mlp", dec_hid=1024, dec_layers=2,
        out_dim=genes, batch_num=1, model_dropout=0.0, enc_head=8, latent_mod="ae", pe_type=None,
        cat_pe=False, mask_node_rate=1.0, mask_feature_rate=0.3,
    )  # fmt: skip
    model.mask_model = cellplm.MamMask()
    masking = MaskingStep(
        masker(), mask_value=0.0, embed_dim=1024, seed=0, batches=BatchFormat("cellplm")
    )
    everywhere = torch.ones_like(counts, dtype=torch.bool)

    def loss(masked: MaskedBatch, _: Any) -> Tensor:
        model.mask_model.masked = masked
        return model({
            "x_seq": counts.to_sparse(), "batch": torch.zeros(cells, dtype=torch.int64),
            "gene_mask": torch.ones(genes, dtype=torch.bool),
        })[1]  # fmt: skip

    return Case(
        "128 cells x 13,500 genes, width 1,024, 2 of 4 layers", masking, model,
        lambda: (masking(counts, torch.log1p(counts), everywhere), None), loss,
        {"encoder": Place(model.encoder, "x_dict", key="h", layout="cells")},
    )  # fmt: skip


def of_uce(source: Path | None) -> Case:
    """1,280 wide, 1,536 tokens of 5,120."""
    cells, length = 2, 1536
    ids, counts = tokens(cells, length, 3, 20_000), torch.expm1(expression(cells, length, 1.0))
    proteins = nn.Embedding(20_000, 5120).requires_grad_(False)
    model = uce.code(source).TransformerModel(5120, 1280, 20, 5120, 2, 1280, dropout=0.0)
    masking = MaskingStep(
        masker(), mask_value=0, embed_dim=1280, seed=0,
        batches=BatchFormat("uce", "ids", "mask", "token", (0, 1)),
    )  # fmt: skip
    there = torch.ones_like(ids)

    def loss(masked: MaskedBatch, _: Any) -> Tensor:
        _, embedding = model(proteins(masked.inputs.T), mask=(~masked.mask).float())
        return embedding.square().mean()

    return Case(
        "2 cells x 1,536 tokens, width 1,280, 2 of 33 layers", masking, model,
        lambda: (masking.mask(ids, values=counts, ids=ids, padding_mask=there), None), loss,
        {"encoder": Place(model.transformer_encoder, layout="sequence_first")},
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[Path | None], Case], str | None]] = {
    "scgpt": (of_scgpt, None),
    "hugging-face": (of_hugging_face, None),
    "scfoundation": (of_scfoundation, "scFoundation"),
    "scbert": (of_scbert, "scBERT"),
    "nicheformer": (of_nicheformer, "nicheformer"),
    "bmfm": (of_bmfm, "biomed-multi-omic"),
    "scvi-tools": (of_scvi_tools, None),
    "cellplm": (of_cellplm, None),
    "uce": (of_uce, None),
}
"""What is measured, and the name of the checkout where it is no package."""
