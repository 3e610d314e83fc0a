"""The gradient of a mask: what it ascends by enumeration of every mask, where it ends, and that the
latents of a module get it.
"""

import math

import pytest
import torch
from scipy import special
from torch import Tensor

import mam_kernels as mam
from mam_kernels.reward import reward_loss
from tests.engine.test_inclusion import rand
from tests.engine.test_statistics import subset_probabilities

TEMPERATURE = 0.5


def problem(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-weights and rewards, each (1, L)."""
    return 2 * rand(1, length, seed=seed) - 1, 2 * rand(1, length, seed=seed + 1) - 1


def entropy(probability: Tensor) -> Tensor:
    """``-integral from 0 to pi of log(-log(1 - p)) dp``, which is ``Ein(u) - pi log u`` with
    ``u = -log(1 - pi)``.
    """
    u = -torch.log1p(-probability)
    ein = special.exp1(u.numpy()) + u.log().numpy() + 0.5772156649015329
    return torch.from_numpy(ein) - probability * u.log()


def objective(log_weights: Tensor, reward: Tensor, k: int) -> float:
    probability = mam.inclusion_probabilities(log_weights.exp(), k)
    return float((probability * reward / TEMPERATURE + entropy(probability)).sum())


def exact(log_weights: Tensor, reward: Tensor, k: int) -> Tensor:
    """The gradient of the objective by differences; (L,)."""
    step, length = 1e-5, log_weights.shape[1]
    moves = step * torch.eye(length, dtype=torch.float64)
    return torch.tensor(
        [
            (objective(log_weights + m, reward, k) - objective(log_weights - m, reward, k))
            / (2 * step)
            for m in moves
        ]
    )


def every_mask(length: int) -> Tensor:
    """(2 ** L, L) bool."""
    return (torch.arange(2**length)[:, None] >> torch.arange(length) & 1).bool()


def estimates(masks: Tensor, log_weights: Tensor, reward: Tensor, k: int) -> Tensor:
    many = (len(masks), -1)
    return mam.reward_gradient(
        log_weights.exp().expand(*many),
        masks,
        reward.expand(*many),
        temperature=TEMPERATURE,
        num_samples=k,
    )


def expected(length: int, k: int, race: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The mean of the estimate over every mask, and what it should be; each (L,)."""
    log_weights, reward = problem(length, seed)
    masks = every_mask(length)
    if race == "fixed time":  # every position for itself
        pi = mam.inclusion_probabilities(log_weights.exp(), k)
        likely = torch.where(masks, pi, 1 - pi).prod(dim=1)
    else:
        drawn = subset_probabilities(log_weights.exp()[0].tolist(), k)
        likely = torch.tensor([drawn.get(i, 0.0) for i in range(len(masks))], dtype=torch.float64)
    assert likely.sum() == pytest.approx(1)
    mean = likely @ estimates(masks, log_weights, reward, k)
    return mean, exact(log_weights, reward, k)


@pytest.mark.parametrize("race", ["fixed time", "exactly k"])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_every_mask_ascends_the_objective(race, seed):
    mean, right = expected(8, 4, race, seed)
    assert torch.cosine_similarity(mean, right, dim=0) > 0.99
    assert right.norm() > 0.1


def test_what_is_missing_falls_with_the_number_drawn():
    def bias(length: int) -> float:
        mean, right = expected(length, length // 2, "fixed time")
        return float((mean - right).norm() / right.norm())

    # Each doubling of k halves it, O(1/k): 0.31, 0.17 and 0.07 at k = 2, 4 and 8.
    small, middle, large = bias(4), bias(8), bias(16)
    assert small > 1.5 * middle > 2.25 * large
    assert large < 0.1


@pytest.mark.parametrize("k", [1, 3, 7])
def test_nothing_moves_at_the_optimum_whatever_was_drawn(k):
    _, reward = problem(8)
    found = estimates(every_mask(8), reward / TEMPERATURE, reward, k)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_draws_alone_lead_to_the_optimum(seed):
    log_weights, reward = (x.expand(16, -1) for x in problem(8, seed))
    log_weights, values = log_weights.clone(), [objective(log_weights[:1], reward[:1], 3)]
    for step in range(600):
        mask = mam.sample_without_replacement(log_weights.exp(), 3, seed=seed, step=step)
        gradient = mam.reward_gradient(
            log_weights.exp(), mask, reward * mask, temperature=TEMPERATURE
        )
        log_weights += 0.3 * gradient.mean(dim=0)
        values.append(objective(log_weights[:1], reward[:1], 3))
    assert values[-1] > values[20] > values[0]
    found, right = log_weights[0], reward[0] / TEMPERATURE
    torch.testing.assert_close(found - found.mean(), right - right.mean(), rtol=0, atol=0.02)
    assert right.std() > 0.5


def test_the_reward_is_read_at_hidden_positions_alone():
    log_weights, reward = problem(40)
    weights = log_weights.exp().float()
    mask = mam.sample_without_replacement(weights, 15, seed=1)
    found = mam.reward_gradient(weights, mask, torch.where(mask, reward, torch.nan))
    assert found.dtype == torch.float32
    assert not found[~mask].any()
    assert found[mask].abs().min() > 0
    assert found.sum().abs() < 1e-6
    double = mam.reference.reward_gradient(weights.double(), mask, reward)
    torch.testing.assert_close(found.double(), double, rtol=1e-5, atol=1e-6)


def test_rows_that_are_drawn_whole_or_not_at_all_have_no_gradient():
    weights = rand(3, 6) + 0.1
    weights[2, 3:] = 0
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0], mask[2, :3] = True, True
    assert not mam.reward_gradient(weights, mask, rand(3, 6)).any()


def test_extreme_weights_and_rewards_stay_finite():
    weights = torch.logspace(-30, 30, 60)[None].expand(4, -1)
    mask = mam.sample_without_replacement(weights, 20, seed=0)
    found = mam.reward_gradient(weights, mask, 1e6 * rand(4, 60).float(), temperature=1e-3)
    assert found.isfinite().all()


def masking_call(**options) -> tuple:
    torch.manual_seed(0)
    masker = mam.MultinomialAttentionMasking(6, 16, 8, 2, **options).double()
    torch.nn.init.normal_(masker.cross_attention.in_proj_bias)
    tokens, valid = rand(5, 30, 6), rand(5, 30, seed=1) < 0.8
    maskable = rand(5, 30, seed=2) < 0.9
    call = {"valid": valid, "maskable": maskable, "seed": 3, "step": 7}
    return masker, tokens, call


@pytest.mark.parametrize("sharpness", [1.0, 0.3])
@pytest.mark.parametrize("context_from", ["all", "visible"])
def test_the_latents_of_a_module_get_the_gradient(sharpness, context_from):
    masker, tokens, call = masking_call(temperature=sharpness, context_from=context_from)
    out, reward = masker(tokens, **call), rand(5, 30, seed=4)
    loss = reward_loss(masker, tokens, out, reward, temperature=TEMPERATURE, **call)
    assert abs(loss) < 1e-6
    loss.backward()

    # The same by the attention itself, (B, N, H, L).
    copy, _, _ = masking_call(temperature=sharpness, context_from=context_from)
    width, heads = copy.latent_dim, copy.num_heads
    weight, bias = copy.cross_attention.in_proj_weight, copy.cross_attention.in_proj_bias
    query = torch.nn.functional.linear(copy.latents, weight[:width], bias[:width])
    key = torch.nn.functional.linear(
        copy.input_proj(tokens), weight[width : 2 * width], bias[width : 2 * width]
    )
    query, key = query.unflatten(-1, (heads, -1)), key.unflatten(-1, (heads, -1))
    scores = torch.einsum("nhd,blhd->bnhl", query, key) / math.sqrt(width // heads)
    attention = scores.masked_fill(~call["valid"][:, None, None], -torch.inf).softmax(-1)
    drawn = mam.reference.draw_latents(
        8, copy.num_drawn_latents, torch.tensor(3), torch.tensor(7), torch.device("cpu")
    )
    importance = attention[:, drawn].sum(dim=(1, 2))
    torch.testing.assert_close(importance.detach(), out.importance)
    log_weights = (importance + copy.eps).log() / sharpness
    gradient = mam.reward_gradient(
        log_weights.exp().detach(),
        out.mask,
        reward,
        temperature=TEMPERATURE,
        valid=call["valid"] & call["maskable"],
    )
    (-(gradient * log_weights).sum() / 5).backward()
    for ours, theirs in zip(masker.parameters(), copy.parameters(), strict=True):
        theirs = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        ours = torch.zeros_like(theirs) if ours.grad is None else ours.grad
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert masker.latents.grad.abs().max() > 1e-4


def test_the_latents_may_be_named_in_place_of_the_seed():
    masker, tokens, call = masking_call()
    out, reward = masker(tokens, **call), rand(5, 30, seed=4)
    given = {name: call[name] for name in ("valid", "maskable")}
    drawn = mam.reference.draw_latents(
        8, masker.num_drawn_latents, torch.tensor(3), torch.tensor(7), torch.device("cpu")
    )
    gradients = [
        torch.autograd.grad(
            reward_loss(masker, tokens, out, reward, **given, **which), masker.latents
        )[0]
        for which in ({"latents": drawn}, {"seed": 3, "step": 7})
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((torch.ones(2, 5), None, torch.ones(2, 5)), {}, TypeError, "mask: expected bool"),
        (
            (torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5)),
            {},
            ValueError,
            "mask: expected shape",
        ),
        (
            (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 1)),
            {},
            ValueError,
            "reward: expected shape",
        ),
        (
            (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5)),
            {"temperature": 0.0},
            ValueError,
            "temperature: expected",
        ),
    ],
)
def test_bad_input_is_an_error_that_says_what_is_wrong(arguments, options, error, said):
    with pytest.raises(error, match=said):
        mam.reward_gradient(*arguments, **options)


def test_a_module_for_values_or_an_unknown_draw_is_refused():
    masker, tokens, call = masking_call()
    out = masker(tokens, **call)
    with pytest.raises(ValueError, match="seed: expected that of the call"):
        reward_loss(masker, tokens, out, rand(5, 30))
    with pytest.raises(ValueError, match="masker: expected one for embeddings"):
        reward_loss(mam.MultinomialAttentionMasking(), tokens, out, rand(5, 30), seed=3)
