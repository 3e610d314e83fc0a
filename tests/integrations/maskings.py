"""The maskings that frameworks come with, as settings of ours: each function here takes a
framework's own, or a stand-in for it, and compares the two in distribution, at a false-alarm rate
below 1e-6.

The stand-ins are compared in test_strategies.py, the frameworks' own in tests/frameworks.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mam_kernels.integrations import MaskingStep, ScBertMasking, ScGptMasking
from mam_kernels.shares import Share
from mam_kernels.strategies import CellValues, Draw, Uniform
from tests.real_cells import counts, sequences

CELLS = 400
IDS = torch.arange(CELLS)


def repeated(row: Tensor) -> Tensor:
    """(CELLS, L), one cell many times."""
    return row.expand(CELLS, -1).contiguous()


def one_cell() -> Tensor:
    """(CELLS, 100) log values of one real cell."""
    return repeated(torch.log1p(counts()[3]))


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


def same_share(found: Tensor, theirs: Tensor) -> None:
    """Two sets of coins (bool, any length) fall as often."""
    ours, other = found.double().mean(), theirs.double().mean()
    pooled = (ours + other) / 2
    bound = 5.5 * (pooled * (1 - pooled) * (1 / found.numel() + 1 / theirs.numel())).sqrt()
    assert (ours - other).abs() <= bound


def seeded() -> None:
    """The frameworks draw from both."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


def scgpt_tutorials(random_mask_value: Callable[..., Tensor]) -> None:
    """The whole part of a share, <cls> hidden like a gene."""
    ids, values = (repeated(x[3]) for x in sequences(1, 0, -2))
    seeded()
    theirs = random_mask_value(values, mask_ratio=0.4, mask_value=-1, pad_value=-2) == -1
    ours = ScGptMasking(Uniform(0.4), special_ids=(0,), seed=0)
    same_rates(ours(ids, values, ids == 0, sample_ids=IDS).mask, theirs, ids[0] != 0)


def scgpt_data_collator(collator: Any) -> None:
    """Each position by itself, where the value is not 0 nor the first.

    Args:
        collator: with ``mlm_probability=0.15``, ``pad_value=0`` and ``keep_first_n_tokens=1``.
    """
    values = one_cell()
    seeded()
    theirs = collator._mask(values) == -1
    eligible = torch.ones_like(values, dtype=torch.bool)
    eligible[:, 0] = False
    ours = Uniform(Share(0.15, rounding="bernoulli"), 0.0)
    found = ours(CellValues.of(values, maskable=eligible), Draw(0, 0, IDS)).mask
    same_rates(found, theirs, (values[0] != 0) & eligible[0])


def scbert(data_mask: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """A share rounded up of the bins above 0; 90 % behind the mask token.

    Args:
        data_mask: theirs, with 15 %, five bins, and a replacement of 90 %.
    """
    data = repeated(F.pad(torch.log2(1 + counts()[3]).clamp(max=5).long(), (0, 1)))
    seeded()
    read, labels = data_mask(data)
    hidden = labels != 6
    ours = ScBertMasking(Uniform(Share(0.15, rounding="ceil")), seed=0)
    masked = ours(data, sample_ids=IDS)
    same_rates(masked.mask, hidden, data[0] > 0)
    assert torch.equal(masked.mask.sum(dim=1), hidden.sum(dim=1))
    assert torch.equal(labels[hidden], data[hidden])
    same_share((masked.inputs == 6)[masked.mask], (read == 6)[hidden])


def bert_collator(collator: Any, special_ids: tuple[int, ...], vocab_size: int) -> None:
    """Each position by itself but for special tokens, 80/10/10.

    Args:
        collator: ``DataCollatorForLanguageModeling`` with 15 %; its mask token is 1.
        special_ids: of its tokenizer.
        vocab_size: of its tokenizer.
    """
    ids = repeated(torch.arange(vocab_size))
    special = torch.isin(ids, torch.tensor(special_ids))
    seeded()
    read, labels = collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special)
    hidden = labels != -100
    ours = MaskingStep(
        Uniform(Share(0.15, rounding="bernoulli")), mask_value=1, corruption="80/10/10",
        random_ids=range(vocab_size), seed=0,
    )  # fmt: skip
    masked = ours(ids, ids.float(), ~special, sample_ids=IDS)
    same_rates(masked.mask, hidden, ~special[0])
    for value in (1, 50):  # the mask token, and any other
        same_share((masked.inputs == value)[masked.mask], (read == value)[hidden])
    same_share((masked.inputs == ids)[masked.mask], (read == ids)[hidden])


def nicheformer(complete_masking: Callable[..., dict[str, Tensor]]) -> None:
    """Each token by itself, context tokens but for 3 too; 81 % become the mask token, 10 % another
    token.
    """
    ids = torch.cat([torch.tensor([5, 3, 9]), torch.arange(30, 130), torch.zeros(4)]).long()
    ids = repeated(ids)
    seeded()
    batch = complete_masking({"X": ids.clone()}, 0.15, 130)
    hidden = batch["mask"] == 0
    ours = MaskingStep(
        Uniform(Share(0.15, rounding="bernoulli")), mask_value=0, corruption=(0.81, 0.1),
        random_ids=range(10, 130), seed=0,
    )  # fmt: skip
    eligible = (ids != 0) & (ids != 3)
    masked = ours(ids, ids.float(), eligible, sample_ids=IDS)
    same_rates(masked.mask, hidden, eligible[0])
    same_share((masked.inputs == 0)[masked.mask], (batch["masked_indices"] == 0)[hidden])
    same_share((masked.inputs == ids)[masked.mask], (batch["masked_indices"] == ids)[hidden])


def bmfm(masker: type, fields: list[Any], tokenizer: Any) -> None:
    """Each token by itself but for special ones, ``change_ratio``; of those ``mask_ratio`` behind
    the mask token.

    Args:
        masker: their ``Masker``.
        fields: genes, and masked continuous expressions.
        tokenizer: its mask token is 4.
    """
    values = one_cell()
    values[:, 0] = -2  # <cls> of a continuous field
    special = values < 0
    batch = {
        name: {"input_ids": x.clone(), "attention_mask": torch.ones_like(special).long(),
               "special_tokens_mask": special.long()}
        for name, x in (("genes", torch.arange(100).expand(CELLS, -1)), ("expressions", values))
    }  # fmt: skip
    seeded()
    theirs = masker(change_ratio=0.3, mask_ratio=0.8, switch_ratio=0.0, tokenizer=tokenizer)
    input_ids, labels, _ = theirs.mask_inputs(fields, batch)
    hidden = labels["expressions"] != -100
    ours = MaskingStep(
        Uniform(Share(0.3, rounding="bernoulli")), mask_value=-5, corruption=(0.8, 0.0), seed=0
    )
    masked = ours(values, values, ~special, sample_ids=IDS)
    same_rates(masked.mask, hidden, ~special[0])
    same_share((masked.inputs == -5)[masked.mask], (input_ids[:, 1] == -5)[hidden])


def cellplm(mask_builder: type) -> None:
    """Each gene by itself, of so many of the cells; hidden counts become 0."""
    values = one_cell()
    seeded()
    theirs = mask_builder(mask_node_rate=0.5, mask_feature_rate=0.3).train()
    made = theirs.apply_mask({"x_seq": values.to_sparse()})
    hidden = made["input_mask"].bool()
    chosen = torch.randperm(CELLS)[: CELLS // 2]
    maskable = torch.zeros_like(values, dtype=torch.bool)
    maskable[chosen] = True
    ours = MaskingStep(Uniform(Share(0.3, rounding="bernoulli")), mask_value=0.0, seed=0)
    everywhere = torch.ones_like(maskable)
    masked = ours(values, values, everywhere, maskable=maskable, sample_ids=IDS)
    of_theirs = hidden.any(dim=1)
    assert of_theirs.sum() == masked.mask.any(dim=1).sum() == CELLS // 2
    same_rates(masked.mask[chosen], hidden[of_theirs], everywhere[0])
    assert torch.equal(made["masked_x_seq"].to_dense(), values.masked_fill(hidden, 0.0))
    assert torch.equal(masked.inputs, values.masked_fill(masked.mask, 0.0))


def cellarium(geneformer: Any) -> None:
    """Each gene that is expressed by itself; 80/10/10, a random id below the number of genes,
    which padding and the mask token are among.

    Args:
        geneformer: their model of 100 genes, with ``mlm_probability=0.15``.
    """
    values, seen = one_cell(), {}
    geneformer.bert.register_forward_pre_hook(
        lambda module, args, given: seen.update(given), with_kwargs=True
    )
    ids, there = geneformer.tokenize(values)
    seeded()
    with torch.no_grad():
        geneformer(values, geneformer.var_names_g)
    hidden, read = seen["labels"] != -100, seen["input_ids"]
    ours = MaskingStep(
        Uniform(Share(0.15, rounding="bernoulli")), mask_value=1, corruption="80/10/10",
        random_ids=range(100), seed=0,
    )  # fmt: skip
    masked = ours(ids, ids.float(), there, sample_ids=IDS)
    same_rates(masked.mask, hidden, there[0])
    same_share((masked.inputs == 1)[masked.mask], (read == 1)[hidden])
    same_share((masked.inputs == ids)[masked.mask], (read == ids)[hidden])


def tahoe(collator: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]) -> None:
    """The whole part of one of several ratios, each cell, but for the first token and padding.

    Args:
        collator: with ``mlm_probability=[0.25, 0.5, 0.75]``, ``keep_first_n_tokens=1``,
            ``pad_value=-2``, ``mask_value=-1``, and neither binning nor sampling.
    """
    ids, values = (x[3] for x in sequences(1, 0, -2))
    length = int((ids != 0).sum())
    cells = [
        {"genes": ids[:length].clone(), "expressions": values[:length].clone()}
        for _ in range(CELLS - 1)
    ]
    longer = torch.arange(1, length + 6)
    cells.append({"genes": longer, "expressions": longer.float()})  # the others are padded
    seeded()
    made = collator(cells)
    hidden, expr = made["gen_mask"][:-1], made["expr"][:-1]
    assert torch.equal(expr == -1, hidden)
    padded = F.pad(ids[:length], (0, 5)).expand(CELLS - 1, -1)
    target = made["expr_target"][:-1]
    ours = ScGptMasking(Uniform(Share((0.25, 0.5, 0.75))), special_ids=(0, 1), seed=0)
    masked = ours(padded, target, padded == 0, sample_ids=IDS[:-1])
    same_rates(masked.mask, hidden, padded[0] > 1)
    assert set(masked.mask.sum(dim=1).tolist()) == set(hidden.sum(dim=1).tolist())


def scprint(simple_masker: Callable[..., Tensor]) -> None:
    """Each position by itself."""
    seeded()
    theirs = simple_masker(shape=[CELLS, 100], mask_ratio=0.15)
    ours = Uniform(Share(0.15, rounding="bernoulli"))
    found = ours(CellValues.of(one_cell()), Draw(0, 0, IDS)).mask
    same_rates(found, theirs, torch.ones(100, dtype=torch.bool))


def exact_shares() -> None:
    """30 % of the non-zeros and 3 % of the zeros, each counted by itself; or one share of all."""
    values = one_cell()
    nonzero = values[0] != 0
    mask = Uniform(0.3, 0.03)(CellValues.of(values), Draw(0, 0, IDS)).mask
    assert mask[:, nonzero].sum(dim=1).eq(int(0.3 * nonzero.sum())).all()
    assert mask[:, ~nonzero].sum(dim=1).eq(int(0.03 * (~nonzero).sum())).all()
    mask = Uniform(0.3)(CellValues.of(values), Draw(0, 0, IDS)).mask
    assert mask.sum(dim=1).eq(30).all()
