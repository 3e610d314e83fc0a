"""Knowledge of the genes, for strategies that hide by it."""

import torch
from scmam.gene_knowledge import permuted


def test_permuted_weights_stay_among_genes_of_equal_mean():
    means = torch.arange(400.0)
    weights = torch.arange(400.0) + 0.5
    exchanged = permuted(weights, means, seed=1)
    assert not torch.equal(exchanged, weights)
    assert sorted(exchanged.tolist()) == weights.tolist()
    assert (exchanged - weights).abs().max() < 20  # 20 bins of 20 genes
    assert torch.equal(exchanged, permuted(weights, means, seed=1))
