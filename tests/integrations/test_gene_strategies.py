"""Strategies that know the genes: which ones they hide."""

import pytest
import torch

from mam_kernels.gene_strategies import GeneModules, GeneWeights, HarderFirst, ranked
from mam_kernels.shares import Share
from mam_kernels.strategies import CellValues, Draw

CELLS, GENES = 400, 40
IDS = torch.arange(CELLS)
FULL = torch.ones(CELLS, GENES)


def hidden(strategy, values=FULL, step=0) -> torch.Tensor:
    return strategy(CellValues.of(values), Draw(5, step, IDS)).mask


def test_genes_are_hidden_in_the_order_of_their_weights():
    weights = torch.full((GENES,), 0.01)
    weights[3], weights[8] = 1.0, 0.0
    rates = hidden(GeneWeights(weights, 0.2)).float().mean(dim=0)
    assert rates[3] > 0.95
    assert rates[8] == 0
    others = rates[[g for g in range(GENES) if g not in (3, 8)]]
    assert others.max() < 0.35
    assert others.min() > 0.08


def test_modules_are_hidden_whole_and_each_cell_has_its_own_order():
    module = torch.arange(GENES) % 4
    mask = hidden(GeneModules(module, 0.5))
    shares = torch.stack([mask[:, module == m].float().mean(dim=1) for m in range(4)], dim=1)
    assert (mask.sum(dim=1) == GENES // 2).all()
    # two of the four modules are hidden: by a race, nearly whole
    assert shares.sort(dim=1).values.mean(dim=0).tolist() == pytest.approx([0, 0, 1, 1], abs=0.2)
    assert shares.mean(dim=0).tolist() == pytest.approx([0.5] * 4, abs=0.1)


def test_what_is_predicted_worse_is_hidden_more():
    strategy = HarderFirst(torch.ones(GENES), 0.3)
    before = hidden(strategy).float().mean(dim=0)
    assert before.std() < 0.04
    errors = torch.zeros(CELLS, GENES)
    errors[:, 20:] = 4.0
    for _ in range(20):
        strategy.observe(errors, torch.ones(CELLS, GENES, dtype=torch.bool))
    after = hidden(strategy).float().mean(dim=0)
    assert after[20:].mean() > 2.5 * after[:20].mean()


def test_errors_of_sampled_genes_reach_their_genes():
    strategy, same = (HarderFirst(torch.full((GENES,), 2.0), 0.3) for _ in range(2))
    random = torch.Generator().manual_seed(0)
    errors = torch.rand(CELLS, GENES, generator=random)
    mask = torch.rand(CELLS, GENES, generator=random) < 0.5
    mask[:, 7] = False  # a gene that nothing is known of keeps its place
    order = torch.rand(CELLS, GENES, generator=random).argsort(dim=1)
    strategy.observe(errors, mask)
    same.observe(errors.gather(1, order), mask.gather(1, order), order)
    torch.testing.assert_close(strategy.errors, same.errors)
    assert strategy.errors[7] == 1.0
    assert (strategy.errors[:7] < 1.0).all()  # errors of 0.5 over variances of 2


def test_weights_are_ranks():
    weights = ranked(torch.tensor([0.1, 100.0, -3.0]))
    assert weights.log().tolist() == pytest.approx([1.5, 3.0, 0.0])


def test_each_cell_draws_its_own_share():
    counts = hidden(GeneWeights(torch.ones(GENES), Share.between(0.1, 0.9))).sum(dim=1)
    assert 4 <= counts.min() < 8
    assert 32 < counts.max() <= 36
    assert counts.float().mean() == pytest.approx(19.5, abs=2.0)  # sd of the mean: 0.5
