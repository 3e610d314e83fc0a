"""The pretraining objective: its terms, what they depend on, and that it can be learned."""

import itertools
import math

import pytest
import torch

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam.config import load_config, with_settings
from scmam.model import CellModel
from scmam.objective import Pretraining, build_pretraining, negative_binomial_loss
from scmam.sequences import CellBatch
from scmam.study.arms import ARMS, arm_config

from mam_kernels.randomness import substream
from mam_kernels.strategies import CellValues, Draw, Uniform
from tests.scmam.small import PUBLISHED_MASKS

GENES = 50
SMALL = {
    **PUBLISHED_MASKS,
    "model.width": 16,
    "model.heads": 2,
    "model.encoder_layers": 1,
    "model.bins": 4,
    "model.decoder_genes": 30,
    "masking.latent_dim": 16,
    "masking.num_latents": 8,
    "masking.latent_heads": 2,
}
SCHEDULE = torch.tensor([[0.1, 0.4]])


@pytest.fixture(scope="module")
def batch() -> CellBatch:
    """Cells of two kinds, told apart by which half of the genes they express."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(24) % 2
    rate = torch.full((24, GENES), 0.1)
    rate[kind == 0, : GENES // 2] = 2.0
    rate[kind == 1, GENES // 2 :] = 2.0
    counts = torch.poisson(rate, generator=generator)
    counts[-1] = 0
    return CellBatch(counts, counts.sum(1) + 5, torch.arange(24) + 7, kind)


def pretraining(arm="mam", **overrides) -> Pretraining:
    config = load_config(None, {**SMALL, **overrides})
    return build_pretraining(
        arm_config(config, arm, config.training.seed), GENES, schedule=SCHEDULE
    )


# of the eight that differ in the injection and the corruption alone, one
DISTINCT = [
    arm
    for arm in ARMS
    if not arm.startswith("mam-published") or arm == "mam-published-separate-mixed"
]


# A loss knows an arm by its mask alone: the arms take the losses in turns, two of them both.
WITH_LOSS = dict.fromkeys(
    [*zip(DISTINCT, itertools.cycle(["mse", "nb"]), strict=False)]
    + [(arm, loss) for arm in ("uniform", "mam") for loss in ("mse", "nb")]
)


@pytest.mark.parametrize(("arm", "loss"), WITH_LOSS)
def test_every_arm_trains(arm, loss, batch):
    seed = 0 if arm == "mam-sharp" else 1  # its masks, and so its losses, change by leaps
    objective = pretraining(arm, **{"training.loss": loss, "training.seed": seed})
    optimizer = torch.optim.Adam(objective.parameter_groups(1e-2, 1e-2, 0.0))
    history = []
    for step in range(40):
        losses = objective(batch, seed=seed, step=step)
        assert all(torch.isfinite(x) for x in losses)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.total.item())
    if arm in ("none", "orig"):
        assert history == [0.0] * 40
    else:
        assert sum(history[-10:]) < 0.9 * sum(history[:10])


@pytest.mark.parametrize("arm", DISTINCT)
def test_a_loss_is_a_function_of_seed_step_and_cells(arm, batch):
    objective = pretraining(arm)
    first, again = objective(batch, seed=3, step=9), objective(batch, seed=3, step=9)
    assert [x.item() for x in first] == [x.item() for x in again]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = objective(CellBatch(*(x[order] for x in batch)), seed=3, step=9)
    for name in ("reconstruction", "cell", "hidden", "hidden_nonzero", "hidden_zero"):
        torch.testing.assert_close(
            getattr(shuffled, name), getattr(first, name), rtol=1e-4, atol=1e-5
        )


def test_without_the_entropy_all_else_is_the_same(batch):
    objective = pretraining("mam")
    whole, without = (objective(batch, seed=3, step=9, entropy=x) for x in (True, False))
    assert 0.9 < whole.entropy.item() <= 1.0 + 1e-6
    assert without.entropy.isnan()
    assert [x.item() for x in whole[:-1]] == [x.item() for x in without[:-1]]


def test_total_is_the_weighted_sum(batch):
    objective = pretraining(**{"training.cell_loss": 0.25, "masking.penalty": 1e-3})
    losses = objective(batch, seed=0, step=0)
    expected = losses.reconstruction + 0.25 * losses.cell + 1e-3 * losses.penalty
    torch.testing.assert_close(losses.total.detach(), expected)
    assert losses.total.requires_grad
    assert not any(x.requires_grad for x in losses[1:])


def test_squared_error_is_the_mean_over_hidden_positions(batch):
    """With a decoder whose output is zero, the error is the mean square of the hidden values."""
    objective = pretraining(
        "uniform-all-token", **{"model.decoder_genes": GENES, "training.cell_loss": 1.0}
    )
    with torch.no_grad():
        for parameter in (
            *objective.model.decoder.head.parameters(),
            objective.model.gene_bias,
            *objective.model.cell_query.parameters(),
        ):
            parameter.zero_()
    losses = objective(batch, seed=2, step=0)
    values = torch.log1p(batch.counts)
    mask = objective.strategy(CellValues.of(values), Draw(2, 0, batch.cell_ids)).mask
    mask[-1] = False  # the empty cell: hiding would leave the encoder nothing
    expected = (values[mask] ** 2).mean()
    torch.testing.assert_close(losses.reconstruction, expected)
    torch.testing.assert_close(losses.cell, expected)
    assert losses.hidden.item() == pytest.approx(mask.float().mean().item())


def test_a_cell_is_left_alone_where_nothing_would_be_visible(batch):
    objective = pretraining("uniform-nonzero", **{"training.seed": 0})
    objective.strategy = Uniform(1.0, 0.0)
    losses = objective(batch, seed=0, step=0)
    assert losses.hidden.item() == 0.0
    assert losses.total.item() == 0.0
    losses.total.backward()


def test_what_the_encoder_has_no_room_for_is_hidden(batch):
    objective = pretraining("uniform-nonzero", **{"model.max_encoder_tokens": 6})
    seen = []
    objective.model.encoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[1].sum(1))
    )
    losses = objective(batch, seed=0, step=0)
    assert seen[0].max() == 6
    free = pretraining("uniform-nonzero")(batch, seed=0, step=0)
    assert losses.hidden_nonzero > free.hidden_nonzero


@pytest.mark.parametrize("random_values", ["observed", "uniform"])
def test_the_encoder_reads_true_values_and_the_decoder_the_corrupted_ones(batch, random_values):
    seen = {}
    for view in ("decoder", "both"):
        config = load_config(
            None,
            {
                **SMALL,
                "masking.strategy": "uniform",
                "masking.corruption": "80/10/10",
                "masking.corruption_view": view,
                "masking.random_values": random_values,
            },
        )
        objective = build_pretraining(config, GENES)
        values = torch.log1p(batch.counts)
        mask = objective.strategy(CellValues.of(values), Draw(1, 0, batch.cell_ids)).mask
        seen[view] = objective.hide(values, mask, batch.cell_ids, seed=1, step=0)
    faithful, both = seen["decoder"], seen["both"]
    assert torch.equal(faithful.mask, both.mask)
    assert torch.equal(faithful.corrupted, both.corrupted)
    assert torch.equal(faithful.visible, (values != 0) & ~faithful.mask)
    assert torch.equal(faithful.corrupted[faithful.visible], values[faithful.visible])
    # what the decoder alone reads: a tenth changed, a tenth as it was, of the hidden
    alone = (faithful.corrupted != 0) & ~faithful.token & ~faithful.visible
    assert alone.sum() == (both.visible & both.mask).sum() > 0
    assert (both.corrupted != values)[both.visible].any()


def test_two_learning_rates_share_out_every_parameter():
    objective = pretraining("mam")
    groups = {group["name"]: group for group in objective.parameter_groups(1e-3, 1e-4, 0.01)}
    assert (groups["model"]["lr"], groups["masking"]["lr"], groups["masking"]["weight_decay"]) == (
        1e-3,
        1e-4,
        0.01,
    )
    assert sum(len(group["params"]) for group in groups.values()) == len(
        list(objective.parameters())
    )
    assert any(p is objective.strategy.latents.latents for p in groups["masking"]["params"])
    assert any(p is objective.injection.adapter.weight for p in groups["masking"]["params"])
    apart = {
        group["name"]: group["weight_decay"]
        for group in objective.parameter_groups(1e-3, 1e-4, 0.01, 0.0)
    }
    assert apart == {"model": 0.01, "masking": 0.0}
    assert [
        group["name"] for group in pretraining("uniform").parameter_groups(1e-3, 1e-4, 0.0)
    ] == ["model"]


def test_published_rate_groups_share_out_every_parameter():
    objective = pretraining("mam")
    groups = {
        group["name"]: group
        for group in objective.parameter_groups(1e-5, 1e-4, 0.01, 0.0, "published")
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "model": 1e-5,
        "new": 1e-4,
        "masking": 1e-4,
    }
    assert [groups[name]["weight_decay"] for name in ("model", "new", "masking")] == [0.01, 0.01, 0]
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found = {
        name: sorted(names[id(parameter)] for parameter in group["params"])
        for name, group in groups.items()
    }
    assert sorted(name for part in found.values() for name in part) == sorted(names.values())
    assert all(
        name.startswith(("model.encoder.", "model.decoder.blocks.")) for name in found["model"]
    )
    for name in (
        "embedding.gene.weight",
        "decoder.bridge.weight",
        "decoder.norm.bias",
        "gene_bias",
    ):
        assert f"model.{name}" in found["new"]


def test_published_first_weights():
    published = {"masking.latent_start": "published", "masking.injection_start": "published"}
    config = load_config(None, {**SMALL, **published, "masking.injection": "separate"})
    config = with_settings(config, masking={"latent_dim": 256, "num_latents": 128})
    objective = build_pretraining(config, GENES)
    latents = objective.strategy.latents
    assert latents.latents.std().item() == pytest.approx(0.02, rel=0.05)
    assert not latents.input_proj.bias.any()
    # Xavier: uniform within the root of 6 over inputs plus outputs
    for adapter in (objective.injection.encoder_adapter, objective.injection.decoder_adapter):
        bound = math.sqrt(6 / (256 + 16))
        assert 0.95 * bound < adapter.weight.abs().max().item() <= bound
        assert not adapter.bias.any()


def test_the_plain_penalty_is_the_root_of_the_squared_one(batch):
    settings = {"training.cell_loss": 0.25, "masking.penalty": 1e-3}
    squared = pretraining(**settings)(batch, seed=0, step=0)
    config = load_config(None, {**SMALL, **settings, "masking.penalty_norm": "plain"})
    config = with_settings(config, masking={"injection": "decoder"})
    losses = build_pretraining(config, GENES)(batch, seed=0, step=0)
    torch.testing.assert_close(losses.penalty, squared.penalty.sqrt())
    expected = losses.reconstruction + 0.25 * losses.cell + 1e-3 * losses.penalty
    torch.testing.assert_close(losses.total.detach(), expected)
    uniform = load_config(
        None, {**SMALL, "masking.strategy": "uniform", "masking.penalty_norm": "plain"}
    )
    without = build_pretraining(uniform, GENES)(batch, seed=0, step=0)
    assert without.penalty.item() < 1e-18
    without.total.backward()


@pytest.mark.parametrize("arm", ["mam", "mam-embedding"])
def test_the_encoder_is_shifted_in_the_features_too(arm, batch):
    config = arm_config(load_config(None, SMALL), arm, 0)
    config = with_settings(config, masking={"injection": "both"})
    objective = build_pretraining(config, GENES)
    values = torch.log1p(batch.counts)
    shift = objective.encoder_shift(values)
    assert shift.shape == (24, 1, 16)
    torch.testing.assert_close(objective.encoder_shift(values.to_sparse_csr()), shift)
    expected = objective.model.features(values, batch.depth, shift)
    torch.testing.assert_close(objective.features(batch), expected)
    assert not torch.allclose(expected, objective.model.features(values, batch.depth))
    assert pretraining("mam").encoder_shift(values) is None  # its injection is the decoder's
    assert pretraining("uniform").encoder_shift(values) is None


def test_arms_that_differ_in_masking_start_from_the_same_model():
    states = [pretraining(arm).model.state_dict() for arm in ("uniform", "mam", "none")]
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in states[0])
    assert not torch.equal(
        states[0]["encoder.cell"], pretraining("mam", **{"training.seed": 5}).model.encoder.cell
    )


def test_building_leaves_the_global_generator_as_it_was():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    pretraining()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("scheme", ["encoder", "decoder", "both", "separate"])
def test_each_scheme_of_injection_trains_the_latents(scheme, batch):
    objective = pretraining("mam")
    config = load_config(None, {**SMALL, "masking.injection": scheme})
    objective = build_pretraining(config, GENES)
    objective(batch, seed=0, step=0).total.backward()
    assert objective.strategy.latents.latents.grad.abs().max() > 0
    assert all(p.grad is not None for p in objective.injection.parameters())


def test_an_injection_that_starts_at_zero_changes_nothing_at_first_and_then_learns(batch):
    zero = {"masking.injection": "decoder", "masking.injection_start": "zero"}
    objective = build_pretraining(load_config(None, {**SMALL, **zero}), GENES)
    plain = build_pretraining(load_config(None, {**SMALL, "masking.injection": "none"}), GENES)
    losses = objective(batch, seed=0, step=0)
    torch.testing.assert_close(
        losses.reconstruction, plain(batch, seed=0, step=0).reconstruction, rtol=0, atol=0
    )
    losses.total.backward()
    assert objective.injection.adapter.weight.grad.abs().max() > 0


@pytest.mark.parametrize("scheme", ["decoder", "both", "separate"])
def test_adapters_fit_a_decoder_of_another_width(scheme, batch):
    """The shift has the encoder's width; the decoder projects it together with what it reads."""
    model = CellModel(
        GENES,
        width=16,
        heads=2,
        encoder_layers=1,
        decoder_layers=1,
        bins=4,
        decoder_width=24,
        decoder_heads=3,
    )
    strategy = pretraining("mam").strategy
    config = with_settings(load_config(), masking={"injection": scheme})
    objective = Pretraining(model, strategy, config)
    losses = objective(batch, seed=0, step=0)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(parameter.grad.any() for parameter in objective.injection.parameters())
    with pytest.raises(
        ValueError,
        match=f"injection: a strategy without latents has no context to inject; got {scheme!r}",
    ):
        Pretraining(model, pretraining("uniform").strategy, config)


def test_negative_binomial_is_the_distribution():
    counts = torch.arange(0.0, 400.0, dtype=torch.float64)
    log_mean, log_theta = torch.tensor(1.2), torch.tensor(0.4)
    loss = negative_binomial_loss(counts, log_mean, log_theta).double()
    probability = (-loss).exp()
    mean, theta = math.exp(1.2), math.exp(0.4)
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (probability * counts).sum().item() == pytest.approx(mean, rel=1e-4)
    assert (probability * (counts - mean) ** 2).sum().item() == pytest.approx(
        mean + mean**2 / theta, rel=1e-3
    )


def test_negative_binomial_has_finite_gradients_at_the_ends():
    log_mean = torch.tensor([-80.0, 0.0, 80.0], requires_grad=True)
    log_theta = torch.tensor([80.0, -80.0, 0.0], requires_grad=True)
    negative_binomial_loss(torch.tensor([0.0, 5.0, 1e5]), log_mean, log_theta).sum().backward()
    assert torch.isfinite(log_mean.grad).all()
    assert torch.isfinite(log_theta.grad).all()


def test_substreams_differ_and_stay():
    assert substream(0, "model") != substream(0, "decoder") != substream(1, "decoder")
    assert 0 <= substream(2**63 - 1, "model") < 2**63
    assert substream(7, "corruption") == substream(7, "corruption")


def test_weight_decay_alone_flattens_the_masks_under_adam(batch):
    """The slopes get next to no gradient, and Adam takes a full step along whatever gradient there
    is: the decay's.
    """
    spread = {}
    for decay in (5e-4, 0.0):
        objective = pretraining("mam")
        optimizer = torch.optim.Adam(objective.parameter_groups(1e-2, 1e-2, 5e-4, decay))
        for step in range(120):
            optimizer.zero_grad()
            objective(batch, seed=0, step=step).total.backward()
            optimizer.step()
        slope = objective.strategy.latents.slopes()
        spread[decay] = slope.square().mean().sqrt().item()
    assert spread[5e-4] < 0.05 * spread[0.0]


def test_a_reward_teaches_the_latents_to_hide_what_is_predicted_worst(batch):
    objective = pretraining("mam-reward", **{"masking.reward_temperature": 0.5})
    dense = CellBatch(batch.counts[:-1], *(x[:-1] for x in batch[1:]))

    def history(steps: int) -> list:
        losses = []
        latents = [p for n, p in objective.named_parameters() if n.startswith("strategy")]
        optimizer = torch.optim.Adam(latents, lr=1e-2)
        for step in range(steps):
            losses.append(objective(dense, seed=2, step=step))
            optimizer.zero_grad()
            losses[-1].total.backward()
            optimizer.step()
        return [(x.reconstruction.item(), x.entropy.item()) for x in losses]

    errors, entropies = zip(*history(120), strict=True)
    assert sum(errors[-20:]) > 1.1 * sum(errors[:20])
    assert entropies[0] > 0.99
    assert 0.3 < entropies[-1] < 0.98


def test_a_reward_adds_nothing_to_the_loss_and_nothing_to_the_gradient_of_the_model(batch):
    found = {}
    for gradient in ("none", "reward"):
        config = load_config(None, SMALL)
        arm = arm_config(config, "mam-reward", 0)
        settings = arm.masking.model_copy(update={"gradient": gradient})
        objective = build_pretraining(arm.model_copy(update={"masking": settings}), GENES)
        losses = objective(batch, seed=2, step=0)
        losses.total.backward()
        found[gradient] = losses.total, dict(objective.named_parameters())
    torch.testing.assert_close(found["none"][0], found["reward"][0])
    for name, plain in found["none"][1].items():
        rewarded = found["reward"][1][name].grad
        if not name.startswith("strategy"):
            assert (plain.grad is None) == (rewarded is None)
            assert plain.grad is None or torch.equal(plain.grad, rewarded)
    latents = "strategy.latents.latents"
    assert not found["none"][1][latents].grad.any()
    assert found["reward"][1][latents].grad.any()
