"""Strategies inside a masking step, and the maskings that frameworks come with as settings of
them.
"""

import math

import pytest
import torch
from torch import Tensor

from mam_kernels.integrations import MaskingStep
from mam_kernels.shares import Share
from mam_kernels.strategies import (
    CellValues,
    ContextOnly,
    Draw,
    EmbeddingAttention,
    ExpressionSampling,
    Nothing,
    Uniform,
    ValueAttention,
)
from tests.integrations import maskings, stand_ins
from tests.real_cells import counts, small_masker


def cells(**options) -> CellValues:
    return CellValues.of(torch.log1p(counts()), **options)


def embed(there) -> Tensor:
    table = torch.sin(torch.arange(100 * 6, dtype=torch.float32)).view(100, 6)
    return table[there.gene_ids] * there.values[..., None]


EVERY = {
    "nothing": lambda: Nothing(),
    "all": lambda: Uniform(0.3),
    "non-zeros": lambda: Uniform(0.3, 0.0),
    "shares": lambda: Uniform(0.3, 0.03),
    "a ratio a cell": lambda: Uniform(Share.between(0.1, 0.6)),
    "expression": lambda: ExpressionSampling(0.3, 0.03),
    "values": lambda: ValueAttention(small_masker(), 0.3),
    "values, shares": lambda: ValueAttention(small_masker(), 0.3, 0.03),
    "embeddings": lambda: EmbeddingAttention(small_masker(6), 0.3, 0.03),
    "context only": lambda: ContextOnly(Uniform(0.3), small_masker(), True),
}


@pytest.mark.parametrize("name", EVERY)
def test_dense_and_sparse_hide_the_same(name):
    torch.manual_seed(0)
    strategy, draw = EVERY[name](), Draw(3, 5, torch.arange(len(counts())))
    dense = strategy(cells(embed=embed), draw)
    values = torch.log1p(counts()).to_sparse_csr()
    sparse = strategy(CellValues.of(values, embed=embed), draw)
    assert float((dense.mask != sparse.mask).float().mean()) < 1e-3  # where keys all but tie
    if dense.context is not None:
        torch.testing.assert_close(sparse.context, dense.context, rtol=1e-4, atol=1e-5)
    tensors = Draw(torch.tensor(3), torch.tensor(5), draw.sample_ids)
    assert torch.equal(strategy(cells(embed=embed), tensors).mask, dense.mask)


@pytest.mark.parametrize("name", EVERY)
def test_only_what_is_valid_and_maskable_is_hidden(name):
    torch.manual_seed(0)
    valid = torch.arange(100).expand(len(counts()), -1) % 7 > 0
    maskable = torch.arange(100).expand(len(counts()), -1) % 5 > 0
    strategy = EVERY[name]()
    out = strategy(cells(valid=valid, maskable=maskable, embed=embed), Draw(0, 0, None))
    assert not (out.mask & ~(valid & maskable)).any()
    assert out.mask.any() == (name != "nothing")
    if out.importance is not None:
        assert not out.importance[~(valid & maskable)].any()


def test_a_step_takes_any_strategy():
    values = torch.log1p(counts())
    everywhere = torch.ones_like(values, dtype=torch.bool)
    masking = MaskingStep(Uniform(0.3), mask_value=-1.0, seed=0)
    masked = masking(values, values, everywhere, maskable=values > 0)
    assert masked.encoder_shift is None
    assert masked.penalty == 0
    assert masking.masker is None
    found = masking.statistics(masked, error=torch.ones_like(values))
    assert found["entropy"] == 1
    assert found["hidden"] == found["hidden_nonzero"] > 0.25
    assert found["hidden_zero"].isnan()
    assert found["loss"] == 1
    with pytest.raises(ValueError, match="scheme: expected none, since Uniform has no latents"):
        MaskingStep(Uniform(0.3), mask_value=-1.0, embed_dim=8, scheme="encoder")
    with pytest.raises(TypeError, match="masker: expected a MultinomialAttentionMasking, or a str"):
        MaskingStep(torch.nn.Linear(1, 1), mask_value=-1.0)
    by_expression = MaskingStep(ContextOnly(ExpressionSampling(0.3), small_masker(), False),
                                mask_value=-1.0, embed_dim=8, seed=0)  # fmt: skip
    assert by_expression(values, values, everywhere).encoder_shift.shape == (len(values), 1, 8)


# Shares


@pytest.mark.parametrize(("rounding", "whole"), [("floor", math.floor), ("ceil", math.ceil)])
def test_a_share_is_rounded_as_said(rounding, whole):
    positions = torch.rand(200, 60, generator=torch.Generator().manual_seed(0)) < 0.4
    positions[0] = False
    for ratio in (0.0, 0.15, 0.3, 1.0):
        share = Share(ratio, rounding=rounding)
        found = share.count(positions.float(), positions, Draw(0, 0, None))
        assert found.tolist() == [whole(ratio * n) for n in positions.sum(dim=1).tolist()]
        assert share.count(positions.float(), None, Draw(0, 0, None)) == whole(ratio * 60)
    one = Share(0.01, at_least=1).count(positions.float(), positions, Draw(0, 0, None))
    assert one.tolist() == [min(1, n) for n in positions.sum(dim=1).tolist()]


def test_a_ratio_is_drawn_for_a_cell_or_a_batch():
    like = torch.zeros(4000, 1000)
    several = Share((0.25, 0.5, 0.75)).count(like, None, Draw(1, 2, None))
    assert set(several.tolist()) == {250, 500, 750}
    for count in (250, 500, 750):
        share = float((several == count).double().mean())
        assert abs(share - 1 / 3) <= 5.5 * math.sqrt(2 / 9 / 4000)
    spread = Share.between(0.2, 0.6).count(like, None, Draw(1, 2, None)).double() / 1000
    assert spread.min() >= 0.199
    assert spread.max() < 0.6
    assert abs(float(spread.mean()) - 0.4) <= 5.5 * 0.4 / math.sqrt(12 * 4000)
    batch = [
        Share.between(0.2, 0.6, per="batch").count(like[:8], None, Draw(1, step, None)).tolist()
        for step in range(5)
    ]
    assert all(len(set(one)) == 1 for one in batch)
    assert len({one[0] for one in batch}) == 5
    ids = torch.arange(8, 16)
    alone = Share.between(0.2, 0.6).count(like[:8], None, Draw(1, 2, ids))
    assert torch.equal(alone, Share.between(0.2, 0.6).count(like, None, Draw(1, 2, None))[8:16])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Share(1.5), r"ratio: expected a number in \[0.0, 1.0\]; got 1.5"),
        (lambda: Share(()), "ratio: expected at least one number; got none"),
        (lambda: Share(0.5, rounding="round"), "rounding: expected one of floor, ceil, bernoulli"),
        (lambda: Share(0.5, per="step"), "per: expected one of cell, batch; got 'step'"),
        (lambda: Share(0.5, at_least=-1), "at_least: expected an int >= 0; got -1"),
        (lambda: Share.between(0.5, 0.2), "low: expected at most high = 0.2; got 0.5"),
        (lambda: Uniform(2), r"ratio: expected a number in \[0.0, 1.0\]; got 2"),
    ],
)
def test_a_wrong_share_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Theirs, as a setting of ours: stand-ins here, the frameworks' own in tests/frameworks


class Tokenizer:
    mask_token_id, unk_token_id = 4, 0


def test_the_maskings_of_the_frameworks_are_settings_of_ours():
    maskings.scgpt_tutorials(stand_ins.random_mask_value)
    maskings.scbert(stand_ins.data_mask)
    maskings.nicheformer(stand_ins.complete_masking)
    fields = [
        stand_ins.FieldInfo("genes"),
        stand_ins.FieldInfo(
            "expressions", is_masked=True, tokenization_strategy="continuous_value_encoder"
        ),
    ]
    maskings.bmfm(stand_ins.Masker, fields, Tokenizer)
    maskings.exact_shares()


def test_a_comparison_of_maskings_tells_them_apart():
    """What is nearly right is seen: another share, rounding, or corruption."""
    for wrong in (
        lambda data: stand_ins.data_mask(data, mask_prob=0.2),
        lambda data: stand_ins.data_mask(data, replace_prob=0.8),
        lambda data: stand_ins.data_mask(data, mask_ignore_token_ids=[0, 1]),
    ):
        with pytest.raises(AssertionError):
            maskings.scbert(wrong)
    with pytest.raises(AssertionError):
        maskings.scprint(lambda shape, mask_ratio: torch.rand(shape) < 1.3 * mask_ratio)

    def exact(shape, mask_ratio):
        return torch.rand(shape).argsort(dim=1) < int(shape[1] * mask_ratio)

    with pytest.raises(AssertionError):  # as many of each cell, where theirs varies
        maskings.scprint(exact)
