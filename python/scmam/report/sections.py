"""Values of each section of the page for the templates; None where the folder holds none. Sentences
that never change are in the templates.
"""

import math
import shlex
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from ..interpretation import figures
from . import maps as cell_maps
from .findings import (
    METHOD_NAMES,
    against_reference,
    findings,
    headline,
    hidden_headline,
    masking_share,
)
from .folder import METHODS, StudyFiles, number
from .formatting import amount, listed
from .palette import Styles
from .score_figures import confusion_figure, confusion_of, differences_figure, scores_figure
from .scores import (
    METRICS,
    asked_methods,
    baseline_scores,
    candidates,
    difference,
    score,
    shown_arm,
)
from .training_figures import loss_figures

Content = dict[str, Any] | None

FEW_ARMS = 4
"""Up to so many arms, the genes of all are shown; of more, those with fixed masks fold away."""

SHOWN_ROWS = 12
"""Genes, or gene sets, of a table."""

ENRICHED = {
    "enrichment": "hidden most",
    "enrichment_beyond_expression": "hidden most beyond their expression",
}
"""Tables of gene sets, and the genes that each is about."""

UNFINISHED = {
    "failed": "Some of the runs failed; the same command tries them again.",
    "interrupted": "It was interrupted: this is what is there so far.",
    "running": "It was still running, or was killed: this is what is there so far.",
}


def opening(study: StudyFiles) -> dict[str, Any]:
    """Title, one line on what was run on what, what was hidden, and the result."""
    facts, sizes = study.cells, (("num_cells", "cell"), ("num_genes", "gene"))
    size = [amount(facts[key], word) for key, word in sizes if isinstance(facts.get(key), int)]
    arms, seeds = amount(len(study.arms), "arm"), amount(len(study.seeds), "seed")
    parts = [
        " × ".join(size),
        amount(len(study.class_sizes), "cell type") if study.class_sizes else "",
        f"{arms}, {seeds}" if study.is_study else f"seed {study.runs[0].seed}",
        amount(study.num_folds, study.tested_on) if study.num_folds else "not evaluated",
        str(study.record.get("date") or "").partition("T")[0],
    ]
    of_a_run = f"Pretraining with {study.arms[0]} masks"
    first = "Masked pretraining compared" if study.is_study else of_a_run
    return {
        "title": f"{first} on {study.source_name}",
        "lead": " · ".join(part for part in parts if part),
        "hidden": hidden_headline(study),
        "verdict": headline(study),
    }


def notes(study: StudyFiles) -> list[str]:
    """Problems: unfinished and failed runs, files that cannot be read."""
    told = []
    status = str(study.record.get("status", "unknown"))
    if status != "done":
        unknown = f"Its status is {status}: this is what is there so far."
        told.append(UNFINISHED.get(status, unknown))
    failures = (one for one in study.record.get("failures") or () if isinstance(one, dict))
    told += [f"{failure.get('task')} failed: {failure.get('message')}" for failure in failures]
    for arm in study.arms if study.is_study else ():
        done = {run.seed for run in study.of(arm) if run.status == "done"}
        if missing := [str(seed) for seed in study.wanted_seeds if seed not in done]:
            word = "seed" if len(missing) == 1 else "seeds"
            told.append(f"{arm}: not finished for {word} {listed(missing)}.")
    if study.is_study and study.reference is None:
        told.append("The reference arm is not among the arms: no differences are shown.")
    if study.is_study and study.summary is None:
        advice = "run scmam report on the folder, which writes it"
        told.append(f"summary.csv is missing: scores are not compared; {advice}.")
    told += [
        f"{METHOD_NAMES[found.method].capitalize()}: {found}."
        for found in study.backbones
        if not found.is_worth
    ]
    return told + study.reader.problems


def found(study: StudyFiles) -> dict[str, Any]:
    """The result in cards and sentences, warnings on the masks, and how to read them."""
    arm = shown_arm(study) or study.arms[0]
    scores = {method: score(study, arm, method) for method in METHODS}
    slowest, share = masking_share(study)
    masking = (slowest, share, *(study.mean(slowest, name) for name in ("masking_ms", "step_ms")))
    seconds = [run.number("seconds") for run in study.runs if run.number("steps") > 0]
    seconds = [value for value in seconds if not math.isnan(value)]
    compared = [one for one in study.arms if one != study.reference]
    return {
        "arm": arm,
        "differences": against_reference(study),
        "best_of": candidates(study, arm),
        "scores": {method: one for method, one in scores.items() if one},
        "masking": None if math.isnan(share) else masking,
        "seconds": number(study.record.get("seconds")),
        "run_seconds": fmean(seconds) if seconds else math.nan,
        "sentences": findings(study),
        "warnings": _collapse_warnings(study),
        "uncorrected": len(compared) if len(compared) > 2 else 0,
    }


def _collapse_warnings(study: StudyFiles) -> dict[str, list[str]]:
    """Warnings of the interpretation, each once, with the arms that it concerns."""
    arms_of: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for warning in run.latents.get("warnings") or ():
            arms_of.setdefault(str(warning), {})[run.arm] = None
    return {warning: list(arms) for warning, arms in arms_of.items()}


def comparison(study: StudyFiles, styles: Styles) -> Content:
    """Scores of all arms with intervals and differences to the reference, a method after the other.

    Of accuracy and micro-F1, which are the same where every cell has one type, one is left out
    there: the published protocol names micro-F1.
    """
    methods = []
    for method in study.methods:
        table = {
            arm: {metric: score(study, arm, method, metric) for metric in METRICS}
            for arm in study.arms
        }
        table = {arm: scores for arm, scores in table.items() if any(scores.values())}
        if not table:
            continue
        left_out = "accuracy" if study.is_published else "micro_f1"
        metrics = [name for name in METRICS if name != left_out or _micro_differs(table)]
        drawn = [draw(study, styles, method) for draw in (scores_figure, differences_figure)]
        methods.append(
            {
                "method": method,
                "metrics": metrics,
                "scores": table,
                "differences": {
                    arm: {metric: difference(study, arm, method, metric) for metric in metrics}
                    for arm in table
                },
                "figures": [one for one in drawn if one and study.is_study],
            }
        )
    baselines = {metric: baseline_scores(study, metric) for metric in METRICS}
    absent = [method for method in asked_methods(study) if method not in study.methods]
    return {"methods": methods, "absent": absent, "baselines": baselines} if methods else None


def _micro_differs(table: dict[str, dict[str, Any]]) -> bool:
    pairs = [(scores["micro_f1"], scores["accuracy"]) for scores in table.values()]
    return any(abs(one.mean - other.mean) > 1e-6 for one, other in pairs if one and other)


def types(study: StudyFiles) -> Content:
    """F1 of each cell type, and confusion matrices, a method after the other."""
    methods = []
    for method in study.methods:
        found = {arm: study.evaluations(arm, method) for arm in study.arms}
        scores = {arm: class_scores(folds) for arm, folds in found.items() if folds}
        if not scores:
            continue
        shown, sizes = shown_arm(study) or study.arms[0], study.class_sizes
        both = (shown, study.reference or shown)
        names = {name for one in scores.values() for name in one}
        drawn = {f"{arm}, {METHOD_NAMES[method]}": found.get(arm) for arm in reversed(both)}
        methods.append(
            {
                "method": method,
                "scores": scores,
                "names": sorted(names, key=lambda name: (-sizes.get(name, 0), name)),
                "compared": both if len(scores.keys() & set(both)) == 2 else None,
                "confusions": {
                    title: confusion_figure(title, *confusion_of(folds))
                    for title, folds in drawn.items()
                    if folds
                },
            }
        )
    return {"methods": methods} if methods else None


def class_scores(evaluations: list[Any]) -> dict[str, float]:
    """F1 of each class, the mean over folds and seeds."""
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for fold in evaluation.folds:
            for name, value in zip(evaluation.classes, fold.per_class_f1, strict=True):
                values.setdefault(name, []).append(value)
    return {name: fmean(found) for name, found in values.items()}


def training(study: StudyFiles, styles: Styles) -> Content:
    """Losses over the steps."""
    drawn = loss_figures(study, styles)
    return {"figures": drawn} if drawn else None


def genes(study: StudyFiles, styles: Styles) -> Content:
    """Which genes are hidden: of the first seed of each arm that was interpreted."""
    tables = {arm: study.first(arm, "table", "frequencies") for arm in study.arms}
    tables = {arm: table for arm, table in tables.items() if table is not None}
    if not tables:
        return None
    # The arm whose genes are told one by one: the shown one, or another whose masks are learned.
    wanted = [shown_arm(study), *(arm for arm in tables if study.is_learned(arm)), *tables]
    told = next(arm for arm in wanted if arm in tables)
    top = max(map(figures.highest, tables.values()))
    drawn = {}
    for arm, table in tables.items():
        masks, colour = study.first_latents(arm).get("masks"), styles[arm].colour
        drawn[arm] = figures.hidden_by_expression(arm, table, masks, colour=colour, top=top)
    of_interest = {arm for arm in drawn if arm in (told, study.reference) or study.is_learned(arm)}
    kept = set(drawn) if len(drawn) <= FEW_ARMS else of_interest
    return {
        "arm": told,
        "ahead": [drawn[arm] for arm in drawn if arm in kept],
        "others": [drawn[arm] for arm in drawn if arm not in kept],
        **_genes_of(study, styles, told),
    }


def _genes_of(study: StudyFiles, styles: Styles, arm: str) -> dict[str, Any]:
    """Mask pictures, the genes that stand out, and gene sets, of one arm."""
    by_type, draws = study.first(arm, "table", "frequencies_by_type"), None
    masks, ranking = study.first(arm, "arrays", "masks"), study.first(arm, "table", "ranking")
    types, rows, chance = [], [], None
    if by_type is not None and "cells" in by_type.columns:
        draws = study.first_latents(arm).get("draws")
        colour = styles[arm].colour
        types = [
            figures.hidden_by_type(arm, by_type, draws, colour=colour),
            figures.specific_genes(arm, by_type, draws),
        ]
    if masks is not None and int(masks.get("draws", 0)) > 0:
        rate, number_of_draws = float(masks["hidden"].mean()), int(masks["draws"])
        chance = rate, number_of_draws, math.sqrt(rate * (1 - rate) / number_of_draws)
    if ranking is not None:
        rows = ranking.nlargest(SHOWN_ROWS, "beyond_expression").to_dict("records")
    sets = {
        title: _gene_sets(table)
        for name, title in ENRICHED.items()
        if (table := study.first(arm, "table", name)) is not None
    }
    return {
        "types": types,
        "masks": None if masks is None else figures.masks(arm, masks),
        "chance": chance,
        "ranking": rows,
        "num_ranked": 0 if ranking is None else len(ranking),
        "sets": sets,
    }


def _gene_sets(table: Any) -> dict[str, Any]:
    significant = int((table["adjusted_p_value"] < 0.05).sum())
    rows = table.nsmallest(SHOWN_ROWS, "p_value").to_dict("records")
    return {"rows": rows, "significant": significant, "number": len(table)}


def maps(study: StudyFiles, projection: cell_maps.Projection) -> Content:
    """The cells by the encoder of the untrained, the reference and the shown arm, side by side."""
    arms = (study.untrained, study.reference, shown_arm(study) or study.arms[0])
    found = {arm: study.first(arm, "arrays", "embedding") for arm in dict.fromkeys(arms) if arm}
    found = {arm: arrays for arm, arrays in found.items() if arrays is not None}
    if not found:
        return None
    drawn = []
    for arm, arrays in found.items():
        rows, classes = cell_maps.shown_cells(len(arrays["features"])), arrays["classes"].tolist()
        places = cell_maps.project(arrays["features"][rows], projection)
        drawn.append(cell_maps.map_figure(arm, places, arrays["codes"][rows], classes, projection))
    codes = arrays["codes"]
    sizes = np.bincount(codes[codes >= 0], minlength=len(classes)).tolist()
    return {
        "figures": drawn,
        "classes": list(zip(map(str, classes), sizes, strict=True)),
        "projection": projection,
        "shown": len(rows),
        "number": len(codes),
    }


def times(study: StudyFiles) -> Content:
    """The arms that take steps, whose times are known."""
    timed = [arm for arm in study.arms if not math.isnan(study.mean(arm, "step_ms"))]
    return {"arms": timed} if timed else None


def again(study: StudyFiles) -> dict[str, Any]:
    """Commands, configuration, machine and versions."""
    arms = {arm: study.masking(arm) for arm in study.arms if study.is_study and study.masking(arm)}
    run = next((run.record for run in study.runs if run.record), {})
    versions = study.record.get("versions") or run.get("versions")
    return {
        "folder": shlex.quote(study.folder.resolve().name),
        "config": _as_yaml(study.config),
        "arms": _as_yaml(arms),
        "run": run,
        "versions": versions if isinstance(versions, dict) else {},
    }


def _as_yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else ""
