"""The comparison of a study, against numbers computed by hand."""

import math

import pytest

pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

import pandas
from scmam.config import Config, validated
from scmam.study.folder import Study
from scmam.study.statistics import SUMMARY_COLUMNS, summary_of
from scmam.study.table import summary_text

# Quantiles of Student's t with so many degrees of freedom, from a table.
T_975 = {
    1: 12.706204736432095,
    2: 4.302652729911275,
}


def scores(arm, seed, *folds, method="linear-probe"):
    """Rows whose three metrics are the score, half of it and a quarter of it."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "fold": fold,
            "method": method,
            "accuracy": x,
            "macro_f1": x / 2,
            "micro_f1": x / 4,
        }
        for fold, x in enumerate(folds)
    ]


def frame(*rows):
    return pandas.DataFrame([row for group in rows for row in group]).astype({"seed": "Int64"})


def row_of(table, arm, metric="accuracy", method="linear-probe"):
    found = table[(table.arm == arm) & (table.metric == metric) & (table.method == method)]
    assert len(found) == 1
    return found.iloc[0]


THREE_SEEDS = frame(
    # Means over folds: uniform .5, .6, .7; mam .6, .6, .9. Differences .1, .0, .2: mean .1,
    # standard deviation .1.
    scores("uniform", 0, 0.4, 0.6),
    scores("uniform", 1, 0.5, 0.7),
    scores("uniform", 2, 0.6, 0.8),
    scores("mam", 0, 0.6, 0.6),
    scores("mam", 1, 0.5, 0.7),
    scores("mam", 2, 0.8, 1.0),
)


def test_means_over_folds_first_then_an_interval_over_seeds():
    table = summary_of(THREE_SEEDS, "uniform")
    assert tuple(table.columns) == SUMMARY_COLUMNS
    uniform = row_of(table, "uniform")
    half = T_975[2] * 0.1 / math.sqrt(3)
    assert (uniform["mean"], uniform.low, uniform.high) == pytest.approx(
        (0.6, 0.6 - half, 0.6 + half)
    )
    assert uniform.seeds == 3
    assert row_of(table, "uniform", "macro_f1")["mean"] == pytest.approx(0.3)
    assert row_of(table, "uniform", "micro_f1").high == pytest.approx((0.6 + half) / 4)


def test_differences_are_paired_by_seed():
    mam = row_of(summary_of(THREE_SEEDS, "uniform"), "mam")
    half = T_975[2] * 0.1 / math.sqrt(3)
    assert (mam.difference, mam.difference_low, mam.difference_high) == pytest.approx(
        (0.1, 0.1 - half, 0.1 + half)
    )
    t = 0.1 / (0.1 / math.sqrt(3))
    # two-sided p of Student's t with two degrees of freedom.
    assert mam.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_the_reference_is_not_compared_with_itself():
    uniform = row_of(summary_of(THREE_SEEDS, "uniform"), "uniform")
    assert uniform[["difference", "difference_low", "difference_high", "p_value"]].isna().all()


def test_only_seeds_that_both_have_are_paired():
    results = frame(
        scores("uniform", 1, 0.5),
        scores("uniform", 2, 0.6),
        scores("mam", 0, 0.1),
        scores("mam", 1, 0.6),
        scores("mam", 2, 0.9),
    )
    mam = row_of(summary_of(results, "uniform"), "mam")
    half = T_975[1] * math.sqrt(0.02) / math.sqrt(2)  # differences .1 and .3
    assert mam.seeds == 3
    assert (mam.difference, mam.difference_low, mam.difference_high) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half)
    )


def test_methods_are_kept_apart():
    results = frame(
        scores("uniform", 0, 0.5),
        scores("mam", 0, 0.6),
        scores("mam", 0, 0.8, method="fine-tuning"),
    )
    table = summary_of(results, "uniform")
    assert row_of(table, "mam").difference == pytest.approx(0.1)
    assert math.isnan(row_of(table, "mam", method="fine-tuning").difference)


def test_one_seed_has_no_interval_and_no_p_value():
    mam = row_of(
        summary_of(frame(scores("uniform", 0, 0.5), scores("mam", 0, 0.6)), "uniform"), "mam"
    )
    assert mam["mean"] == pytest.approx(0.6)
    assert mam.difference == pytest.approx(0.1)
    assert mam[["low", "high", "difference_low", "difference_high", "p_value"]].isna().all()


def test_an_arm_that_scores_as_the_reference_does():
    results = frame(*(scores(arm, seed, 0.5) for arm in ("uniform", "mam") for seed in (0, 1)))
    mam = row_of(summary_of(results, "uniform"), "mam")
    assert (mam.difference, mam.difference_low, mam.difference_high, mam.p_value) == (0, 0, 0, 1)


def test_a_baseline_has_scores_and_nothing_over_seeds():
    table = summary_of(
        frame(scores("uniform", 0, 0.5), scores("pca", None, 0.6, 0.8, method="pca")), "uniform"
    )
    pca = row_of(table, "pca", method="pca")
    assert pca["mean"] == pytest.approx(0.7)
    assert pca.seeds == 0
    assert pca[["low", "high", "difference"]].isna().all()


@pytest.fixture
def written(tmp_path):
    """A study whose summary is that of some results; nothing else is in its folder."""

    def write(results, **study):
        config = validated(
            {"study": {"arms": ["none", "uniform", "mam"], "baselines": ["pca"], **study}}
        )
        summary_of(results, config.study.reference).to_csv(tmp_path / "summary.csv", index=False)
        cells = {"num_cells": 700, "num_genes": 765, "classes": {"a": 300, "b": 400}}
        return Study(tmp_path, config, {"cells": cells})

    return write


def test_the_table_for_a_terminal(written):
    baseline = frame(scores("pca", None, 0.6, 0.8, method="pca"))
    text = summary_text(written(pandas.concat([THREE_SEEDS, baseline])))
    assert text.splitlines() == [
        "700 cells, 765 genes, 2 cell types; 3 seeds, 5 folds",
        "per cent; ± and [ ]: 95 % Student-t intervals over seeds",
        "",
        "linear-probe     accuracy     macro-F1 macro-F1 minus uniform's       p",
        "uniform       60.0 ± 24.8  30.0 ± 12.4                        -       -",
        "mam           70.0 ± 43.0  35.0 ± 21.5       +5.0 [-7.4, +17.4]   0.225",
        "",
        "on the data itself     accuracy     macro-F1",
        "pca                        70.0         35.0",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_one_seed_shows_dashes_and_never_a_zero_interval(written):
    text = summary_text(written(frame(scores("uniform", 0, 0.5), scores("mam", 0, 0.6))))
    assert "1 seed, 5 folds" in text
    assert "one seed gives no interval" in text
    assert "mam              60.0 ± -     30.0 ± -                 +5.0 [-]       -" in text
    assert "± 0" not in text


def test_seeds_that_differ_between_arms_are_said(written):
    text = summary_text(
        written(frame(scores("uniform", 0, 0.5), scores("mam", 0, 0.6), scores("mam", 1, 0.7)))
    )
    assert "1 to 2 seeds" in text


def test_the_defaults_name_arms_that_exist():
    pytest.importorskip("torch")
    from scmam.study.arms import ARMS

    assert set(Config().study.arms) <= set(ARMS)
