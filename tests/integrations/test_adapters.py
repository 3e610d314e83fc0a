"""The adapters of single-cell frameworks: what they hide, and of what they make it. Models are
trained with them in test_examples.py.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam_kernels.integrations import (
    LatentMaskingStrategy,
    NicheformerMasking,
    ScBertMasking,
    ScFoundationMasking,
    ScGptMasking,
)
from tests.integrations import stand_ins
from tests.integrations.stand_ins import WIDTH
from tests.real_cells import counts, sequences, small_masker

PAD, CLS = 0, 1
GENES = counts().shape[1]


# scGPT


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    gene_ids, values = sequences(CLS, PAD, -2)
    return gene_ids, values, gene_ids.eq(PAD)


def scgpt(input_dim: int | None = None, **options) -> ScGptMasking:
    torch.manual_seed(0)
    return ScGptMasking(
        small_masker(input_dim), WIDTH, **{"special_ids": (PAD, CLS, 2), "seed": 0} | options
    )


@pytest.mark.parametrize("corruption", ["all", "80/10/10"])
def test_scgpt_hides_neither_padding_nor_special_tokens(pairs, corruption):
    gene_ids, values, padding = pairs
    gene = gene_ids >= 3
    masking = scgpt(corruption=corruption)
    for _ in range(10):
        masked = masking(gene_ids, values, padding)
        assert not (masked.mask & ~gene).any()
        assert masked.mask.sum(dim=1).tolist() == [int(0.3 * n) for n in gene.sum(dim=1).tolist()]
        assert torch.equal(masked.inputs[~masked.mask], values[~masked.mask])
        assert (masked.inputs[gene] != -2).all()  # the padding's value is nowhere else
        if corruption == "all":
            assert torch.equal(masked.inputs == -1, masked.mask)


def test_scgpt_refuses_what_it_cannot_use(pairs):
    gene_ids, values, padding = pairs
    with pytest.raises(
        ValueError,
        match=r"src_key_padding_mask: expected a token \(0\) in each row; got none in row 0",
    ):
        scgpt()(gene_ids, values, torch.ones_like(padding))
    with pytest.raises(
        ValueError, match=r"values: expected on cpu, as the module is; got .* on meta"
    ):
        scgpt()(gene_ids, values.to("meta"), padding)
    with pytest.raises(
        ValueError,
        match=r"embeddings: expected \(B, L, 32\), as input_dim of the masker says; got NoneType",
    ):
        scgpt(WIDTH)(gene_ids, values, padding)
    with pytest.raises(
        ValueError, match="embeddings: expected None, as input_dim of the masker says"
    ):
        scgpt()(gene_ids, values, padding, embeddings=torch.zeros(*values.shape, WIDTH))


# scFoundation


TOTALS = 2


@pytest.fixture(scope="module")
def dense() -> Tensor:
    """Log values of all genes, then the logarithm of the total, twice: where a cell comes from and
    where it should go.
    """
    total = torch.log10(counts().sum(dim=1, keepdim=True))
    return torch.cat([torch.log1p(counts()), total, total], dim=1)


def scfoundation(**options) -> ScFoundationMasking:
    torch.manual_seed(0)
    sizes = {
        "seq_len": GENES + TOTALS,
        "num_genes": GENES,
        "mask_token_id": 102,
        "pad_token_id": 103,
    }
    return ScFoundationMasking(small_masker(), WIDTH, 16, **{**sizes, "seed": 0} | options)


def test_scfoundation_hides_shares_of_values_and_zeros_and_gathers_the_rest(dense):
    masked, arguments = scfoundation()(dense)
    genes, mask = dense[:, :GENES], masked.mask[:, :GENES]
    assert not masked.mask[:, GENES:].any()
    assert (mask & (genes != 0)).sum(dim=1).tolist() == [
        int(0.3 * n) for n in (genes != 0).sum(dim=1).tolist()
    ]
    assert (mask & (genes == 0)).sum(dim=1).tolist() == [
        int(0.03 * n) for n in (genes == 0).sum(dim=1).tolist()
    ]
    visible = (dense != 0) & ~masked.mask
    assert torch.equal(arguments["encoder_labels"], visible)
    there = ~arguments["padding_label"]
    assert there.sum(dim=1).tolist() == visible.sum(dim=1).tolist()
    positions, read = arguments["encoder_position_gene_ids"], arguments["x"]
    assert torch.equal(read[there], dense[visible])
    assert torch.equal(positions[there], visible.nonzero()[:, 1])
    assert (read[~there] == 103).all()
    assert (positions[~there] == GENES + TOTALS).all()
    assert torch.equal(arguments["decoder_data"], dense.masked_fill(masked.mask, 102))
    assert torch.equal(masked.labels, dense.masked_fill(~masked.mask, -100))


def test_scfoundation_hides_zeros_and_values_in_one_draw(dense):
    masked, _ = scfoundation(zero_ratio=None)(dense)
    assert masked.mask.sum(dim=1).eq(int(0.3 * GENES)).all()
    assert not masked.mask[:, GENES:].any()
    genes, mask = dense[:, :GENES], masked.mask[:, :GENES]
    assert float((mask & (genes == 0)).sum() / (genes == 0).sum()) == pytest.approx(0.3, abs=0.05)


def test_scfoundation_refuses_what_it_cannot_use(dense):
    with pytest.raises(
        ValueError, match=r"values: expected shape \(B, seq_len\) = \('any', 102\); got"
    ):
        scfoundation()(dense[:, 1:])
    with pytest.raises(
        ValueError, match="values: expected a non-zero gene in each row; got none in row 0"
    ):
        scfoundation()(dense * 0)
    with pytest.raises(
        ValueError,
        match="masker: expected input_dim=None, since it attends to values; got input_dim=32",
    ):
        ScFoundationMasking(
            small_masker(32), WIDTH, 16, seq_len=9, mask_token_id=102, pad_token_id=103
        )
    with pytest.raises(ValueError, match=r"zero_ratio: expected a number in \[0.0, 1.0\]; got 3"):
        scfoundation(zero_ratio=3)


# scBERT


def scbert(input_dim: int | None = None, **options) -> ScBertMasking:
    torch.manual_seed(0)
    return ScBertMasking(small_masker(input_dim), WIDTH, **{"seed": 0} | options)


def test_scbert_bins_on_the_device_and_hides_no_zero():
    values = torch.log2(1 + counts())
    masking = scbert()
    tokens = masking.bins(values)
    assert tokens.shape == (len(values), GENES + 1)
    assert torch.equal(tokens[:, :-1], values.floor().clamp(max=5).long())
    assert not tokens[:, -1].any()
    unchanged = 0
    for _ in range(10):
        masked = masking(values)
        assert not (masked.mask & (tokens == 0)).any()
        assert masked.mask.sum(dim=1).tolist() == [
            int(0.3 * n) for n in (tokens > 0).sum(dim=1).tolist()
        ]
        assert ((masked.inputs == 6) | (masked.inputs == tokens)).all()
        assert torch.equal(masked.labels, tokens.masked_fill(~masked.mask, 6))
        unchanged += float(((masked.inputs == tokens) & masked.mask).sum() / masked.mask.sum())
    assert 0.05 < unchanged / 10 < 0.15


def test_scbert_takes_the_tokens_of_their_dataset_and_hides_one_at_least():
    data = F.pad(torch.log2(1 + counts()).clamp(max=5).long(), (0, 1))
    masking = scbert()
    assert torch.equal(masking(data, step=3).inputs, masking(data, step=3).inputs)
    data[0] = 0
    data[1] = 0
    data[1, 7] = 4
    masked = masking(data)
    assert masked.mask[0].sum() == 0
    assert masked.mask[1].nonzero().tolist() == [[7]]
    assert not masked.mask[:, -1].any()
    logits = torch.zeros(*data.shape, 7, requires_grad=True)
    torch.testing.assert_close(
        masking.mean_loss(logits, masked),
        F.cross_entropy(logits.transpose(1, 2), masked.labels, ignore_index=6),
    )
    none = masking(data[:1])
    assert masking.mean_loss(logits[:1], none) == 0  # not NaN
    with pytest.raises(ValueError, match=r"data: expected ids in \[0, 7\), the vocabulary"):
        masking(data + 5)
    with pytest.raises(ValueError, match="data: expected a gene and the last 0"):
        masking(data[:, :1])


# Nicheformer


FIRST_GENE, N_TOKENS = 30, GENES + 30


@pytest.fixture(scope="module")
def ranked() -> dict[str, Tensor]:
    """Three context tokens, then the genes by rank, 0 where there are no more."""
    rows = [
        row.argsort(descending=True, stable=True)[: int((row > 0).sum())] + FIRST_GENE
        for row in counts()
    ]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    context = torch.tensor([5, 3, 9]).expand(len(ids), 3)  # species, modality, assay
    return {"X": torch.cat([context, ids], dim=1).int(), "cell": torch.arange(len(ids))}


def nicheformer(**options) -> NicheformerMasking:
    torch.manual_seed(0)
    return NicheformerMasking(
        small_masker(WIDTH), WIDTH, **{"n_tokens": N_TOKENS, "seed": 0} | options
    )


def test_nicheformer_hides_neither_padding_nor_context(ranked):
    embeddings = nn.Embedding(N_TOKENS + 5, WIDTH)
    masking, gene = nicheformer(), ranked["X"] >= FIRST_GENE
    for _ in range(10):
        batch, _ = masking(ranked, embeddings)
        assert torch.equal(batch["cell"], ranked["cell"])
        hidden = batch["mask"] == 0
        assert not (hidden & ~gene).any()
        assert hidden.sum(dim=1).tolist() == [int(0.3 * n) for n in gene.sum(dim=1).tolist()]
        assert torch.equal(batch["attention_mask"], ranked["X"] == 0)
        assert torch.equal(batch["X"] == 1, ranked["X"] == 0)
        read = batch["masked_indices"]
        assert torch.equal(read[~hidden], batch["X"][~hidden])
        assert ((read[hidden] == 0) | (read[hidden] >= FIRST_GENE)).all()
        assert 0.7 < (read[hidden] == 0).float().mean() < 0.9
    assert ranked["X"][0, -1] in (
        0,
        *range(FIRST_GENE, N_TOKENS),
    )  # the batch that came is as it was
    with pytest.raises(ValueError, match=r"X: expected ids in \[0, 130\), the vocabulary"):
        masking({"X": ranked["X"] + 120}, embeddings)
    with pytest.raises(ValueError, match="masker: expected input_dim, the width of the embeddings"):
        NicheformerMasking(small_masker(), WIDTH, n_tokens=N_TOKENS)


# BMFM-RNA


@pytest.fixture(scope="module")
def fields() -> dict[str, dict[str, Tensor]]:
    """What their collator has before masking: <cls> first; special tokens of the continuous field
    are -(id + 1).
    """
    gene_ids, values = sequences(CLS, PAD, -(PAD + 1))
    values[:, 0] = -(CLS + 1)
    rest = {
        "attention_mask": (gene_ids != PAD).long(),
        "special_tokens_mask": (gene_ids < 3).long(),
    }
    return {"genes": {"input_ids": gene_ids, **rest}, "expressions": {"input_ids": values, **rest}}


def bmfm(**options) -> LatentMaskingStrategy:
    torch.manual_seed(0)
    return LatentMaskingStrategy(small_masker(**options), WIDTH, seed=0)


FIELDS = [
    stand_ins.FieldInfo("genes"),
    stand_ins.FieldInfo(
        "expressions", is_masked=True, tokenization_strategy="continuous_value_encoder"
    ),
]


class Tokenizer:
    mask_token_id, all_special_ids = 2, [0, 1, 2]


def their_masker(strategy, change_ratio=0.3) -> stand_ins.Masker:
    return stand_ins.Masker(change_ratio, 1.0, 0.0, Tokenizer, masking_strategy=strategy)


def collated(masker: stand_ins.Masker, fields, cells: Tensor):
    return masker.mask_inputs(
        FIELDS,
        {name: {key: x[cells] for key, x in field.items()} for name, field in fields.items()},
    )


def test_bmfm_probabilities_are_the_latents_attention(fields):
    strategy, special = bmfm(), fields["genes"]["special_tokens_mask"].bool()
    before = {name: {key: x.clone() for key, x in field.items()} for name, field in fields.items()}
    probabilities = strategy.get_mask_probs(fields)
    assert all(
        torch.equal(x, before[name][key])
        for name, field in fields.items()
        for key, x in field.items()
    )
    assert (probabilities[~special] > 0).all()
    assert (probabilities <= 1).all()
    gene = probabilities * ~special
    torch.testing.assert_close(gene.sum(dim=1), 0.3 * (~special).sum(dim=1))
    # which leaves the mean of all positions that of the genes
    torch.testing.assert_close(probabilities.mean(), gene.sum() / (~special).sum())
    weights = strategy.masker(
        fields["expressions"]["input_ids"], ~special, num_masked=0, seed=0, step=0
    ).importance
    torch.testing.assert_close(
        gene[0] / gene[0].sum(),
        weights[0] / weights[0].sum(),
        rtol=1e-4,
        atol=1e-7,
    )

    masker = their_masker(strategy)
    for _ in range(10):
        _, labels, _ = collated(masker, fields, torch.arange(len(special)))
        assert not ((labels["expressions"] != -100) & special).any()


def test_bmfm_context_is_that_of_the_unmasked_values(fields):
    strategy, special = bmfm(), fields["genes"]["special_tokens_mask"].bool()
    true = fields["expressions"]["input_ids"]
    masker = their_masker(strategy)
    input_ids, labels, attention_mask = collated(masker, fields, torch.arange(len(special)))
    assert (input_ids[:, 1] != true).any()
    masked = strategy(input_ids[:, 1], labels["expressions"], attention_mask)
    expected = strategy.injection(strategy.masker(true, ~special, num_masked=0).context)[0]
    torch.testing.assert_close(masked.encoder_shift, expected)
    turned = attention_mask[:, None].expand(-1, attention_mask.shape[1], -1)
    diagonal = turned * attention_mask[..., None]  # as of prevent_attention_to_masked=True
    again = strategy(input_ids[:, 1], labels["expressions"], diagonal)
    torch.testing.assert_close(again.encoder_shift, expected)


@pytest.mark.parametrize("padding", [0, 40, 200])
def test_bmfm_hides_the_share_that_is_asked_for_at_any_padding(fields, padding):
    torch.manual_seed(0)
    padded = {
        name: {
            key: F.pad(x, (0, padding), value={"input_ids": 0 if name == "genes" else -1}.get(
                key, float(key == "special_tokens_mask")))
            for key, x in field.items()
        }
        for name, field in fields.items()
    }  # fmt: skip
    strategy = LatentMaskingStrategy(small_masker(), WIDTH, tokenizer=Tokenizer, seed=0)
    without = {
        name: {key: x for key, x in field.items() if key != "special_tokens_mask"}
        for name, field in padded.items()
    }
    torch.testing.assert_close(
        strategy.eval().get_mask_probs(without), strategy.get_mask_probs(padded)
    )
    gene = padded["genes"]["input_ids"] >= 3
    hidden = torch.zeros(())
    for _ in range(20):
        _, labels, _ = collated(their_masker(strategy, 0.15), padded, torch.arange(len(gene)))
        hidden += (labels["expressions"] != -100).sum()
    number = 20 * int(gene.sum())
    assert abs(float(hidden) / number - 0.15) <= 5.5 * (0.15 * 0.85 / number) ** 0.5


# Versions


def test_another_version_is_said_once(monkeypatch):
    from mam_kernels.integrations import formats

    formats.warn_of_untried.cache_clear()
    monkeypatch.setattr(formats.importlib.metadata, "version", lambda package: "9.9")
    with pytest.warns(UserWarning, match=r"tried with scGPT 0\.2\.4; found 9\.9: run `python -m"):
        scgpt()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scgpt()
    formats.warn_of_untried.cache_clear()
