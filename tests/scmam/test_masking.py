"""Masking strategies and corruption: which positions are hidden, how many, and what stands in their
place.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from scmam.masking import build_strategy

import mam_kernels as mam
from mam_kernels import strategies as masking
from mam_kernels.corruption import corrupt
from mam_kernels.sequences import gather
from mam_kernels.strategies import CellValues, Draw, MatchedFractions, Uniform, masking_entropy

GENES = 60
IDS = torch.arange(100, 108)


@pytest.fixture
def values() -> torch.Tensor:
    """(8, 60), about a third non-zero; the first cell is empty, the second has one gene."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(8, GENES, generator=generator) * 5
    dense *= torch.rand(8, GENES, generator=generator) < 0.35
    dense[0] = 0
    dense[1] = 0
    dense[1, 7] = 2.0
    return dense


def settings(strategy: str, **changes) -> SimpleNamespace:
    defaults = {
        "strategy": strategy, "ratio": 0.3, "ratio_to": None, "zero_ratio": None,
        "injection": "none",
        "context_from": "all", "temperature": 1.0, "slope_norm": None, "latent_fraction": None,
        "latent_start": "standard",
        "latent_dim": 16, "num_latents": 6, "latent_heads": 2,
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **changes})


def strategy(name: str, **changes) -> masking.MaskingStrategy:
    torch.manual_seed(1)
    schedule = torch.tensor([[0.1, 0.5], [0.0, 1.0]]) if name == "matched" else None
    known = torch.arange(GENES) % 7 if name == "modules" else torch.linspace(0.1, 2.0, GENES)
    return build_strategy(settings(name, **changes), 4, GENES, schedule=schedule, knowledge=known)


def embed(sequences):
    table = torch.sin(torch.arange(GENES * 4, dtype=torch.float32)).view(GENES, 4)
    return table[sequences.gene_ids] * sequences.values[..., None]


EVERY = [
    ("none", {}),
    ("uniform", {}),
    ("uniform", {"zero_ratio": 0.1}),
    ("uniform", {"injection": "decoder"}),
    ("uniform", {"injection": "decoder", "context_from": "visible"}),
    ("expression", {}),
    ("expression", {"zero_ratio": 0.1}),
    ("matched", {}),
    ("mam", {}),
    ("mam", {"zero_ratio": 0.1}),
    ("mam", {"zero_ratio": 0.1, "context_from": "visible"}),
    ("mam", {"slope_norm": 1.0}),
    ("mam", {"temperature": 0.05, "context_from": "visible"}),
    ("mam-embedding", {"zero_ratio": 0.1}),
    ("modules", {"zero_ratio": 0.1}),
    ("harder", {"zero_ratio": 0.1}),
    ("labels", {"zero_ratio": 0.1}),
    ("replayed", {"zero_ratio": 0.0}),
]


def floors(flags: torch.Tensor, ratio: float) -> list[int]:
    return [math.floor(ratio * n) for n in flags.sum(dim=1).tolist()]


@pytest.mark.parametrize(("name", "changes"), EVERY)
def test_hides_the_stated_share_of_each_cell(values, name, changes):
    out = strategy(name, **changes)(CellValues.of(values, embed=embed), Draw(3, 0, IDS))
    nonzero = values != 0
    hidden_nonzero, hidden_zero = (
        (out.mask & nonzero).sum(1).tolist(),
        (out.mask & ~nonzero).sum(1).tolist(),
    )
    if name == "none":
        expected = ([0] * 8, [0] * 8)
    elif name == "matched":
        expected = (floors(nonzero, 0.5), floors(~nonzero, torch.tensor(0.1).item()))
    elif name == "expression" or changes.get("zero_ratio") is not None:
        expected = (floors(nonzero, 0.3), floors(~nonzero, changes.get("zero_ratio") or 0.0))
    else:
        assert out.mask.sum(1).tolist() == [math.floor(0.3 * GENES)] * 8
        return
    assert (hidden_nonzero, hidden_zero) == expected


@pytest.mark.parametrize(("name", "changes"), EVERY)
def test_a_mask_follows_seed_step_and_cell_alone(values, name, changes):
    chosen = strategy(name, **changes)
    mask = chosen(CellValues.of(values, embed=embed), Draw(3, 0, IDS)).mask
    alone = torch.cat(
        [
            chosen(CellValues.of(values[i : i + 1], embed=embed), Draw(3, 0, IDS[i : i + 1])).mask
            for i in range(8)
        ]
    )
    assert torch.equal(mask, alone)
    backwards = chosen(CellValues.of(values.flip(0), embed=embed), Draw(3, 0, IDS.flip(0))).mask
    assert torch.equal(mask, backwards.flip(0))
    if name != "none":
        assert not torch.equal(
            mask, chosen(CellValues.of(values, embed=embed), Draw(4, 0, IDS)).mask
        )
        assert not torch.equal(
            mask, chosen(CellValues.of(values, embed=embed), Draw(3, 0, IDS + 1000)).mask
        )
    if name not in ("none", "matched"):
        assert not torch.equal(
            mask, chosen(CellValues.of(values, embed=embed), Draw(3, 1, IDS)).mask
        )


@pytest.mark.parametrize(
    ("name", "changes"), [x for x in EVERY if x[0].startswith("mam") or "injection" in x[1]]
)
def test_context_trains_every_parameter_of_the_latents(values, name, changes):
    chosen = strategy(name, **changes)
    out = chosen(CellValues.of(values, embed=embed), Draw(0, 0, IDS))
    assert out.context.shape == (8, 16)
    assert torch.isfinite(out.context).all()
    (out.context.square().sum() + out.penalty).backward()
    for parameter_name, parameter in chosen.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    assert chosen.latents.latents.grad.abs().max() > 0


def test_visible_context_does_not_see_what_is_hidden(values):
    for name, changes in (
        ("uniform", {"injection": "decoder"}),
        ("mam", {"zero_ratio": 0.1}),
        ("mam", {}),
    ):
        chosen = strategy(name, context_from="visible", **changes)
        mask = chosen(CellValues.of(values), Draw(0, 0, IDS)).mask
        if name == "mam" and not changes:
            changed = chosen.latents(values, num_masked=0, valid=~mask, seed=0, step=0)
            out = chosen(CellValues.of(values), Draw(0, 0, IDS))
            torch.testing.assert_close(out.context, changed.context)
            continue
        # The same mask whatever the values (uniform), or as drawn (mam): the context must be that
        # of the visible positions alone.
        out = chosen(CellValues.of(values), Draw(0, 0, IDS))
        expected = chosen.latents(values, num_masked=0, valid=~mask, seed=0, step=0)
        torch.testing.assert_close(out.context, expected.context)
        seeing = strategy(name, context_from="all", **changes)(
            CellValues.of(values), Draw(0, 0, IDS)
        )
        assert not torch.allclose(out.context, seeing.context)


def test_injection_leaves_the_masks_of_the_selection_alone(values):
    plain = strategy("uniform")(CellValues.of(values), Draw(5, 2, IDS))
    injected = strategy("uniform", injection="decoder")(CellValues.of(values), Draw(5, 2, IDS))
    assert torch.equal(plain.mask, injected.mask)
    assert plain.context is None
    assert injected.context is not None


def test_expression_is_drawn_in_proportion_to_the_value():
    values = torch.tensor([[1.0, 2.0, 5.0, 0.0]]).expand(4000, -1)
    mask = strategy("expression", ratio=0.34)(
        CellValues.of(values), Draw(0, 0, torch.arange(4000))
    ).mask
    assert mask.sum(1).tolist() == [1] * 4000
    share = mask.double().mean(0)
    for position, p in enumerate((1 / 8, 2 / 8, 5 / 8, 0.0)):
        # Exceeded by chance once in 2e7.
        assert abs(share[position] - p) <= 5.5 * math.sqrt(p * (1 - p) / 4000)


def test_matched_follows_its_schedule_and_keeps_the_last_row(values):
    chosen = strategy("matched")
    nonzero = values != 0
    for step, (zeros, nonzeros) in (
        (0, (torch.tensor(0.1).item(), 0.5)),
        (1, (0.0, 1.0)),
        (9, (0.0, 1.0)),
    ):
        mask = chosen(CellValues.of(values), Draw(0, step, IDS)).mask
        assert (mask & nonzero).sum(1).tolist() == floors(nonzero, nonzeros)
        assert (mask & ~nonzero).sum(1).tolist() == floors(~nonzero, zeros)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (torch.zeros(0, 2), r"schedule: expected shape \(steps, 2\) with steps >= 1; got \(0, 2\)"),
        (torch.zeros(3), r"schedule: expected shape \(steps, 2\) with steps >= 1; got \(3,\)"),
        (
            torch.tensor([[0.1, 1.2]]),
            r"schedule: expected shares in \[0, 1\]; got values from 0.1 to 1.2",
        ),
    ],
)
def test_matched_refuses_a_wrong_schedule(schedule, message):
    with pytest.raises(ValueError, match=message):
        MatchedFractions(schedule)


def test_what_is_missing_is_named(values):
    with pytest.raises(ValueError, match="schedule: required by the strategy 'matched'; got None"):
        build_strategy(settings("matched"), 4, GENES)
    with pytest.raises(
        ValueError, match="embed: expected a function from sequences to embeddings; got None"
    ):
        strategy("mam-embedding", zero_ratio=0.0)(CellValues.of(values), Draw(0, 0, IDS))


def test_slopes_keep_their_norm_whatever_the_parameters():
    chosen = strategy("mam", slope_norm=0.7)
    for factor in (1.0, 1e-3):
        with torch.no_grad():
            chosen.latents.input_proj.weight.mul_(factor)
        slope = chosen.latents.slopes()
        assert slope.square().mean().sqrt().item() == pytest.approx(0.7, rel=1e-3)


def test_embedding_attention_is_the_engine_on_the_gathered_genes(values):
    chosen = strategy("mam-embedding", zero_ratio=0.0)
    out = chosen(CellValues.of(values, embed=embed), Draw(2, 5, IDS))
    there = gather(values, values != 0)
    counts = torch.tensor(floors(there.valid, 0.3))
    direct = chosen.latents(
        embed(there), there.valid, num_masked=counts, seed=2, step=5, sample_ids=IDS
    )
    for cell in range(8):
        kept = there.valid[cell]
        assert torch.equal(out.mask[cell, there.gene_ids[cell, kept]], direct.mask[cell, kept])
        assert torch.equal(
            out.importance[cell, there.gene_ids[cell, kept]], direct.importance[cell, kept]
        )
    assert not out.importance[values == 0].any()
    torch.testing.assert_close(out.context, direct.context)


def test_entropy_is_that_of_the_drawable_positions():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    importance = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    two = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    entropy = masking_entropy(masking.Masking(mask, importance, None, None), 0.0, 1.0)
    # The third cell has one drawable position, so no entropy.
    assert entropy.item() == pytest.approx((1 + two) / 2)
    sharp = masking_entropy(masking.Masking(mask[1:2], importance[1:2], None, None), 0.0, 0.5)
    assert sharp.item() == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2))
    assert masking_entropy(masking.Masking(mask, None, None, None), 0.0, 1.0).item() == 1.0


# Corruption


def test_all_puts_the_token_everywhere(values):
    mask = Uniform(0.5)(CellValues.of(values), Draw(0, 0, IDS)).mask
    out = corrupt(values, mask, "all", IDS, seed=0, step=0)
    assert torch.equal(out.token, mask)
    assert torch.equal(out.values, values)


@pytest.mark.parametrize(
    ("scheme", "shares"), [("80/10/10", (0.8, 0.1, 0.1)), ("90/10", (0.9, 0.1, 0.0))]
)
def test_shares_of_token_random_and_unchanged(scheme, shares):
    # All distinct, so a random value is seen as one.
    values = torch.arange(1.0, 41.0).expand(500, -1).contiguous()
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[:, ::4] = False
    out = corrupt(values, mask, scheme, torch.arange(500), seed=0, step=0)
    assert not out.token[~mask].any()
    assert torch.equal(out.values[~mask], values[~mask])
    n = int(mask.sum())
    changed = (out.values != values)[mask].double().mean().item()
    token = out.token[mask].double().mean().item()
    assert abs(token - shares[0]) < 5.5 * math.sqrt(shares[0] * (1 - shares[0]) / n)
    expected = shares[1] * 39 / 40  # one time in forty the random value is the true one
    assert abs(changed - expected) < 5.5 * math.sqrt(expected * (1 - expected) / n)
    assert not (out.token & (out.values != values)).any()


def test_a_random_value_is_a_non_zero_value_of_the_cell(values):
    mask = torch.ones_like(values, dtype=torch.bool)
    out = corrupt(values, mask, "90/10", IDS, seed=1, step=0)
    assert (out.values != values).any()
    for cell in range(8):
        wrong = out.values[cell][out.values[cell] != values[cell]]
        assert torch.isin(wrong, values[cell][values[cell] != 0]).all()
    assert not out.values[0].any()  # a cell of zeros has no other value to give


def test_corruption_follows_seed_step_and_cell_alone(values):
    mask = torch.ones_like(values, dtype=torch.bool)
    both = corrupt(values, mask, "80/10/10", IDS, seed=1, step=4)
    for cell in range(8):
        alone = corrupt(
            values[cell : cell + 1], mask[:1], "80/10/10", IDS[cell : cell + 1], seed=1, step=4
        )
        assert torch.equal(both.values[cell], alone.values[0])
        assert torch.equal(both.token[cell], alone.token[0])
    for other in ({"seed": 2, "step": 4}, {"seed": 1, "step": 5}):
        assert not torch.equal(both.token, corrupt(values, mask, "80/10/10", IDS, **other).token)
    with pytest.raises(
        ValueError, match="corruption: expected one of all, 80/10/10, 90/10; got 'some'"
    ):
        corrupt(values, mask, "some", IDS, seed=0, step=0)


def test_uniform_random_values_reach_up_to_the_largest_of_the_batch():
    values = torch.arange(1.0, 41.0).expand(500, -1).contiguous()
    values[3, 5] = 200.0
    mask = torch.ones_like(values, dtype=torch.bool)
    out = corrupt(values, mask, "90/10", torch.arange(500), seed=0, step=0, random_values="uniform")
    again = corrupt(values, mask, "90/10", torch.arange(500), seed=0, step=0)
    assert torch.equal(out.token, again.token)
    drawn = (out.values[~out.token] / 200).double()
    assert drawn.min() > 0
    assert drawn.max() < 1
    # Kolmogorov-Smirnov at a false alarm rate of 2e-7
    steps = torch.arange(1, len(drawn) + 1) / len(drawn)
    assert (drawn.sort().values - steps).abs().max() < 2.85 / math.sqrt(len(drawn))
    with pytest.raises(
        ValueError, match="random_values: expected one of observed, uniform; got 'normal'"
    ):
        corrupt(values, mask, "all", IDS, seed=0, step=0, random_values="normal")


def test_the_mask_does_not_depend_on_the_corruption_bits(values):
    """The draws of one step take bits of their own: among hidden positions, the token falls as
    often on any of the first as on the last.
    """
    many = torch.ones(3000, 20)
    ids = torch.arange(3000)
    mask = mam.sample_without_replacement(many, 10, seed=0, step=0, sample_ids=ids)
    token = corrupt(many, mask, "80/10/10", ids, seed=0, step=0).token
    share = (token.sum(0) / mask.sum(0)).double()
    assert (share - 0.8).abs().max() < 5.5 * math.sqrt(0.16 / 1300)
