"""The scores of arms and their differences, with intervals: read from the tables of a study, or
taken over folds where there is one run.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.intervals import interval, paired_difference
from .folder import METHODS, StudyFiles, section

Over = Literal["seed", "fold", "bootstrap"]
Verdict = Literal["ahead", "behind", "not shown", "one seed"]
DEFAULT_METHODS = ("fine-tuning", "linear-probe")  # of a folder whose settings cannot be read
METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "micro_f1": "micro-F1"}


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval; shares of 1. `over` says what was averaged."""

    mean: float
    low: float
    high: float
    number: int
    over: Over = "seed"

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclass(frozen=True)
class Difference(Score):
    """By how much an arm is above another, paired by seed."""

    p_value: float = math.nan

    def reversed(self) -> "Difference":
        """By how much the other arm is above this one."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def verdict(self) -> Verdict:
        """The verdict by the interval: none for one seed, no difference where it holds 0."""
        if not self.has_interval:
            return "one seed"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "not shown"


def asked_methods(study: StudyFiles) -> list[str]:
    """The methods of evaluation that the settings name, in the order of the report."""
    names = section(study.config, "evaluation").get("methods") or DEFAULT_METHODS
    return [method for method in METHODS if method in names]


def score(study: StudyFiles, arm: str, method: str, metric: str = "macro_f1") -> Score | None:
    """The mean of an arm over its seeds, as in summary.csv; over the folds of a single run."""
    row = _row(study.summary, arm, method, metric)
    if row is not None:
        return Score(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["seeds"]))
    evaluations = study.evaluations(arm, method)
    return over_folds(evaluations[0], metric) if not study.is_study and evaluations else None


def difference(
    study: StudyFiles, arm: str, method: str, metric: str = "macro_f1"
) -> Difference | None:
    """The difference of an arm to the reference, as in summary.csv."""
    row = _row(study.summary, arm, method, metric)
    if row is None or arm == study.reference or math.isnan(row["difference"]):
        return None
    both = [by_seed(study, one, method, "macro_f1") for one in (arm, study.reference)]
    seeds = len(both[0].keys() & both[1].keys()) or int(row["seeds"])
    mean, low, high = (float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    return Difference(mean, low, high, seeds, p_value=float(row.get("p_value", math.nan)))


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


def paired(study: StudyFiles, arm: str, other: str, method: str, metric: str) -> Difference | None:
    """The difference of two arms over the seeds that both have; None where they share none."""
    ours, theirs = by_seed(study, arm, method, metric), by_seed(study, other, method, metric)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    found = paired_difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
    return Difference(found.mean, found.low, found.high, found.n, p_value=found.p_value)


def over_folds(evaluation: Evaluation, metric: str = "macro_f1") -> Score:
    """The mean over the folds of one evaluation, with the interval over these folds."""
    found = interval(evaluation.values(metric))
    published = evaluation.settings.get("protocol") == "published"
    over: Over = "bootstrap" if published else "fold"
    return Score(found.mean, found.low, found.high, found.n, over)


def baseline_scores(study: StudyFiles, metric: str = "macro_f1") -> dict[str, Score]:
    """The scores of plain classifiers of the data."""
    return {name: over_folds(found, metric) for name, found in study.baselines.items()}


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
    alike = [
        other
        for other in study.arms
        if other != study.reference and study.is_learned(other) == study.is_learned(arm)
    ]
    return sum(study.strategy(other) != "none" for other in alike)
