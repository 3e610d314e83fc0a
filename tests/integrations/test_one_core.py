"""One core: what each public adapter makes of a batch is what ``MaskingStep`` with a description
of the framework makes of it, bit for bit.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

from mam_kernels.integrations import (
    BatchFormat,
    LatentMaskingStrategy,
    MamForMaskedLM,
    MaskingStep,
    NicheformerMasking,
    ScBertMasking,
    ScFoundationMasking,
    ScGptMasking,
    formats,
)
from mam_kernels.integrations.core import MaskedBatch
from mam_kernels.shares import Share
from mam_kernels.strategies import ValueAttention
from tests.real_cells import SPECIAL, counts, sequences, small_masker

WIDTH, GENES = 32, counts().shape[1]
DRAW = {"seed": 7, "step": 3, "sample_ids": torch.arange(50, 50 + len(counts()))}


def core_of(adapter: MaskingStep, strategy, **options) -> MaskingStep:
    """A plain step with the weights of an adapter."""
    core = MaskingStep(copy.deepcopy(strategy), embed_dim=WIDTH, **options)
    core.load_state_dict(adapter.state_dict())
    return core


def assert_same(ours: MaskedBatch, theirs: MaskedBatch) -> None:
    assert ours.mask.any()
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.importance, theirs.importance)
    assert torch.equal(ours.penalty, theirs.penalty)
    for mine, other in (
        (ours.encoder_shift, theirs.encoder_shift),
        (ours.decoder_shift, theirs.decoder_shift),
    ):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)


def test_scgpt():
    masker, (ids, values) = small_masker(), sequences(1, 0, -2)
    adapter = ScGptMasking(masker, WIDTH, special_ids=(0, 1, 2))
    core = core_of(
        adapter, masker, mask_value=-1,
        batches=BatchFormat("scgpt", padding_mask="src_key_padding_mask", true_means="padding",
                            special_ids=(0, 1, 2)),
    )  # fmt: skip
    assert_same(
        adapter(ids, values, ids == 0, **DRAW),
        core.mask(values, ids=ids, padding_mask=ids == 0, **DRAW),
    )


def test_scfoundation():
    masker, values = small_masker(), torch.log1p(counts())
    adapter = ScFoundationMasking(
        masker, WIDTH, seq_len=GENES + 2, num_genes=GENES, mask_token_id=102, pad_token_id=103
    )
    strategy = ValueAttention(masker, Share(0.3), Share(0.03))
    core = core_of(adapter, strategy, mask_value=102, scheme="decoder")
    found, _ = adapter(F.pad(values, (0, 2), value=4.0), **DRAW)
    without_totals = {
        name: getattr(found, name)[:, :GENES] for name in ("inputs", "labels", "mask", "importance")
    }
    assert_same(found._replace(**without_totals), core.mask(values, **DRAW))


def test_scbert():
    masker = small_masker()
    data = F.pad(torch.log2(1 + counts()).clamp(max=5).long(), (0, 1))
    adapter = ScBertMasking(masker, WIDTH)
    core = core_of(
        adapter, ValueAttention(masker, Share(0.3, at_least=1)), mask_value=6, ignore_value=6,
        corruption=(0.9, 0.0), batches=BatchFormat("scbert", trailing=1, hides_zeros=False),
    )  # fmt: skip
    assert_same(adapter(data, **DRAW), core.mask(data, values=data.float(), **DRAW))


def test_nicheformer():
    masker, embed = small_masker(WIDTH), torch.nn.Embedding(GENES + 40, WIDTH)
    ids = sequences(5, 0, 0.0)[0]
    ids = torch.where(ids > 2, ids + 27, ids)  # genes from 30 on
    adapter = NicheformerMasking(masker, WIDTH, n_tokens=GENES + 30)
    core = core_of(
        adapter, masker, mask_value=0, corruption="80/10/10", random_ids=range(30, GENES + 30),
        batches=BatchFormat("nicheformer", true_means="padding", first_gene=30),
    )  # fmt: skip
    read = ids.masked_fill(ids == 0, 1)
    assert_same(
        adapter({"X": ids}, embed, **DRAW)[1],
        core.mask(read, embeddings=embed(read), ids=read, padding_mask=read == 1, **DRAW),
    )


def test_hugging_face():
    size = GENES + len(SPECIAL)
    config = BertConfig(
        vocab_size=size, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, pad_token_id=0,
    )  # fmt: skip
    wrapped = MamForMaskedLM.wrap(
        BertForMaskedLM(config), mask_token_id=1, special_token_ids=SPECIAL,
        masking={"mask_ratio": 0.3, "latent_dim": 16, "num_latents": 8, "num_heads": 2},
    )  # fmt: skip
    ids = sequences(2, 0, 0.0)[0]
    ids = torch.where(ids > 2, ids + 1, ids)
    there = (ids != 0).long()
    core = core_of(
        wrapped.masking, small_masker(WIDTH), mask_value=1, corruption="80/10/10",
        random_ids=range(len(SPECIAL), size),
        batches=BatchFormat("hugging-face", true_means="token", special_ids=SPECIAL),
    )  # fmt: skip
    assert_same(
        wrapped.mask_batch(ids, there, **DRAW),
        core.mask(
            ids, embeddings=wrapped.get_input_embeddings()(ids), ids=ids, padding_mask=there, **DRAW
        ),
    )


def test_bmfm():
    """Their ``Masker`` hides; the context is that of the core, on the true values."""
    masker, (ids, values) = small_masker(), sequences(1, 0, -1)
    values[:, 0] = -2
    strategy = LatentMaskingStrategy(masker, WIDTH, special_ids=(0, 1))
    core = core_of(
        strategy, masker, mask_value=-5,
        batches=BatchFormat("bmfm", true_means="token", special_ids=(0, 1),
                            negative_is_special=True),
    )  # fmt: skip
    there = (ids != 0).long()
    expected = core.mask(values, ids=ids, padding_mask=there, **DRAW)
    found = strategy(expected.inputs, expected.labels, there, gene_ids=ids)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.inputs, expected.inputs)
    torch.testing.assert_close(found.encoder_shift, expected.encoder_shift)
    torch.testing.assert_close(found.penalty, expected.penalty)


# Versions

PACKAGED = [name for name, framework in formats.FRAMEWORKS.items() if framework.package]


@pytest.mark.parametrize("name", PACKAGED)
def test_another_version_is_said_once_of_each_framework(name, monkeypatch):
    framework = formats.FRAMEWORKS[name]
    formats.warn_of_untried.cache_clear()
    installed = {framework.package: framework.tried[0]}
    monkeypatch.setattr(formats.importlib.metadata, "version", installed.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        formats.warn_of_untried(name)  # one that was tried
    formats.warn_of_untried.cache_clear()
    installed[framework.package] = "99.9"
    with pytest.warns(UserWarning, match="was tried with") as said:
        MaskingStep(small_masker(), mask_value=0, embed_dim=8, batches=BatchFormat(name))
    (warning,) = said
    assert " and ".join(framework.tried) in str(warning.message)
    assert "found 99.9" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskingStep(small_masker(), mask_value=0, embed_dim=8, batches=BatchFormat(name))
    formats.warn_of_untried.cache_clear()
