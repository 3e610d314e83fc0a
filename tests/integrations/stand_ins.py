"""Small models of torch parts that are called as those of scGPT, scFoundation, scBERT, Nicheformer
and BMFM-RNA are.

Their packages are not in the registry, or need CUDA. What a model takes and returns, and the names
of the parts that the context is added to, are theirs; the layers inside are torch's.
"""

import torch
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


class ScGpt(nn.Module):
    """``scgpt.model.TransformerModel``, input_emb_style "continuous"."""

    def __init__(self, ntoken: int, d_model: int = WIDTH) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(ntoken, d_model), nn.LayerNorm(d_model))
        self.value_encoder = _Continuous(d_model)
        self.transformer_encoder = encoder(d_model)
        self.decoder = nn.Sequential(
            nn.Linear(d_model, d_model), nn.LeakyReLU(), nn.Linear(d_model, 1)
        )

    def forward(
        self, src: Tensor, values: Tensor, src_key_padding_mask: Tensor
    ) -> dict[str, Tensor]:
        tokens = self.encoder(src) + self.value_encoder(values)
        output = self.transformer_encoder(tokens, src_key_padding_mask=src_key_padding_mask)
        return {"mlm_output": self.decoder(output)[..., 0], "cell_emb": output[:, 0]}


class _Layers(nn.Module):
    """``pytorchTransformerModule`` of scFoundation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers, self.norm = encoder(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return self.norm(self.layers(x, src_key_padding_mask=padding_mask))


class _ValueEmbedding(nn.Module):
    """``AutoDiscretizationEmbedding2``: values in soft bins, and embeddings of their own for mask
    and padding.
    """

    def __init__(self, dim: int, mask_token_id: float, pad_token_id: float) -> None:
        super().__init__()
        self.bins = nn.Sequential(
            nn.Linear(1, 10),
            nn.LeakyReLU(0.1),
            nn.Linear(10, 10),
            nn.Softmax(dim=-1),
            nn.Linear(10, dim, bias=False),
        )
        self.special = nn.Embedding(2, dim)
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id

    def forward(self, x: Tensor) -> Tensor:
        embedded = torch.where(x == self.mask_token_id, self.special.weight[0], self.bins(x))
        return torch.where(x == self.pad_token_id, self.special.weight[1], embedded)


class MaeAutobin(nn.Module):
    """``MaeAutobin`` of scFoundation."""

    def __init__(
        self,
        max_seq_len: int,
        mask_token_id: float,
        pad_token_id: float,
        embed_dim: int = WIDTH,
        decoder_dim: int = 16,
    ) -> None:
        super().__init__()
        self.token_emb = _ValueEmbedding(embed_dim, mask_token_id, pad_token_id)
        self.pos_emb = nn.Embedding(max_seq_len + 1, embed_dim)
        self.encoder, self.decoder = _Layers(embed_dim), _Layers(decoder_dim)
        self.decoder_embed, self.norm = nn.Linear(embed_dim, decoder_dim), nn.LayerNorm(decoder_dim)
        self.to_final = nn.Linear(decoder_dim, 1)

    def forward(
        self,
        x: Tensor,
        padding_label: Tensor,
        encoder_position_gene_ids: Tensor,
        encoder_labels: Tensor,
        decoder_data: Tensor,
        mask_gene_name: bool,
        mask_labels: Tensor | None,
        decoder_position_gene_ids: Tensor,
        decoder_data_padding_labels: Tensor | None = None,
    ) -> Tensor:
        assert not mask_gene_name
        x = self.encoder(
            self.token_emb(x[..., None]) + self.pos_emb(encoder_position_gene_ids),
            padding_mask=padding_label,
        )
        decoder_data = self.token_emb(decoder_data[..., None])
        decoder_data[encoder_labels] = x[~padding_label]
        decoder_data = self.decoder_embed(decoder_data + self.pos_emb(decoder_position_gene_ids))
        return self.to_final(
            self.norm(self.decoder(decoder_data, padding_mask=decoder_data_padding_labels))
        )[..., 0]


class PerformerLM(nn.Module):
    """``performer_pytorch.PerformerLM`` of scBERT."""

    def __init__(self, *, num_tokens: int, max_seq_len: int, dim: int = WIDTH) -> None:
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(num_tokens, dim), nn.Embedding(max_seq_len, dim)
        self.performer, self.norm, self.to_out = (
            encoder(dim),
            nn.LayerNorm(dim),
            nn.Linear(dim, num_tokens),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_emb(x) + self.pos_emb.weight[: x.shape[1]]
        return self.to_out(self.norm(self.performer(x)))


class Nicheformer(nn.Module):
    """``nicheformer.models.Nicheformer``, learnable positions, without its trainer."""

    def __init__(self, n_tokens: int, context_length: int, dim_model: int = WIDTH) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(n_tokens + 5, dim_model, padding_idx=1)
        self.positional_embedding = nn.Embedding(context_length, dim_model)
        self.encoder, self.classifier_head = encoder(dim_model), nn.Linear(dim_model, n_tokens)

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        embeddings = self.embeddings(x) + self.positional_embedding.weight[: x.shape[1]]
        output = self.encoder(embeddings, is_causal=False, src_key_padding_mask=attention_mask)
        return {"mlm_prediction": self.classifier_head(output), "transformer_output": output}


class Bmfm(nn.Module):
    """A model of biomed-multi-omic: input_ids (B, fields, L), genes and continuous expressions,
    attention_mask 1 = token.
    """

    def __init__(self, num_genes: int, hidden_size: int = WIDTH) -> None:
        super().__init__()
        self.genes, self.special = (
            nn.Embedding(num_genes, hidden_size),
            nn.Embedding(16, hidden_size),
        )
        self.expressions = _Continuous(hidden_size)
        self.encoder, self.head = encoder(hidden_size), nn.Linear(hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        genes, values = input_ids[:, 0].long(), input_ids[:, 1]
        token = (-values - 1).clamp(min=0).long()  # mask and special tokens are -(id + 1)
        embedded = torch.where(values[..., None] < 0, self.special(token), self.expressions(values))
        output = self.encoder(
            self.genes(genes) + embedded, src_key_padding_mask=attention_mask == 0
        )
        return {"expressions": self.head(output)[..., 0]}


class BmfmMasker:
    """``bmfm_targets.training.masking.Masker``, one masked field: a Bernoulli draw from the
    strategy's rescaled probabilities.
    """

    def __init__(
        self, change_ratio: float, mask_ratio: float, mask_token_id: int, masking_strategy: object
    ) -> None:
        self.change_ratio, self.mask_ratio, self.mask_value = (
            change_ratio,
            mask_ratio,
            -(mask_token_id + 1),
        )
        self.masking_strategy = masking_strategy

    def mask_inputs(
        self, field: str, batch: dict[str, dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        input_ids = batch[field]["input_ids"].clone()
        labels, random = input_ids.clone(), torch.rand(input_ids.shape)
        probabilities = self.masking_strategy.get_mask_probs(batch)
        probabilities *= self.change_ratio / probabilities.mean()
        probabilities = probabilities.clamp(0, 1)
        probabilities[batch[field]["special_tokens_mask"].bool()] = 0
        labels[random > probabilities] = -100
        input_ids[random <= probabilities * self.mask_ratio] = self.mask_value
        fields = [batch[name]["input_ids"] if name != field else input_ids for name in batch]
        return torch.stack(fields, dim=1), {field: labels}, batch[field]["attention_mask"]
