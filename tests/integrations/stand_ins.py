"""Small models of torch parts with the names, signatures, types and order of calls of scGPT,
scFoundation, scBERT, Nicheformer and BMFM-RNA.

Their own code is run by ``python -m mam_kernels.integrations check FRAMEWORK``, where it is
installed or checked out; these stand in for it where it is not.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.real_cells import encoder

WIDTH = 32


class _Continuous(nn.Module):
    """(B, L) values to (B, L, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values[..., None])


# scGPT


class TransformerModel(nn.Module):
    """``scgpt.model.TransformerModel``, input_emb_style "continuous"."""

    def __init__(
        self, ntoken: int, d_model: int = WIDTH, nhead: int = 2, d_hid: int = 64, nlayers: int = 1,
        nlayers_cls: int = 3, n_cls: int = 1, vocab: Any = None, dropout: float = 0.5,
        pad_token: str = "<pad>", pad_value: int = 0, do_mvc: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(ntoken, d_model), nn.LayerNorm(d_model))
        self.value_encoder = _Continuous(d_model)
        self.transformer_encoder = encoder(d_model, nlayers, nhead)
        self.decoder = nn.Sequential(
            nn.Linear(d_model, d_model), nn.LeakyReLU(), nn.Linear(d_model, 1)
        )
        self.mvc_decoder = nn.Linear(d_model, d_model) if do_mvc else None

    def forward(
        self, src: Tensor, values: Tensor, src_key_padding_mask: Tensor,
        batch_labels: Tensor | None = None, CLS: bool = False, CCE: bool = False,
        MVC: bool = False, ECS: bool = False, do_sample: bool = False,
    ) -> Mapping[str, Tensor]:  # fmt: skip
        genes = self.encoder(src)
        output = self.transformer_encoder(
            genes + self.value_encoder(values), src_key_padding_mask=src_key_padding_mask
        )
        outputs = {"mlm_output": self.decoder(output)[..., 0], "cell_emb": output[:, 0]}
        if MVC:
            outputs["mvc_output"] = (self.mvc_decoder(genes) * output[:, :1]).sum(dim=-1)
        return outputs


def random_mask_value(
    values: Tensor, mask_ratio: float = 0.15, mask_value: int = -1, pad_value: int = 0
) -> Tensor:
    """``scgpt.tokenizer.random_mask_value``: the whole part of a share of what is not padding."""
    masked = values.clone()
    for row in masked:
        there = (row != pad_value).nonzero()[:, 0]
        row[there[torch.randperm(len(there))[: int(len(there) * mask_ratio)]]] = mask_value
    return masked.float()


# scFoundation


class pytorchTransformerModule(nn.Module):
    """``pretrainmodels.transformer.pytorchTransformerModule``."""

    def __init__(
        self, max_seq_len: int, dim: int, depth: int, heads: int, ff_mult: int = 4,
        norm_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.transformer_encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, dim * ff_mult, dropout=0.0, batch_first=True, norm_first=norm_first
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        for layer in self.transformer_encoder:
            x = layer(x, src_key_padding_mask=padding_mask)
        return self.norm(x)


class _ValueEmbedding(nn.Module):
    """``AutoDiscretizationEmbedding2``: values in soft bins, and embeddings of their own for mask
    and padding.
    """

    def __init__(self, dim: int, bin_num: int, mask_token_id: float, pad_token_id: float) -> None:
        super().__init__()
        self.bins = nn.Sequential(
            nn.Linear(1, bin_num),
            nn.LeakyReLU(0.1),
            nn.Linear(bin_num, bin_num),
            nn.Softmax(dim=-1),
            nn.Linear(bin_num, dim, bias=False),
        )
        self.special = nn.Embedding(2, dim)
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id

    def forward(self, x: Tensor, output_weight: int = 0) -> Tensor:
        embedded = torch.where(x == self.mask_token_id, self.special.weight[0], self.bins(x))
        return torch.where(x == self.pad_token_id, self.special.weight[1], embedded)


class MaeAutobin(nn.Module):
    """``pretrainmodels.mae_autobin.MaeAutobin``; its encoder and decoder are set from outside."""

    def __init__(
        self, *, num_tokens: int, max_seq_len: int, embed_dim: int, decoder_embed_dim: int,
        tie_embed: bool = False, bin_alpha: float = 1.0, bin_num: int = 10,
        pad_token_id: float | None = None, mask_token_id: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token_emb = _ValueEmbedding(embed_dim, bin_num, mask_token_id, pad_token_id)
        self.pos_emb = nn.Embedding(max_seq_len + 1, embed_dim)
        self.encoder = self.decoder = None
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.norm = nn.LayerNorm(decoder_embed_dim)
        self.to_final = nn.Linear(decoder_embed_dim, 1)

    def forward(
        self, x: Tensor, padding_label: Tensor, encoder_position_gene_ids: Tensor,
        encoder_labels: Tensor, decoder_data: Tensor, mask_gene_name: bool,
        mask_labels: Tensor | None, decoder_position_gene_ids: Tensor,
        decoder_data_padding_labels: Tensor, output_attentions: bool = False,
    ) -> Tensor:  # fmt: skip
        assert not mask_gene_name
        x = self.token_emb(torch.unsqueeze(x, 2), output_weight=0)
        x = self.encoder(x + self.pos_emb(encoder_position_gene_ids), padding_mask=padding_label)
        decoder_data = self.token_emb(torch.unsqueeze(decoder_data, 2))
        batch_idx, gen_idx = encoder_labels.nonzero(as_tuple=True)
        decoder_data[batch_idx, gen_idx] = x[~padding_label].to(decoder_data.dtype)
        decoder_data = self.decoder_embed(decoder_data + self.pos_emb(decoder_position_gene_ids))
        x = self.decoder(decoder_data, padding_mask=decoder_data_padding_labels)
        return self.to_final(self.norm(x)).squeeze(2)


# scBERT


class PerformerLM(nn.Module):
    """``performer_pytorch.PerformerLM`` of scBERT."""

    def __init__(
        self, *, num_tokens: int, max_seq_len: int, dim: int = WIDTH, depth: int = 1,
        heads: int = 2, local_attn_heads: int = 0, g2v_position_emb: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(num_tokens, dim), nn.Embedding(max_seq_len, dim)
        self.performer, self.norm, self.to_out = (
            encoder(dim, depth, heads),
            nn.LayerNorm(dim),
            nn.Linear(dim, num_tokens),
        )

    def forward(
        self, x: Tensor, return_encodings: bool = False, output_attentions: bool = False
    ) -> Tensor:
        x = self.token_emb(x) + self.pos_emb.weight[: x.shape[1]]
        return self.to_out(self.norm(self.performer(x)))


def data_mask(
    data: Tensor, mask_prob: float = 0.15, replace_prob: float = 0.9, num_tokens: int | None = None,
    random_token_prob: float = 0.0, mask_token_id: int = 6, pad_token_id: int = 6,
    mask_ignore_token_ids: Sequence[int] = (0,),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``data_mask`` of scBERT's pretrain.py: a share of each cell's bins above 0, rounded up."""
    order = torch.rand(data.shape)
    for ignored in {*mask_ignore_token_ids, pad_token_id}:
        order = order.masked_fill(data == ignored, 2.0)
    number = ((order < 2).sum(dim=1, keepdim=True) * mask_prob).ceil().long()
    mask = order.argsort(dim=1).argsort(dim=1) < number
    read = data.masked_fill(mask & (torch.rand(data.shape) < replace_prob), mask_token_id)
    return read, data.masked_fill(~mask, pad_token_id)


# Nicheformer


def complete_masking(batch: dict[str, Tensor], p: float, n_tokens: int) -> dict[str, Tensor]:
    """``nicheformer.models._utils.complete_masking``: context tokens are hidden too, but for 3."""
    indices = torch.where(batch["X"] == 0, 1, batch["X"])
    hidden = torch.rand(indices.shape) < p
    hidden &= (indices != 1) & (indices != 3)
    read = torch.where(hidden, 0, indices)
    wrong = torch.randint(10, n_tokens, indices.shape) * (torch.rand(indices.shape) < 0.1)
    read = torch.where(read == 0, wrong.to(read.dtype), read)
    read = torch.where(read == 0, indices * (torch.rand(indices.shape) < 0.1), read)
    return batch | {
        "X": indices, "masked_indices": read, "mask": (~hidden).to(indices.dtype),
        "attention_mask": read == 1,
    }  # fmt: skip


class Nicheformer(LightningModule):
    """``nicheformer.models._nicheformer.Nicheformer``, learnable positions."""

    def __init__(
        self, dim_model: int, nheads: int, dim_feedforward: int, nlayers: int, dropout: float,
        batch_first: bool, masking_p: float, n_tokens: int, context_length: int, lr: float,
        warmup: int, batch_size: int, max_epochs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.encoder = encoder(dim_model, nlayers, nheads)
        self.embeddings = nn.Embedding(n_tokens + 5, dim_model, padding_idx=1)
        self.positional_embedding = nn.Embedding(context_length, dim_model)
        self.classifier_head = nn.Linear(dim_model, n_tokens)

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        embeddings = self.embeddings(x) + self.positional_embedding.weight
        output = self.encoder(embeddings, is_causal=False, src_key_padding_mask=attention_mask)
        return {"mlm_prediction": self.classifier_head(output), "transformer_output": output}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._own_step(batch, "train_loss")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._own_step(batch, "val_loss")

    def _own_step(self, batch: dict[str, Tensor], name: str) -> Tensor:
        with torch.no_grad():
            batch = complete_masking(batch, self.hparams.masking_p, self.hparams.n_tokens)
        predictions = self.forward(batch["masked_indices"], batch["attention_mask"])
        target = self._prepare_target_indices(batch["mask"], batch["X"])
        loss = self._compute_loss(predictions["mlm_prediction"], target)
        self.log(name, loss, sync_dist=True, prog_bar=True, reduce_fx="mean")
        return loss

    def _prepare_target_indices(self, mask: Tensor, real_indices: Tensor) -> Tensor:
        return torch.where(mask == 0, real_indices, -100).type(torch.int64)

    def _compute_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            predictions.view(-1, self.hparams.n_tokens), targets.view(-1)
        )


# BMFM-RNA


class FieldInfo(SimpleNamespace):
    """``bmfm_targets.config.FieldInfo``."""

    def __init__(
        self, field_name: str, vocab_size: int | None = None, is_masked: bool = False,
        is_input: bool = True, tokenization_strategy: str = "tokenize", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            field_name=field_name, vocab_size=vocab_size, is_masked=is_masked, is_input=is_input,
            tokenization_strategy=tokenization_strategy, **options,
        )  # fmt: skip


class SCBertConfig(SimpleNamespace):
    """``bmfm_targets.config.SCBertConfig``."""


class SCBertForMaskedLM(nn.Module):
    """``SCBertForMaskedLM``: input_ids (B, fields, L) of genes and continuous expressions,
    attention_mask 1 = token.
    """

    def __init__(self, config: SCBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.genes = nn.Embedding(config.fields[0].vocab_size, width)
        self.special, self.expressions = nn.Embedding(16, width), _Continuous(width)
        self.scbert = nn.Module()
        self.scbert.encoder = encoder(width, 1, config.num_attention_heads)
        self.head = nn.Linear(width, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        genes, values = input_ids[:, 0].long(), input_ids[:, 1]
        token = (-values - 1).clamp(min=0).long()  # mask and special tokens are -(id + 1)
        embedded = torch.where(values[..., None] < 0, self.special(token), self.expressions(values))
        output = self.scbert.encoder(
            self.genes(genes) + embedded, src_key_padding_mask=attention_mask == 0
        )
        return SimpleNamespace(logits={"expressions_regression": self.head(output)})


class Masker:
    """``bmfm_targets.training.masking.Masker``, one masked field: a Bernoulli draw from the
    strategy's probabilities, divided by their mean over all positions.
    """

    def __init__(
        self, change_ratio: float, mask_ratio: float, switch_ratio: float, tokenizer: Any,
        comask_across_fields: bool = False, prevent_attention_to_masked: bool = False,
        masking_strategy: Any = None,
    ) -> None:  # fmt: skip
        self.change_ratio, self.mask_ratio = change_ratio, mask_ratio
        self.tokenizer, self.masking_strategy = tokenizer, masking_strategy

    def mask_inputs(
        self, fields: list[FieldInfo], batch: dict[str, Mapping[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        (field,) = (field for field in fields if field.is_masked)
        encoding = batch[field.field_name]
        input_ids, label_ids = encoding["input_ids"], encoding["input_ids"].clone()
        mask_value = -(self.tokenizer.mask_token_id + 1)
        mask_probs = (
            torch.ones_like(input_ids)
            if self.masking_strategy is None
            else self.masking_strategy.get_mask_probs(batch)
        ).float()
        mask_probs[input_ids == mask_value] = 0
        mask_probs *= self.change_ratio / mask_probs.mean()
        mask_probs = torch.clamp(mask_probs, 0, 1)
        mask_probs[encoding["special_tokens_mask"].bool()] = 0
        random_tensor = torch.rand(input_ids.shape)
        label_ids[random_tensor.gt(mask_probs)] = -100
        input_ids[random_tensor.le(mask_probs * self.mask_ratio)] = mask_value
        stacked = torch.stack([batch[each.field_name]["input_ids"] for each in fields], dim=1)
        return stacked, {field.field_name: label_ids}, encoding["attention_mask"]
