"""The baseline of every ratio is the published computation, and the gate in front of the ratios
notices when ours is not.
"""

import pytest
import torch

import mam_kernels as mam
from mam_kernels.testing.agreement import (
    Disagreement,
    compare_with_paper,
    forward,
    paper_twin,
    require_agreement,
)
from mam_kernels.testing.inputs import expression
from mam_kernels.testing.paper import PaperMasking

VALUES, EMBEDDINGS = None, 12


@pytest.fixture(params=[VALUES, EMBEDDINGS], ids=["values", "embeddings"])
def input_dim(request):
    return request.param


@pytest.fixture
def module(input_dim):
    torch.manual_seed(0)
    return mam.MultinomialAttentionMasking(
        input_dim, latent_dim=32, num_latents=10, num_heads=4, mask_ratio=0.25
    )


@pytest.fixture
def tokens(input_dim):
    generator = torch.Generator().manual_seed(1)
    if input_dim is None:
        return expression(3, 60, 0.3, generator)
    return torch.randn(3, 60, input_dim, generator=generator)


@pytest.fixture(params=[False, True], ids=["full", "padded"])
def valid(request):
    return torch.arange(60) < torch.tensor([[60], [41], [1]]) if request.param else None


def test_agrees_with_the_module(module, tokens, valid):
    for comparison in compare_with_paper(module, tokens, valid):
        assert comparison.holds, comparison


def test_agrees_with_the_module_on_sparse_values():
    torch.manual_seed(0)
    values = expression(3, 60, 0.3, torch.Generator().manual_seed(1))
    require_agreement(
        mam.MultinomialAttentionMasking(latent_dim=32, num_latents=10, num_heads=4),
        values.to_sparse_csr(),
    )


def test_loads_the_same_state(module):
    paper = PaperMasking(module.input_dim, 32, 10, 4, mask_ratio=0.25)
    paper.load_state_dict(module.state_dict())
    module.load_state_dict(paper.state_dict())


def test_hides_as_many_and_only_valid_positions(module, tokens, valid):
    mask = paper_twin(module)(tokens, valid=valid).mask
    counts = [15, 15, 15] if valid is None else [15, 10, 0]
    assert mask.sum(dim=1).tolist() == counts
    assert valid is None or not bool((mask & ~valid).any())


def test_takes_a_subset_of_the_latents(module, tokens):
    paper = paper_twin(module)
    two, both = (
        paper(tokens, latents=torch.tensor([3, 7])),
        [paper(tokens, latents=torch.tensor([n])) for n in (3, 7)],
    )
    torch.testing.assert_close(two.importance, both[0].importance + both[1].importance)
    assert paper.num_chosen == 2  # a quarter of 10, rounded down


def _off(output, name):
    if name == "mask":
        return output._replace(mask=output.mask.roll(1, dims=1))
    return output._replace(**{name: getattr(output, name) * 1.001})


@pytest.mark.parametrize("quantity", ["mask", "importance", "context", "penalty"])
def test_the_gate_notices(module, tokens, quantity, monkeypatch):
    right = module.forward
    monkeypatch.setattr(
        module,
        "forward",
        lambda *arguments, **options: _off(right(*arguments, **options), quantity),
    )
    with pytest.raises(Disagreement, match=quantity):
        require_agreement(module, tokens)


def test_the_gate_notices_a_wrong_gradient(module, tokens, monkeypatch):
    module.latents.register_hook(lambda gradient: gradient * 1.001)
    with pytest.raises(Disagreement, match="gradient of latents"):
        require_agreement(module, tokens)


def test_the_gate_notices_nan(module, tokens, monkeypatch):
    right = module.forward

    def broken(*arguments, **options):
        output = right(*arguments, **options)
        return output._replace(context=output.context * float("nan"))

    monkeypatch.setattr(module, "forward", broken)
    with pytest.raises(Disagreement, match="context"):
        require_agreement(module, tokens)


def test_forward_needs_no_gradient(module, tokens):
    assert not any(tensor.requires_grad for tensor in forward(module)(tokens))
