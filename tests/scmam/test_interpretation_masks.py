"""What masks hide and what latents look at, on real cells with hand-made weights."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")
pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
pytest.importorskip("scipy", reason="the single-cell layer is not installed")

from scipy.stats import binom, chi2, spearmanr
from scmam.data import open_cells
from scmam.interpretation.attention import attention_of, overlap_of, slopes_of
from scmam.interpretation.examples import example_masks, typical_cells
from scmam.interpretation.folder import draws_apart
from scmam.interpretation.summary import (
    ENTROPY_UNIFORM,
    OVERLAP_ALIKE,
    collapse_warnings,
    summarise,
)
from scmam.interpretation.tables import (
    dispersion,
    expected_from_expression,
    frequencies,
    frequencies_by_type,
    ranking,
)
from scmam.interpretation.tally import (
    Draws,
    batch_cells,
    count_masks,
    draw_masks,
    uniform_chance,
)
from scmam.objective import build_pretraining
from scmam.sequences import CellBatch, expression
from scmam.settings import Data

from mam_kernels.sequences import gather
from mam_kernels.strategies import masking_entropy
from tests.scmam.interpreted import configured, set_slopes

CPU = torch.device("cpu")
FALSE_ALARM = 1e-7


@pytest.fixture(scope="module")
def cells():
    return open_cells(Data())


def built(cells, slope=None, **masking):
    config = configured(**masking)
    schedule = (
        torch.tensor([[0.9, 0.9], [0.05, 0.25]]) if config.masking.strategy == "matched" else None
    )
    pretraining = build_pretraining(config, cells.num_genes, schedule=schedule)
    if slope is not None:
        set_slopes(
            pretraining,
            torch.as_tensor(slope).float().expand(12, 2) if np.ndim(slope) == 0 else slope,
        )
    return config, pretraining


def built_for(genes, **masking):
    config = configured(**masking)
    return config, build_pretraining(config, genes)


def cells_of_counts(counts):
    """As much of cells as the overlap asks for."""
    rows, genes = counts.shape
    return SimpleNamespace(
        num_cells=rows,
        num_genes=genes,
        batch=lambda indices: CellBatch(
            counts[indices],
            counts[indices].sum(dim=1),
            torch.from_numpy(indices),
            torch.from_numpy(indices),
        ),
    )


def counted(cells, config, pretraining, draws=4, seed=0, rows=256):
    return count_masks(
        pretraining,
        cells,
        Draws(draws, seed, 3),
        rows=rows,
        split=draws_apart(config.masking),
        device=CPU,
    )


def summary(cells, config, pretraining, tally):
    tables = frequencies(tally, cells.genes), frequencies_by_type(tally, cells.genes, cells.classes)
    return (
        tables[0],
        tables[1],
        summarise(
            pretraining,
            config.masking.strategy,
            cells,
            tally,
            tables,
            (),
            CPU,
            decayed=config.training.decay_of_latents > 0,
        ),
    )


def interpreted(cells, slope=None, draws=4, **masking):
    config, pretraining = built(cells, slope, **masking)
    return summary(cells, config, pretraining, counted(cells, config, pretraining, draws))


def test_positive_slopes_hide_what_is_expressed(cells):
    table, by_type, found = interpreted(cells, 3.0)
    assert spearmanr(table["hidden"], table["mean_expression"]).statistic > 0.9
    assert found.spearman == pytest.approx(
        spearmanr(table["hidden"], table["mean_expression"]).statistic
    )
    assert found.hidden_nonzero > 2 * found.hidden_zero
    assert all("uniform" not in warning for warning in found.warnings)
    assert set(found.spearman_by_type) == set(cells.classes)
    assert min(found.spearman_by_type.values()) > 0.7
    assert (by_type.groupby("gene")["cells"].sum() == cells.num_cells).all()


def test_negative_slopes_hide_what_is_not(cells):
    _, _, found = interpreted(cells, -3.0, draws=2)
    assert found.spearman < -0.8
    assert found.hidden_nonzero < 0.1 < found.hidden_zero
    assert found.attention.slopes.positive == 0.0


def test_zero_slopes_are_uniform_and_warned_of(cells):
    table, _, found = interpreted(cells, 0.0)
    hidden = math.floor(0.3 * cells.num_genes)
    # Every mask hides a gene with probability k / G, independently of the other cells and draws.
    counts = np.round(table["hidden"] * found.masks)
    low, high = binom.ppf(
        [FALSE_ALARM / cells.num_genes, 1 - FALSE_ALARM / cells.num_genes],
        found.masks,
        hidden / cells.num_genes,
    )
    assert counts.between(low, high).all()
    assert found.entropy == pytest.approx(1.0, abs=1e-6)
    assert found.effective_positions == pytest.approx(cells.num_genes, rel=1e-5)
    assert found.attention.overlap.cosine == pytest.approx(1.0, abs=1e-5)
    assert found.attention.overlap.jaccard == pytest.approx(1.0, abs=1e-6)
    assert found.attention.overlap.correlation is None
    assert found.attention.slopes.distinct == 1
    uniform, alike = found.warnings
    assert uniform.startswith("masks are indistinguishable from uniform ones")
    assert (
        "masking.temperature below 1 (0.1), masking.slope_norm=1 or larger, or"
        " masking.strategy=mam-embedding" in uniform
    )
    assert "training.masking_weight_decay=0" in uniform
    assert "training.masking_weight_decay=0" in alike
    assert alike.startswith("all 12 latents attend alike")
    assert "masking.slope_norm=1" in alike
    assert "temperature" not in alike


def test_random_rates_fit_the_binomial_but_learned_ones_do_not(cells):
    """The bound of the test above is no empty one."""
    table, _, found = interpreted(cells, 0.5, draws=2)
    rate = table["hidden"].mean()
    low, high = binom.ppf(
        [FALSE_ALARM / cells.num_genes, 1 - FALSE_ALARM / cells.num_genes], found.masks, rate
    )
    assert not np.round(table["hidden"] * found.masks).between(low, high).all()


def test_rows_sum_to_what_is_hidden(cells):
    table, by_type, found = interpreted(cells, 2.0)
    hidden = math.floor(0.3 * cells.num_genes)
    assert table["hidden"].sum() == pytest.approx(hidden, rel=1e-12)
    assert table["uniform"].to_numpy() == pytest.approx(
        np.full(cells.num_genes, hidden / cells.num_genes)
    )
    assert by_type.groupby("cell_type")["hidden"].sum().to_numpy() == pytest.approx(
        np.full(len(cells.classes), hidden)
    )
    overall = (by_type["hidden"] * by_type["cells"]).groupby(
        by_type["gene"]
    ).sum() / cells.num_cells
    assert overall[table["gene"]].to_numpy() == pytest.approx(table["hidden"].to_numpy())
    assert (
        table["hidden_when_nonzero"] * table["detected"]
    ).sum() * cells.num_cells == pytest.approx(
        found.hidden_nonzero * table["detected"].sum() * cells.num_cells
    )
    assert found.hidden == pytest.approx(hidden / cells.num_genes)
    assert found.masks == 4 * cells.num_cells


def test_means_are_those_of_the_cells(cells):
    table, by_type, _ = interpreted(cells, 0.0, draws=1)
    batch = cells.batch(np.arange(cells.num_cells))
    values = expression(batch.counts, batch.depth, "log1p_counts").double()
    assert table["mean_expression"].to_numpy() == pytest.approx(values.mean(dim=0).numpy())
    assert table["detected"].to_numpy() == pytest.approx((values != 0).double().mean(dim=0).numpy())
    name = cells.classes[2]
    of_type = values[torch.from_numpy(cells.codes == 2)]
    part = by_type[by_type["cell_type"] == name]
    assert part["mean_expression"].to_numpy() == pytest.approx(of_type.mean(dim=0).numpy())
    assert (part["cells"] == len(of_type)).all()
    rates = ["mean_expression", "detected", "hidden", "hidden_when_nonzero", "uniform"]
    assert list(by_type.columns) == ["cell_type", "gene", "cells", *rates]
    rates.insert(3, "hidden_error")
    assert list(table.columns) == ["gene", *rates, "expected", "beyond_expression"]
    rate = table["hidden"]
    assert table["hidden_error"].to_numpy() == pytest.approx(
        np.sqrt(rate * (1 - rate) / cells.num_cells).to_numpy()
    )


def test_sums_depend_on_neither_batch_nor_order_of_reading(cells):
    config, pretraining = built(cells, 1.0)
    whole, parts = (counted(cells, config, pretraining, draws=2, rows=rows) for rows in (700, 64))
    assert torch.equal(whole.hidden, parts.hidden)
    assert torch.equal(whole.hidden_nonzero, parts.hidden_nonzero)
    assert torch.equal(whole.hidden_by_draw, parts.hidden_by_draw)
    torch.testing.assert_close(whole.expression, parts.expression)
    assert torch.equal(counted(cells, config, pretraining, draws=2).hidden, whole.hidden)
    assert not torch.equal(
        counted(cells, config, pretraining, draws=2, seed=1).hidden, whole.hidden
    )


def test_error_of_a_rate_is_that_of_the_draws(cells):
    config, pretraining = built(cells, 0.0)
    tally = counted(cells, config, pretraining, draws=8)
    table = frequencies(tally, cells.genes)
    between = tally.hidden_by_draw.numpy().std(axis=0, ddof=1) / cells.num_cells / math.sqrt(8)
    binomial = np.sqrt(table["hidden"] * (1 - table["hidden"]) / (8 * cells.num_cells))
    assert table["hidden_error"].to_numpy() == pytest.approx(np.maximum(between, binomial))
    # The cells are independent where slopes are 0.
    assert np.sqrt((between**2).mean()) == pytest.approx(binomial.mean(), rel=0.1)


def test_latents_drawn_anew_add_to_the_error(cells):
    """With slopes of both signs a mask depends on which latents were drawn, for all cells of a draw
    alike.
    """
    config, pretraining = built(
        cells,
        torch.tensor([3.0, -3.0]).repeat_interleave(6)[:, None].expand(12, 2),
        latent_fraction=0.1,
    )
    table = frequencies(counted(cells, config, pretraining, draws=8), cells.genes)
    binomial = np.sqrt(table["hidden"] * (1 - table["hidden"]) / (8 * cells.num_cells))
    assert (table["hidden_error"] / binomial).median() > 5


@pytest.mark.parametrize(
    "masking",
    [{"strategy": "uniform", "zero_ratio": 0.03}, {"strategy": "matched", "matched_to": "another"}],
)
def test_reference_of_strategies_that_draw_zeros_apart(cells, masking):
    table, _, found = interpreted(cells, **masking)
    assert table["uniform"].sum() == pytest.approx(table["hidden"].sum())
    error = np.sqrt(table["uniform"] * (1 - table["uniform"]) / found.masks)
    z = ((table["hidden"] - table["uniform"]) / error).abs()
    # 765 genes beyond 6 standard errors: fewer than 2 in a million such tables.
    assert z.max() < 6.0
    shares = (0.25, 0.05) if masking["strategy"] == "matched" else (0.3, 0.03)
    assert found.hidden_nonzero == pytest.approx(shares[0], abs=0.01)
    assert found.hidden_zero == pytest.approx(shares[1], abs=0.01)


def test_uniform_chance_by_hand():
    hidden = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    there = torch.tensor([[True, True, False, False]])
    assert uniform_chance(hidden, there, split=False).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert uniform_chance(hidden, there, split=True).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert uniform_chance(torch.tensor([[2.0, 1.0, 0.0, 1.0]]), there, split=True).tolist() == [
        [1.5, 1.5, 0.5, 0.5]
    ]


@pytest.mark.parametrize(
    ("masking", "entropy"),
    [
        ({"strategy": "uniform"}, 1.0),
        ({"strategy": "none"}, None),
        ({"strategy": "expression", "zero_ratio": 0.03}, 0.98),
    ],
)
def test_strategies_without_latents(cells, masking, entropy):
    table, _, found = interpreted(cells, draws=2, **masking)
    assert found.attention is None
    assert found.attention_missing == f"strategy {masking['strategy']} has no latents"
    assert found.warnings == ()
    assert found.entropy == (None if entropy is None else pytest.approx(entropy, abs=0.01))
    if masking["strategy"] == "none":
        assert (table["hidden"] == 0).all()
        assert found.spearman is None
    elif masking["strategy"] == "expression":
        assert found.spearman > 0.98


def test_latents_that_only_give_a_context(cells):
    _, _, found = interpreted(cells, 0.0, draws=2, strategy="uniform", injection="decoder")
    assert not found.attention.decide_masks
    assert found.attention.overlap.cosine > OVERLAP_ALIKE
    assert found.entropy == 1.0
    assert found.warnings == ()


def test_embeddings(cells):
    _, _, found = interpreted(cells, draws=2, strategy="mam-embedding", zero_ratio=0.03)
    assert found.attention.slopes is None
    assert found.drawable_positions == pytest.approx(cells.density * cells.num_genes, rel=1e-6)
    assert found.effective_positions <= found.drawable_positions
    assert any("masking.temperature below 1" in warning for warning in found.warnings)
    assert all("mam-embedding" not in warning for warning in found.warnings)


@pytest.mark.parametrize(
    "masking", [{}, {"slope_norm": 2.0}, {"strategy": "mam-embedding", "zero_ratio": 0.0}]
)
def test_attention_is_what_the_engine_pays(cells, masking):
    _, pretraining = built(cells, **masking)
    batch = cells.batch(np.array([0, 5, 300]))
    values = expression(batch.counts, batch.depth, pretraining.transform)
    latents = pretraining.strategy.latents
    with torch.no_grad():
        attention, valid = attention_of(pretraining, values)
        tokens = values
        if latents.input_dim is not None:
            there = gather(values, values != 0)
            tokens = pretraining.model.embedding(there.gene_ids, there.values)
        for latent in (0, 7):
            engine = latents(
                tokens, valid, latents=torch.tensor([latent]), num_masked=0, seed=0
            ).importance
            torch.testing.assert_close(attention[:, latent], engine, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(attention.sum(dim=-1), torch.full((3, 12), 2.0))


def test_overlap_by_hand(cells):
    """Against the definition, pair by pair."""
    torch.manual_seed(0)
    config, pretraining = built(cells, torch.randn(12, 2))
    few = cells.subset(np.arange(3))
    found = overlap_of(pretraining, few, CPU)
    batch = few.batch(np.arange(3))
    with torch.no_grad():
        attention = (
            attention_of(pretraining, expression(batch.counts, batch.depth, config.data.transform))[
                0
            ]
            .double()
            .numpy()
        )
    cosine, correlation, jaccard = [], [], []
    size = math.ceil(0.05 * cells.num_genes)
    for cell in attention:
        tops = [set(np.argsort(-row, kind="stable")[:size]) for row in cell]
        for a in range(12):
            for b in range(a):
                cosine.append(cell[a] @ cell[b] / np.linalg.norm(cell[a]) / np.linalg.norm(cell[b]))
                correlation.append(np.corrcoef(cell[a], cell[b])[0, 1])
                jaccard.append(len(tops[a] & tops[b]) / len(tops[a] | tops[b]))
    assert found.cells == 3
    assert found.cosine == pytest.approx(np.mean(cosine), rel=1e-4)
    assert found.correlation == pytest.approx(np.mean(correlation), abs=1e-4)
    assert found.jaccard == pytest.approx(np.mean(jaccard), abs=1e-6)


def test_cells_without_genes_have_no_overlap():
    _, pretraining = built_for(5, strategy="mam-embedding", zero_ratio=0.0)
    empty = cells_of_counts(torch.zeros(3, 5))
    assert overlap_of(pretraining, empty, CPU) is None
    some = cells_of_counts(torch.tensor([[0.0] * 5, [1.0, 2.0, 0.0, 3.0, 0.0]]))
    assert overlap_of(pretraining, some, CPU).cells == 1


def test_slopes(cells):
    wanted = torch.arange(24).view(12, 2).float() - 4.5
    _, pretraining = built(cells, wanted)
    found = slopes_of(pretraining.strategy.latents)
    assert found.mean == pytest.approx(7.0)
    assert found.std == pytest.approx(float(wanted.std(correction=0)))
    assert (found.smallest, found.largest) == pytest.approx((-4.5, 18.5))
    assert found.positive == pytest.approx(19 / 24)
    assert (found.distinct, found.latents, found.heads) == (12, 12, 2)
    _, pretraining = built(cells, torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.001, 2.0]]).repeat(4, 1))
    assert slopes_of(pretraining.strategy.latents).distinct == 1


@pytest.mark.parametrize(
    "masking",
    [
        {},
        {"temperature": 0.2},
        {"zero_ratio": 0.03},
        {"strategy": "mam-embedding", "zero_ratio": 0.0},
        {"strategy": "expression"},
    ],
)
def test_entropy_is_that_of_training(cells, masking):
    config, pretraining = built(cells, **masking)
    few = cells.subset(np.arange(40))
    batch = few.batch(np.arange(40))
    values = expression(batch.counts, batch.depth, pretraining.transform)
    with torch.no_grad():
        drawn = draw_masks(pretraining, values, batch.cell_ids, Draws(1, 0, 3).steps()[0])
    found = counted(few, config, pretraining, draws=1).entropy
    share = float(masking_entropy(drawn, *pretraining.strategy.weighting()))
    assert found.share == pytest.approx(share, abs=1e-6)
    assert 1 < found.effective_positions <= found.drawable_positions * (1 + 1e-5)


@pytest.mark.parametrize("masking", [{}, {"zero_ratio": 0.03}])
def test_uniform_masks_scatter_as_uniform_draws_do(cells, masking):
    config, pretraining = built(cells, strategy="uniform", **masking)
    found = dispersion(counted(cells, config, pretraining, draws=4))
    low, high = chi2.ppf((FALSE_ALARM, 1 - FALSE_ALARM), found.genes - 1) / (found.genes - 1)
    assert low < found.chi_square < high
    assert (found.low, found.high) == pytest.approx((0.902, 1.103), abs=0.01)
    assert found.genes == cells.num_genes


def test_dispersion_by_hand(cells):
    config, pretraining = built(cells, 2.0)
    tally = counted(cells, config, pretraining, draws=3)
    found, count = dispersion(tally), tally.hidden.sum(dim=0).numpy()
    rate = math.floor(0.3 * cells.num_genes) / cells.num_genes
    variance = tally.masks * rate * (1 - rate)
    square = (count - tally.masks * rate) ** 2
    assert found.chi_square == pytest.approx((square / variance).mean(), rel=1e-4)
    assert found.chi_square > 100
    spread = math.sqrt((square - variance).mean()) / tally.masks
    assert found.spread == pytest.approx(spread, rel=1e-4)
    assert (count / tally.masks).std() == pytest.approx(found.spread, rel=0.05)


def test_nothing_hidden_has_no_dispersion(cells):
    _, _, found = interpreted(cells, draws=1, strategy="none")
    assert found.dispersion is None
    assert found.encoder.genes == pytest.approx(cells.density * cells.num_genes)
    assert (found.encoder.nonzero_read, found.encoder.invented) == (1.0, 0.0)


def test_what_the_encoder_reads(cells):
    """Of hidden positions, 10 % become a random value, whether zero or not, and 10 % stay; the
    encoder reads them only where the corruption is for both.
    """
    ratio, density = 0.3, cells.density
    shares = {}
    for corruption, view in (("all", "both"), ("80/10/10", "decoder"), ("80/10/10", "both")):
        masking = {"corruption": corruption, "corruption_view": view}
        _, _, found = interpreted(cells, draws=2, strategy="uniform", **masking)
        shares[corruption, view] = found.encoder
    behind, mixed = shares["all", "both"], shares["80/10/10", "both"]
    assert shares["80/10/10", "decoder"] == behind
    assert behind.invented == 0.0
    assert behind.nonzero_read == pytest.approx(1 - ratio, abs=0.01)
    assert behind.genes == pytest.approx(behind.nonzero_read * density * cells.num_genes, rel=1e-6)
    kept = 1 - ratio + 0.1 * ratio
    wrong = 0.1 * ratio / density  # for each non-zero gene, were every random value another one
    assert kept < mixed.nonzero_read < kept + 0.1 * ratio + 0.01
    assert mixed.invented == pytest.approx(wrong / (kept + wrong), abs=0.03)


def test_thresholds_mean_what_they_say():
    """Weights that vary by 0.11 to 0.14 of themselves have an entropy at the limit, deviations of
    0.1 a cosine there.
    """
    generator = np.random.default_rng(0)
    for positions, spread in ((700, 0.114), (20_000, 0.141)):
        shares = []
        for _ in range(20):
            weights = 1 + spread * generator.standard_normal(positions).clip(-3, 3)
            weights /= weights.sum()
            shares.append(-(weights * np.log(weights)).sum() / np.log(positions))
        assert np.mean(shares) == pytest.approx(ENTROPY_UNIFORM, abs=5e-5)
    one, other = (1 + 0.1 * generator.standard_normal(100_000) for _ in range(2))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(
        OVERLAP_ALIKE, abs=5e-4
    )


def test_no_warning_below_the_thresholds():
    assert collapse_warnings("mam", ENTROPY_UNIFORM, OVERLAP_ALIKE, 12, decayed=True) == []
    assert collapse_warnings("mam", None, None, 1, decayed=True) == []
    assert len(collapse_warnings("mam", 0.9995, 0.5, 12, decayed=True)) == 1
    for strategy in ("mam", "mam-embedding"):
        for decayed in (True, False):
            warnings = collapse_warnings(strategy, 1.0, 1.0, 12, decayed=decayed)
            assert len(warnings) == 2
            assert all(
                "\n" not in warning and ("masking_weight_decay=0" in warning) == decayed
                for warning in warnings
            )


def test_ranking_finds_a_planted_gene(cells):
    config, pretraining = built(cells, 2.0)
    table, _, _ = summary(cells, config, pretraining, counted(cells, config, pretraining))
    planted = int(np.argsort(table["mean_expression"].to_numpy())[400])
    table.loc[planted, "hidden"] += 0.3
    table["expected"] = expected_from_expression(
        table["mean_expression"].to_numpy(), table["hidden"].to_numpy()
    )
    table["beyond_expression"] = table["hidden"] - table["expected"]
    ranked = ranking(table)
    assert ranked.loc[0, "gene"] == table.loc[planted, "gene"]
    assert ranked.loc[0, "beyond_expression"] == pytest.approx(0.3, abs=0.05)
    assert ranked.loc[0, "z"] == pytest.approx(
        ranked.loc[0, "beyond_expression"] / table.loc[planted, "hidden_error"]
    )
    assert ranked["rank"].tolist() == list(range(1, cells.num_genes + 1))
    assert ranked["beyond_expression"].is_monotonic_decreasing
    assert ranked["beyond_expression"].sum() == pytest.approx(0.0, abs=1e-6)


def test_what_expression_predicts():
    rising = np.linspace(0, 4, 200) ** 2 / 4
    curved = 0.3 + 0.1 * (np.sqrt(rising) - 1) ** 2
    assert expected_from_expression(rising, curved) == pytest.approx(curved, abs=1e-6)
    assert expected_from_expression(np.zeros(5), np.arange(5.0)).tolist() == [2.0] * 5


def test_examples(cells):
    config, pretraining = built(cells, 2.0)
    found = example_masks(pretraining, cells, Draws(2, 0, 3), CPU)
    hidden = math.floor(config.masking.ratio * cells.num_genes)
    assert (
        found.values.shape
        == found.mask.shape
        == found.hidden.shape
        == found.importance.shape
        == (6, cells.num_genes)
    )
    assert (found.mask.sum(axis=1) == hidden).all()
    assert found.hidden.sum(axis=1) == pytest.approx(np.full(6, hidden), rel=1e-5)
    assert found.importance.sum(axis=1) == pytest.approx(np.ones(6), rel=1e-5)
    largest = sorted(cells.class_sizes, key=cells.class_sizes.get, reverse=True)[:6]
    assert found.cell_types.tolist() == largest
    assert set(found.cells) <= set(cells.names)
    _, uniform = built(cells, strategy="uniform")
    assert np.isnan(example_masks(uniform, cells, Draws(2, 0, 3), CPU).importance).all()


def test_typical_cells_are_of_median_depth(cells):
    first = typical_cells(cells)[0]
    of_type = cells.depth[cells.codes == cells.codes[first]]
    assert abs((of_type < cells.depth[first]).mean() - 0.5) < 0.02


def test_batches():
    assert batch_cells(765, 32, embeds=False) == 512
    assert batch_cells(20_000, 32, embeds=False) == 209
    assert batch_cells(20_000, 300, embeds=False) == 300
    assert batch_cells(20_000, 32, embeds=True) == 32
