"""The scores of arms and their differences, with intervals: read from the tables of a study, or
taken over folds where there is one run.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .material import METHODS, Material

if TYPE_CHECKING:
    import pandas as pd

    from ..evaluation import Evaluation

Verdict = Literal["ahead", "behind", "not shown", "one seed"]
METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "micro_f1": "micro-F1"}


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval; shares of 1. `over` says what was averaged: seeds or folds."""

    mean: float
    low: float
    high: float
    number: int
    over: Literal["seed", "fold"] = "seed"

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclass(frozen=True)
class Difference(Score):
    """What an arm has more than another, paired by seed."""

    p_value: float = math.nan

    def reversed(self) -> "Difference":
        """What the other arm has more."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say: nothing from one seed, and no difference where it covers
        0.
        """
        if not self.has_interval:
            return "one seed"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "not shown"


def score(material: Material, arm: str, method: str, metric: str) -> Score | None:
    """The mean of an arm over its seeds, as in summary.csv; over the folds for a single run or a
    baseline.
    """
    row = _row(material.summary, arm, method, metric)
    if row is not None:
        return Score(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["seeds"]))
    evaluations = material.evaluations(arm, method)
    return over_folds(evaluations[0], metric) if not material.is_study and evaluations else None


def difference(material: Material, arm: str, method: str, metric: str) -> Difference | None:
    """The difference of an arm to the reference, as in summary.csv."""
    row = _row(material.summary, arm, method, metric)
    if row is None or arm == material.reference or math.isnan(row["difference"]):
        return None
    p_value = float(row.get("p_value", math.nan))
    seeds = _paired_seeds(material, arm, method) or int(row["seeds"])
    return Difference(
        float(row["difference"]),
        float(row["difference_low"]),
        float(row["difference_high"]),
        seeds,
        p_value=p_value,
    )


def _row(table: "pd.DataFrame | None", arm: str, method: str, metric: str) -> "pd.Series | None":
    if table is None:
        return None
    rows = table[(table["arm"] == arm) & (table["method"] == method) & (table["metric"] == metric)]
    return None if rows.empty or math.isnan(rows.iloc[0]["mean"]) else rows.iloc[0]


def _paired_seeds(material: Material, arm: str, method: str) -> int:
    if material.reference is None:
        return 0
    return len(
        set(by_seed(material, arm, method, "macro_f1"))
        & set(by_seed(material, material.reference, method, "macro_f1"))
    )


def by_seed(material: Material, arm: str, method: str, metric: str) -> dict[int, float]:
    """The mean over folds for each seed of an arm."""
    table = material.results
    if table is None or metric not in table.columns:
        return {}
    rows = table[(table["arm"] == arm) & (table["method"] == method)]
    return {int(seed): float(mean) for seed, mean in rows.groupby("seed")[metric].mean().items()}


def paired(material: Material, arm: str, other: str, method: str, metric: str) -> Difference | None:
    """The difference of two arms over the seeds that both have; None where they share none."""
    ours, theirs = by_seed(material, arm, method, metric), by_seed(material, other, method, metric)
    shared = [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]
    if not shared:
        return None
    from ..evaluation import paired_difference

    found = paired_difference(*zip(*shared, strict=True))
    return Difference(found.mean, found.low, found.high, found.n, p_value=found.p_value)


def over_folds(evaluation: "Evaluation", metric: str) -> Score:
    """The mean over the folds of one evaluation, with the interval over these folds."""
    from ..evaluation import interval

    found = interval(evaluation.values(metric))
    return Score(found.mean, found.low, found.high, found.n, "fold")


def shown_arm(material: Material) -> str | None:
    """The arm that the headline is about: of those that learn their masks the one with the highest
    macro-F1, under fine-tuning where there is any. Without such an arm, of those that are
    pretrained and not the reference."""
    others = [arm for arm in material.arms if arm != material.reference]
    learned = [arm for arm in others if material.is_learned(arm)]
    pretrained = [arm for arm in others if material.strategy(arm) != "none"]
    for candidates in (learned, pretrained):
        for method in METHODS:
            scores = {
                arm: found.mean
                for arm in candidates
                if (found := score(material, arm, method, "macro_f1"))
            }
            if scores:
                return max(scores, key=scores.__getitem__)
    return next(iter(learned or pretrained or others), None)


def candidates(material: Material, arm: str) -> int:
    """How many arms the shown one was the best of."""
    alike = [
        other
        for other in material.arms
        if other != material.reference and material.is_learned(other) == material.is_learned(arm)
    ]
    return sum(material.strategy(other) != "none" for other in alike)
