"""Tables of the report: what the arms are, how they compare, cell types, times, and what was run
where.
"""

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .drawing import Palette
from .facts import class_sizes, first, mean_of, wanted_seeds
from .findings import METHOD_NAMES, VERDICTS
from .formatting import (
    MINUS,
    NOTHING,
    amount,
    count,
    duration,
    milliseconds,
    percent,
    points,
    shortened,
    signed_points,
)
from .markup import Markup, element, table, text
from .material import Material
from .score_figures import shade
from .scores import METRICS, Difference, Score, difference, over_folds, score, shown_arm

if TYPE_CHECKING:
    import pandas as pd

    from ..evaluation import Evaluation

TONES = {"ahead": "up", "behind": "down", "not shown": "flat", "one seed": "flat"}


def arms_table(material: Material, palette: Palette) -> Markup:
    """What each arm hides, what it injects, and how many of its runs are done."""
    rows = []
    for arm in material.arms:
        runs = material.of(arm)
        done = sum(run.status == "done" for run in runs)
        rows.append(
            (
                palette.label(arm),
                described(material, arm),
                f"{done} of {max(len(runs), len(wanted_seeds(material)))}",
            )
        )
    return table(
        ("arm", "what is hidden, and what else differs", "runs done"),
        rows,
        caption="The arms",
        words=2,
    )


def described(material: Material, arm: str) -> str:
    """The masking settings of an arm in words."""
    masking = material.masking(arm)
    if not masking:
        return "no run of it has started"
    parts = [_strategy_text(masking)]
    if masking.get("strategy") == "none":
        return parts[0]
    parts.append(
        {"all": "mask token everywhere"}.get(
            str(masking.get("corruption")), f"corruption {masking.get('corruption')}"
        )
    )
    if masking.get("injection", "none") != "none":
        hidden = "" if masking.get("context_from") != "visible" else ", without the hidden values"
        parts.append(f"context injected into {_injected(masking['injection'])}{hidden}")
    if masking.get("temperature", 1.0) != 1.0:
        parts.append(f"temperature {masking['temperature']:g}")
    if masking.get("slope_norm") is not None:
        parts.append(f"slopes of norm {masking['slope_norm']:g}")
    return "; ".join(parts)


def _injected(scheme: str) -> str:
    return {"both": "encoder and decoder", "separate": "encoder and decoder, an adapter each"}.get(
        scheme, f"the {scheme}"
    )


def _strategy_text(masking: dict[str, Any]) -> str:
    strategy, ratio, zeros = (
        masking.get("strategy"),
        masking.get("ratio"),
        masking.get("zero_ratio"),
    )
    if strategy == "none":
        return "no pretraining: the encoder as initialised"
    if strategy == "matched":
        return (
            f"uniform, at the hidden shares of zeros and non-zeros of {masking.get('matched_to')}"
        )
    what = {
        "uniform": "uniform",
        "expression": "in proportion to expression",
        "mam": "learned, by the latents' attention to values",
        "mam-embedding": "learned, by the latents' attention to gene and value embeddings",
    }.get(str(strategy), str(strategy))
    if zeros is None:
        return f"{what}; {percent(ratio, 0)} of all genes"
    return f"{what}; {percent(ratio, 0)} of the non-zeros, {percent(zeros, 0) if zeros else 'none'} of the zeros"


def comparison_table(material: Material, palette: Palette, method: str) -> Markup | None:
    """Scores of all arms by one method, with intervals, differences to the reference and what these
    allow to say.
    """
    metrics = _shown_metrics(material, method)
    arms = [
        arm
        for arm in material.arms
        if any(score(material, arm, method, metric) for metric in metrics)
    ]
    if not arms:
        return None
    headings: list[object] = ["arm"]
    for metric in metrics:
        headings += (
            [METRICS[metric], f"less {material.reference}"]
            if material.reference
            else [METRICS[metric]]
        )
    headings += (
        [
            element(
                "abbr",
                "p",
                title="of the paired t test on macro-F1, not corrected for the number of arms",
            )
        ]
        if material.reference
        else []
    )
    rows = [_arm_row(material, palette, arm, method, metrics) for arm in arms] + _baseline_rows(
        material, metrics
    )
    over = "the folds" if not material.is_study else "the seeds"
    return table(
        headings,
        rows,
        caption=f"{METHOD_NAMES[method].capitalize()}: mean and 95 % interval over {over}, points",
        class_="scores",
    )


def _shown_metrics(material: Material, method: str) -> tuple[str, ...]:
    """Micro-F1 is left out where it is the accuracy, as it is where every cell has one type."""
    micro_differs = any(
        (micro := score(material, arm, method, "micro_f1"))
        and (accuracy := score(material, arm, method, "accuracy"))
        and abs(micro.mean - accuracy.mean) > 1e-6
        for arm in material.arms
    )
    return ("macro_f1", "accuracy", "micro_f1") if micro_differs else ("macro_f1", "accuracy")


def _arm_row(
    material: Material, palette: Palette, arm: str, method: str, metrics: tuple[str, ...]
) -> list[object]:
    found = score(material, arm, method, metrics[0])
    seeds = element("small", amount(found.number, found.over)) if found else ""
    row: list[object] = [element("span", palette.label(arm), Markup(" "), seeds)]
    for metric in metrics:
        row.append(score_cell(score(material, arm, method, metric)))
        if material.reference:
            row.append(
                "reference"
                if arm == material.reference
                else difference_cell(difference(material, arm, method, metric))
            )
    if material.reference:
        of_macro = difference(material, arm, method, "macro_f1")
        row.append(_p_value(of_macro) if of_macro else "")
    return row


def _baseline_rows(material: Material, metrics: tuple[str, ...]) -> list[list[object]]:
    rows = []
    for name, evaluation in material.baselines.items():
        folds = len(evaluation.folds)
        row: list[object] = [
            element(
                "span",
                name,
                Markup(" "),
                element("small", f"baseline, {amount(folds, 'fold')}"),
                class_="baseline",
            )
        ]
        for metric in metrics:
            found = over_folds(evaluation, metric)
            row.append(points(found.mean))
            row += [""] if material.reference else []
        rows.append([*row, ""] if material.reference else row)
    return rows


def score_cell(found: Score | None) -> Markup:
    if found is None:
        return text(NOTHING)
    spread = element(
        "small",
        f"{points(found.low)} to {points(found.high)}" if found.has_interval else "no interval",
    )
    return Markup(f"<b>{points(found.mean)}</b>{spread}")


def difference_cell(found: Difference | None) -> Markup:
    if found is None:
        return text(NOTHING)
    spread = (
        element("small", f"{signed_points(found.low)} to {signed_points(found.high)}")
        if found.has_interval
        else ""
    )
    verdict = element("small", VERDICTS[found.verdict], class_=f"verdict {TONES[found.verdict]}")
    return Markup(f"<b>{signed_points(found.mean)}</b>{spread}{verdict}")


def _p_value(found: Difference) -> str:
    if math.isnan(found.p_value):
        return NOTHING
    return "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"


def class_scores(evaluations: "list[Evaluation]") -> dict[str, float]:
    """F1 of each class, the mean over folds and seeds."""
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for fold in evaluation.folds:
            for name, value in zip(evaluation.classes, fold.per_class_f1, strict=True):
                values.setdefault(name, []).append(value)
    return {name: fmean(found) for name, found in values.items()}


def classes_table(material: Material, palette: Palette, method: str) -> Markup | None:
    """F1 of each cell type by arm, as a heat map with numbers, largest type first."""
    scores: dict[str, dict[str, float]] = {}
    for arm in material.arms:
        if evaluations := material.evaluations(arm, method):
            scores[arm] = class_scores(evaluations)
    if not scores:
        return None
    sizes, shown, reference = class_sizes(material), shown_arm(material), material.reference
    compared = shown in scores and reference in scores
    names = sorted(
        {name for found in scores.values() for name in found},
        key=lambda name: (-sizes.get(name, 0), name),
    )
    rows = []
    for name in names:
        row: list[object] = [name, count(sizes.get(name))]
        row += [_shaded(found.get(name, math.nan)) for found in scores.values()]
        row += (
            [
                signed_points(
                    scores[shown].get(name, math.nan) - scores[reference].get(name, math.nan), 1
                )
            ]
            if compared
            else []
        )
        rows.append(row)
    headings = [
        "cell type",
        "cells",
        *(palette.label(arm) for arm in scores),
        *([f"{shown} less {reference}"] if compared else []),
    ]
    caption = f"{METHOD_NAMES[method].capitalize()}: F1 of each cell type, mean over folds and seeds, points"
    return table(headings, rows, caption=caption, class_="heat")


def _shaded(share: float) -> Markup:
    return element("td", points(share), style=shade(share) or None)


TIMES = (
    ("step_ms", "step, ms", milliseconds),
    ("masking_ms", "masking, ms", milliseconds),
    ("masking_share", "masking's share", percent),
    ("loader_ms", "waiting for cells, ms", milliseconds),
    ("cells_per_second", "cells / s", count),
    ("seconds", "a run", duration),
)


def timing_table(material: Material, palette: Palette) -> Markup | None:
    """Times of a step by arm, means over the runs; arms that take no step have none."""
    rows = []
    for arm in material.arms:
        means = {name: mean_of(material.of(arm), name) for name, _, _ in TIMES}
        if not math.isnan(means["step_ms"]):
            steps = mean_of(material.of(arm), "steps")
            rows.append(
                [
                    palette.label(arm),
                    count(steps),
                    *(write(means[name]) for name, _, write in TIMES),
                ]
            )
    if not rows:
        return None
    return table(
        ["arm", "steps", *(heading for _, heading, _ in TIMES)],
        rows,
        caption="Pretraining times, mean over the runs of an arm",
    )


def masks_table(material: Material, palette: Palette) -> Markup | None:
    """The interpretation of each arm in numbers: its first seed that has one."""
    rows = []
    for arm in material.arms:
        if (found := first(material.of(arm), "latents")) is not None:
            attention = found.get("attention") or {}
            overlap = attention.get("overlap") or {}
            numbers = [_plain(found.get(name), 4) for name in ("entropy",)] + [
                _positions(found),
                _plain(found.get("spearman"), 2),
            ]
            shares = [
                percent(found.get(name)) for name in ("hidden", "hidden_nonzero", "hidden_zero")
            ]
            rows.append([palette.label(arm), *shares, *numbers, _plain(overlap.get("cosine"), 3)])
    if not rows:
        return None
    headings = [
        "arm",
        "hidden",
        "of non-zeros",
        "of zeros",
        "entropy",
        "effective positions",
        "rank correlation with expression",
    ]
    return table(
        [*headings, "latents' overlap"], rows, caption="After training, one seed of each arm"
    )


def _plain(value: object, digits: int) -> str:
    return (
        f"{value:.{digits}f}".replace("-", MINUS)
        if isinstance(value, int | float) and not math.isnan(value)
        else NOTHING
    )


def _positions(latents: dict[str, Any]) -> str:
    effective, drawable = latents.get("effective_positions"), latents.get("drawable_positions")
    return (
        f"{count(effective)} of {count(drawable)}"
        if effective is not None and drawable is not None
        else NOTHING
    )


def genes_table(arm: str, ranking: "pd.DataFrame", number: int = 12) -> Markup:
    """The genes that are hidden most beyond what their mean expression predicts."""
    rows = [
        [
            shortened(str(row["gene"]), 30),
            f"{row['mean_expression']:.3g}",
            percent(row["hidden"]),
            percent(row["expected"]),
            signed_points(row["beyond_expression"]),
            _plain(row["z"], 1),
        ]
        for _, row in ranking.nlargest(number, "beyond_expression").iterrows()
    ]
    headings = [
        "gene",
        "mean expression",
        "hidden",
        "expected from expression",
        "beyond, points",
        "z",
    ]
    return table(
        headings,
        rows,
        caption=f"{arm}: genes hidden most, beyond what their mean expression predicts",
    )


def enrichment_table(arm: str, enrichment: "pd.DataFrame", which: str, number: int = 12) -> Markup:
    """The gene sets with the smallest p values among the genes that are hidden most, in one way or
    another (`which`).
    """
    rows = [
        [
            shortened(str(row["term"]), 60),
            shortened(str(row["genes"]).replace(";", ", "), 90)
            if isinstance(row["genes"], str)
            else "",
            f"{row['overlap']} of {row['set_size']}",
            f"{row['adjusted_p_value']:.2g}",
        ]
        for _, row in enrichment.nsmallest(number, "p_value").iterrows()
    ]
    found = int((enrichment["adjusted_p_value"] < 0.05).sum())
    caption = f"{arm}: gene sets among the genes {which}; {found} of {len(enrichment)} have an adjusted p below 0.05"
    return table(
        ["gene set", "its genes among them", "number", "adjusted p"], rows, caption=caption, words=2
    )


def facts_table(facts: dict[str, object], caption: str, *, titled: bool = True) -> Markup:
    """Named values, a row each; empty ones left out."""
    rows = [(name, value) for name, value in facts.items() if value not in ("", None, NOTHING)]
    return table(
        (element("span", "", class_="sr"), ""),
        rows,
        caption=caption,
        words=2,
        class_="facts",
        titled=titled,
    )
