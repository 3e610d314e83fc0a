"""The scores of arms and their differences, with intervals: read from the tables of a study, or
taken over folds where there is one run.
"""

import math

import pandas as pd

from ..evaluation.intervals import Interval, PairedDifference, interval, paired_difference
from .folder import METHODS, StudyFiles, section

DEFAULT_METHODS = ("fine-tuning", "linear-probe")  # of a folder whose settings cannot be read
METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "micro_f1": "micro-F1"}


def asked_methods(study: StudyFiles) -> list[str]:
    """The methods of evaluation that the settings name, in the order of the report."""
    names = section(study.config, "evaluation").get("methods") or DEFAULT_METHODS
    return [method for method in METHODS if method in names]


def score(study: StudyFiles, arm: str, method: str, metric: str = "macro_f1") -> Interval | None:
    """The mean of an arm over its seeds, as in summary.csv; over the folds of a single run."""
    row = _row(study.summary, arm, method, metric)
    if row is not None:
        mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
        return Interval(mean, low, high, int(row["seeds"]))
    evaluations = study.evaluations(arm, method)
    return interval(evaluations[0].values(metric)) if evaluations and not study.is_study else None


def difference(
    study: StudyFiles, arm: str, method: str, metric: str = "macro_f1"
) -> PairedDifference | None:
    """The difference of an arm to the reference, as in summary.csv."""
    row = _row(study.summary, arm, method, metric)
    if row is None or arm == study.reference or math.isnan(row["difference"]):
        return None
    both = [by_seed(study, one, method, "macro_f1") for one in (arm, study.reference)]
    seeds = len(both[0].keys() & both[1].keys()) or int(row["seeds"])
    mean, low, high = (float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    return PairedDifference(mean, low, high, float(row.get("p_value", math.nan)), seeds)


def _row(table: pd.DataFrame | None, arm: str, method: str, metric: str) -> pd.Series | None:
    if table is None:
        return None
    rows = table[(table["arm"] == arm) & (table["method"] == method) & (table["metric"] == metric)]
    return None if rows.empty or math.isnan(rows.iloc[0]["mean"]) else rows.iloc[0]


def by_seed(study: StudyFiles, arm: str | None, method: str, metric: str) -> dict[int, float]:
    """The mean over folds for each seed of an arm."""
    table = study.results
    if table is None or metric not in table.columns:
        return {}
    rows = table[(table["arm"] == arm) & (table["method"] == method)]
    return {int(seed): float(mean) for seed, mean in rows.groupby("seed")[metric].mean().items()}


def paired(
    study: StudyFiles, arm: str, other: str, method: str, metric: str
) -> PairedDifference | None:
    """The difference of two arms over the seeds that both have; None where they share none."""
    ours, theirs = by_seed(study, arm, method, metric), by_seed(study, other, method, metric)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    return paired_difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared])


def baseline_scores(study: StudyFiles, metric: str = "macro_f1") -> dict[str, Interval]:
    """The scores of plain classifiers of the data, over their folds."""
    return {name: interval(found.values(metric)) for name, found in study.baselines.items()}


def shown_arm(study: StudyFiles) -> str | None:
    """The arm that the headline is about.

    Of the arms that learn their masks it is the one with the highest macro-F1, under fine-tuning
    where there is any. Without such an arm, it is one of those that are pretrained and not the
    reference.
    """
    others = [arm for arm in study.arms if arm != study.reference]
    learned = [arm for arm in others if study.is_learned(arm)]
    pretrained = [arm for arm in others if study.strategy(arm) != "none"]
    for arms in (learned, pretrained):
        for method in METHODS:
            scores = {arm: found.mean for arm in arms if (found := score(study, arm, method))}
            if scores:
                return max(scores, key=scores.__getitem__)
    return next(iter(learned or pretrained or others), None)


def candidates(study: StudyFiles, arm: str) -> int:
    """How many arms the shown one was the best of."""
    others = [other for other in study.arms if study.is_learned(other) == study.is_learned(arm)]
    return sum(study.strategy(other) != "none" for other in others if other != study.reference)
