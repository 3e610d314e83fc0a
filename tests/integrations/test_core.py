"""The masking step that all integrations share."""

import copy
import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import mam_kernels as mam
from mam_kernels import integrations
from mam_kernels.integrations import MaskingStep, real_tokens
from mam_kernels.integrations.core import PENALTY
from tests.real_cells import counts, encoder, small_masker

CELLS = 24


@pytest.fixture
def values() -> torch.Tensor:
    """(24, 40) log counts of real cells."""
    return torch.log1p(counts()[:CELLS, :40])


@pytest.fixture
def valid(values) -> torch.Tensor:
    """All but the first position and, in every other cell, the last ten."""
    valid = torch.ones_like(values, dtype=torch.bool)
    valid[:, 0] = False
    valid[::2, 30:] = False
    return valid


def step(**options) -> MaskingStep:
    torch.manual_seed(0)
    return MaskingStep(small_masker(), **{"mask_value": -1.0, "embed_dim": 32, "seed": 3} | options)


@pytest.mark.parametrize("corruption", ["all", "80/10/10", "90/10", (0.5, 0.0)])
def test_only_what_is_maskable_changes(values, valid, corruption):
    masking = step(corruption=corruption)
    masked = masking(values, values, valid, maskable=values > 0)
    drawable = valid & (values > 0)
    assert masked.mask.any()
    assert not (masked.mask & ~drawable).any()
    assert masked.mask.sum(dim=1).tolist() == [int(0.3 * n) for n in drawable.sum(dim=1).tolist()]
    assert torch.equal(masked.inputs[~masked.mask], values[~masked.mask])
    assert torch.equal(masked.labels, values.masked_fill(~masked.mask, -100))
    assert torch.equal(masked.importance > 0, drawable)
    if corruption == "all":
        assert (masked.inputs[masked.mask] == -1).all()


def test_a_random_value_is_a_non_zero_one_of_the_cell(values, valid):
    values = (
        values + (values > 0) * torch.arange(values.numel()).view_as(values) * 1e-3
    )  # each is told apart
    values[2] = 0.0
    masked = step(corruption=(0.0, 1.0))(values, values, valid)
    assert (masked.inputs != values)[masked.mask].any()
    assert not masked.inputs[2].any()  # has no other value to give
    for cell in set(range(CELLS)) - {2}:
        assert torch.isin(
            masked.inputs[cell][masked.mask[cell]], values[cell][valid[cell] & (values[cell] > 0)]
        ).all()


@pytest.mark.parametrize("ids", [range(5, 9), (0, 3, 4, 9), {7}])
def test_random_ids_are_each_as_likely(ids):
    tokens = torch.full((200, 60), 50)
    masking = step(corruption=(0.0, 1.0), random_ids=ids, mask_value=99)
    masking.masker.mask_ratio = 1.0
    drawn = masking(tokens, torch.ones(200, 60), torch.ones(200, 60, dtype=torch.bool)).inputs
    assert set(drawn.unique().tolist()) == set(ids)
    share = torch.stack([(drawn == i).double().mean() for i in ids])
    p = 1 / len(ids)
    assert (share - p).abs().max() <= 5.5 * (
        p * (1 - p) / drawn.numel()
    ) ** 0.5  # exceeded by chance once in 2e7


def test_shares_are_those_of_the_scheme_and_independent_of_the_mask():
    tokens = torch.arange(1.0, 61.0).expand(500, 60)
    valid = torch.ones(500, 60, dtype=torch.bool)
    masked = step(corruption="80/10/10")(tokens, tokens, valid)
    hidden = masked.mask.sum()
    for share, found in ((0.8, masked.inputs == -1), (0.1 + 0.1 / 60, masked.inputs == tokens)):
        assert (
            abs(float((found & masked.mask).sum() / hidden) - share)
            <= 5.5 * (share * (1 - share) / float(hidden)) ** 0.5
        )
    # The bits of position 4 l are the first of their block of four, whose number is l: they must
    # not decide what l becomes.
    both = masked.mask[:, :15] & masked.mask[:, ::4]
    token = (masked.inputs[:, :15] == -1)[both].double().mean()
    assert abs(token - 0.8) <= 5.5 * (0.16 / float(both.sum())) ** 0.5


def test_training_counts_its_steps_and_evaluation_repeats_itself(values, valid):
    masking = step(corruption="80/10/10")
    first, second = (masking(values, values, valid) for _ in range(2))
    assert masking.steps == 2
    assert not torch.equal(first.mask, second.mask)
    assert torch.equal(first.inputs, masking(values, values, valid, step=0).inputs)
    resumed = step(corruption="80/10/10")
    resumed.load_state_dict(masking.state_dict())
    assert torch.equal(resumed(values, values, valid).inputs, masking(values, values, valid).inputs)
    masking.eval()
    assert torch.equal(masking(values, values, valid).inputs, first.inputs)
    assert masking.steps == 3


def test_a_cell_is_masked_alike_in_any_batch(values, valid):
    ids = torch.arange(500, 500 + CELLS)
    masking = step(corruption="80/10/10")
    together = masking(values, values, valid, step=5, sample_ids=ids)
    for cell in (0, 7):
        row = slice(cell, cell + 1)
        alone = masking(values[row], values[row], valid[row], step=5, sample_ids=ids[row])
        assert torch.equal(alone.inputs, together.inputs[row])


def test_without_a_seed_torch_s_generator_decides(values, valid):
    masking = step(seed=None, corruption="80/10/10").eval()
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(masking(values, values, valid).inputs)
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_compiles_without_a_break(values, valid):
    masking = step(corruption="80/10/10")
    expected = masking(values, values, valid, step=4)
    compiled = torch.compile(masking, fullgraph=True, backend="eager")(
        values, values, valid, step=4
    )
    assert torch.equal(compiled.inputs, expected.inputs)
    torch.testing.assert_close(compiled.penalty, expected.penalty)


# The context


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.decoder = nn.Linear(1, 32), encoder(), encoder()

    def forward(self, values):
        return self.decoder(self.encoder(self.embed(values[..., None])))


def other_injected(model: EncoderDecoder, masked) -> torch.Tensor:
    with masked.injected(model.encoder):
        return model(masked.inputs)


@pytest.mark.parametrize("scheme", ["encoder", "decoder", "both", "separate"])
def test_the_context_reaches_the_model_and_trains_the_latents(values, valid, scheme):
    model, masking = EncoderDecoder(), step(scheme=scheme)
    masked = masking(values, values, valid)
    places = {
        name: module
        for name, module in (("encoder", model.encoder), ("decoder", model.decoder))
        if scheme in (name, "both", "separate")
    }
    plain = model(masked.inputs)
    with masked.injected(**places):
        injected = model(masked.inputs)
    assert not torch.allclose(plain, injected)
    torch.testing.assert_close(model(masked.inputs), plain)  # nothing is added any more
    (injected.square().mean() + PENALTY * masked.penalty).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in masking.injection.parameters())
    assert masking.masker.latents.grad.abs().max() > 0


def test_a_compiled_model_gets_the_context_of_each_batch(values, valid):
    model, masking = EncoderDecoder(), step()
    compiled = torch.compile(model, backend="eager")
    for injected in (True, True, False, True):
        masked = masking(values, values, valid)
        with masked.injected(model.encoder) if injected else nullcontext():
            found, expected = compiled(masked.inputs), model(masked.inputs)
        torch.testing.assert_close(found, expected)
        assert torch.allclose(expected, model(masked.inputs)) != injected

    compiled_before = torch.compile(other := EncoderDecoder(), backend="eager")
    compiled_before(values)
    with masked.injected(other.encoder):  # the first step is watched, and so not compiled
        compiled_before(masked.inputs)
    with masked.injected(other.encoder):
        torch.testing.assert_close(compiled_before(masked.inputs), other(masked.inputs))
    assert not torch.allclose(compiled_before(masked.inputs), other_injected(other, masked))


def test_a_model_that_had_a_context_is_copied_and_pickled(values, valid):
    model = EncoderDecoder()
    masked = step()(values, values, valid)
    with masked.injected(model.encoder):
        expected = model(masked.inputs)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(copied(masked.inputs), model(masked.inputs))
        with masked.injected(copied.encoder):
            torch.testing.assert_close(copied(masked.inputs), expected)


def test_an_injection_can_start_at_zero(values, valid):
    model, masking = EncoderDecoder(), step(injection_start="zero")
    masked = masking(values, values, valid)
    with masked.injected(model.encoder):
        torch.testing.assert_close(
            model(masked.inputs),
            model.decoder(model.encoder(model.embed(masked.inputs[..., None]))),
        )


def test_a_context_that_reaches_nothing_is_an_error(values, valid):
    model, masking = EncoderDecoder(), step()
    masked = masking(values, values, valid)
    with (
        pytest.raises(
            ValueError,
            match="encoder: expected a module, as the scheme has a context to add; got None",
        ),
        masked.injected(),
    ):
        pass
    with (
        pytest.raises(ValueError, match="decoder: expected None, as the scheme has nothing to add"),
        masked.injected(model.encoder, model.decoder),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="encoder: its module was not called"),
        masked.injected(encoder()),
    ):
        model(masked.inputs)
    shape = (
        r"encoder: expected a module whose first argument is token embeddings \(24, L, 32\); got"
    )
    with pytest.raises(ValueError, match=shape), masked.injected(model.embed):
        model(masked.inputs)
    step(scheme="none")(values, values, valid).injected().__enter__()


def test_the_groups_of_a_model_that_holds_the_masking():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "masking": step()})
    groups = model["masking"].parameter_groups(model, 1e-3, 1e-4)
    assert [len(group["params"]) for group in groups] == [
        2,
        len(list(model["masking"].parameters())),
    ]


# Padding


def test_what_true_means_is_translated():
    inputs = torch.zeros(2, 3)
    keep = torch.tensor([[1, 1, 0], [1, 0, 0]])
    for mask, means in (
        (keep, "token"),
        (keep.bool(), "token"),
        (1 - keep, "padding"),
        (~keep.bool(), "padding"),
    ):
        assert torch.equal(real_tokens("mask", mask, inputs, true_means=means), keep.bool())
    assert real_tokens("mask", None, inputs, true_means="token").all()
    with pytest.raises(
        ValueError,
        match=r"src_key_padding_mask: expected a token \(0\) in each row; got none in row 1",
    ):
        real_tokens(
            "src_key_padding_mask",
            torch.tensor([[0, 0, 1], [1, 1, 1]]),
            inputs,
            true_means="padding",
        )
    with pytest.raises(ValueError, match="true_means: expected token or padding; got 'keep'"):
        real_tokens("mask", keep, inputs, true_means="keep")


def test_bad_arguments_are_named(values, valid):
    with pytest.raises(
        ValueError, match="corruption: expected one of all, 80/10/10, 90/10; got 'most'"
    ):
        step(corruption="most")
    with pytest.raises(
        ValueError,
        match=r"corruption: expected shares of mask token and random value .*; got \(0.8, 0.3\)",
    ):
        step(corruption=(0.8, 0.3))
    with pytest.raises(ValueError, match="random_ids: expected at least one id; got none"):
        step(random_ids=())
    with pytest.raises(
        ValueError, match="scheme: expected one of encoder, decoder, both, separate; got 'all'"
    ):
        step(scheme="all")
    with pytest.raises(
        ValueError, match="start: expected one of random, zero, published; got 'small'"
    ):
        step(injection_start="small")
    with (
        mam.check_values(),
        pytest.raises(ValueError, match="tokens: expected finite values; got nan"),
    ):
        step()(values, values.masked_fill(values > 0, torch.nan), valid)


def test_importing_needs_none_of_the_frameworks():
    script = """
import sys
for name in ("transformers", "accelerate", "lightning", "pytorch_lightning", "pandas", "anndata"):
    sys.modules[name] = None
import mam_kernels.integrations as integrations
theirs = ("MamConfig", "MamForMaskedLM", "PaddingCollator")
print([x for x in integrations.__all__ if x not in theirs and not getattr(integrations, x)])
try:
    integrations.MamForMaskedLM
except ImportError as error:
    print("transformers" in str(error))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[]", "True"]
    with pytest.raises(AttributeError, match="has no attribute 'no_such'"):
        _ = integrations.no_such
