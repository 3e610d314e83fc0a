"""Strategies inside a masking step, and the maskings that frameworks come with as settings of them.

Each is compared in distribution with the framework's own function, or with one written as it is:
at a false-alarm rate below 1e-6.
"""

import math

import pytest
import torch
from torch import Tensor

from mam_kernels.corruption import CORRUPTIONS
from mam_kernels.integrations import MaskingStep, ScBertMasking, ScGptMasking
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
from tests.integrations import stand_ins
from tests.real_cells import counts, sequences, small_masker

CELLS = 400
IDS = torch.arange(CELLS)


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


# Theirs, as a setting of ours


def same_rates(found: Tensor, theirs: Tensor, eligible: Tensor) -> None:
    """Two sets of masks (draws, L) hide each eligible position as often, and no other."""
    assert not found[:, ~eligible].any()
    assert not theirs[:, ~eligible].any()
    n = len(found)
    ours, other = found.double().mean(dim=0)[eligible], theirs.double().mean(dim=0)[eligible]
    pooled = (ours + other) / 2
    bound = 5.9 * (2 * pooled * (1 - pooled) / n).sqrt() + 1e-9  # 100 positions: below 1e-6
    assert ((ours - other).abs() <= bound).all()
    spread, spread_other = (x.sum(dim=1).double() for x in (found, theirs))
    deviation = (spread.var() + spread_other.var()).sqrt() / n**0.5
    assert (spread.mean() - spread_other.mean()).abs() <= 5.5 * deviation + 1e-9
    assert (spread.std() > 0) == (spread_other.std() > 0)
    ratio = spread.var() / spread_other.var().clamp(min=1e-9)
    if spread_other.std() > 0:
        assert 0.6 < ratio < 1.7  # of 400 draws each: 5 standard deviations are 0.36


def repeated(row: Tensor) -> Tensor:
    return row.expand(CELLS, -1).contiguous()


def test_scgpt_tutorials():
    """``random_mask_value``: the whole part of a share, <cls> hidden like a gene."""
    ids, values = sequences(1, 0, -2)
    ids, values = repeated(ids[3]), repeated(values[3])
    theirs = stand_ins.random_mask_value(values, 0.4, -1, -2) == -1
    ours = ScGptMasking(Uniform(0.4), special_ids=(0,), seed=0)
    masked = ours(ids, values, ids == 0, sample_ids=IDS)
    same_rates(masked.mask, theirs, ids[0] != 0)


def test_scgpt_data_collator():
    """``DataCollator``: each position by itself, where the value is not 0 nor the first."""
    values = repeated(torch.log1p(counts()[3]))
    probability = torch.full(values.shape, 0.15).masked_fill(values == 0, 0.0)
    probability[:, 0] = 0
    torch.manual_seed(0)
    theirs = torch.bernoulli(probability).bool()
    eligible = torch.ones_like(values, dtype=torch.bool)
    eligible[:, 0] = False
    ours = Uniform(Share(0.15, rounding="bernoulli"), 0.0)
    found = ours(CellValues.of(values, maskable=eligible), Draw(0, 0, IDS)).mask
    same_rates(found, theirs, (values[0] != 0) & eligible[0])


def test_scbert():
    """``data_mask``: a share rounded up of the bins above 0; 90 % behind the mask token."""
    data = torch.nn.functional.pad(torch.log2(1 + counts()[3]).clamp(max=5).long(), (0, 1))
    data = repeated(data)
    number = math.ceil(0.15 * int((data[0] > 0).sum()))
    order = torch.rand(data.shape, generator=torch.Generator().manual_seed(0))
    keys = order.masked_fill(data == 0, 2.0)
    theirs = keys <= keys.kthvalue(number, dim=1, keepdim=True).values
    ours = ScBertMasking(Uniform(Share(0.15, rounding="ceil")), seed=0)
    masked = ours(data, sample_ids=IDS)
    same_rates(masked.mask, theirs, data[0] > 0)
    assert masked.mask.sum(dim=1).eq(number).all()
    kept = float((masked.inputs == data)[masked.mask].double().mean())
    assert abs(kept - 0.1) <= 5.5 * math.sqrt(0.09 / int(masked.mask.sum()))


def test_bert_collators():
    """``DataCollatorForLanguageModeling``: each position by itself, 80/10/10."""
    ids = repeated(torch.arange(4, 104))
    torch.manual_seed(0)
    theirs = torch.bernoulli(torch.full(ids.shape, 0.15)).bool()
    ours = MaskingStep(
        Uniform(Share(0.15, rounding="bernoulli")), mask_value=1, corruption="80/10/10",
        random_ids=range(104), seed=0,
    )  # fmt: skip
    masked = ours(ids, ids.float(), torch.ones_like(ids, dtype=torch.bool), sample_ids=IDS)
    same_rates(masked.mask, theirs, torch.ones(100, dtype=torch.bool))
    token = float((masked.inputs == 1)[masked.mask].double().mean())
    expected = CORRUPTIONS["80/10/10"][0] + 0.1 / 104
    assert abs(token - expected) <= 5.5 * math.sqrt(0.16 / int(masked.mask.sum()))


def test_nicheformer():
    """``complete_masking``: each token by itself, context tokens but for 3 too; 81 % become the
    mask token, 10 % another token.
    """
    ids = repeated(torch.cat([torch.tensor([5, 3, 9]), torch.arange(30, 130), torch.zeros(4)]))
    ids = ids.long()
    torch.manual_seed(0)
    batch = stand_ins.complete_masking({"X": ids}, 0.15, 130)
    ours = MaskingStep(
        Uniform(Share(0.15, rounding="bernoulli")), mask_value=0, corruption=(0.81, 0.1),
        random_ids=range(10, 130), seed=0,
    )  # fmt: skip
    eligible = (ids != 0) & (ids != 3)
    masked = ours(ids, ids.float(), eligible, sample_ids=IDS)
    same_rates(masked.mask, batch["mask"] == 0, eligible[0])
    theirs = (batch["masked_indices"] == 0).sum() / (batch["mask"] == 0).sum()
    found = (masked.inputs == 0)[masked.mask].double().mean()
    assert abs(float(found - theirs)) <= 5.5 * math.sqrt(2 * 0.16 / int(masked.mask.sum()))


def test_scfoundation_and_its_one_draw():
    """30 % of the non-zeros and 3 % of the zeros, each counted by itself; or one share of all."""
    values = repeated(torch.log1p(counts()[3]))
    nonzero = values[0] != 0
    for ours, hidden in (
        (Uniform(0.3, 0.03), (int(0.3 * nonzero.sum()), int(0.03 * (~nonzero).sum()))),
        (Uniform(0.3), None),
    ):
        mask = ours(CellValues.of(values), Draw(0, 0, IDS)).mask
        if hidden is None:
            assert mask.sum(dim=1).eq(30).all()
        else:
            assert mask[:, nonzero].sum(dim=1).eq(hidden[0]).all()
            assert mask[:, ~nonzero].sum(dim=1).eq(hidden[1]).all()


def test_tahoe_and_the_perception_of_scgpt_dev():
    """One of several ratios a cell, the whole part of it."""
    values = repeated(torch.log1p(counts()[3]))
    nonzero = values[0] != 0
    ours = Uniform(Share((0.25, 0.5, 0.75)), 0.0)
    hidden = ours(CellValues.of(values), Draw(0, 0, IDS)).mask.sum(dim=1)
    wanted = {int(ratio * int(nonzero.sum())) for ratio in (0.25, 0.5, 0.75)}
    assert set(hidden.tolist()) == wanted
