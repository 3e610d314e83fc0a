"""From scores of folds to the comparison: means over folds first, then Student-t intervals over
seeds, differences paired by seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import write_atomically
from .folder import RESULTS, SUMMARY, Study, baseline_file, evaluation_files, open_study, run_folder

if TYPE_CHECKING:
    import pandas

METRICS = ("accuracy", "macro_f1", "micro_f1")
RESULT_COLUMNS = ("arm", "seed", "fold", "method", *METRICS)
SUMMARY_COLUMNS = (
    "arm",
    "method",
    "metric",
    "mean",
    "low",
    "high",
    "seeds",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
)


def summarize(folder: str | Path) -> "pandas.DataFrame":
    """Bring ``results.csv`` and ``summary.csv`` of a study up to date with its finished runs, and
    return the summary.

    A row for every arm, method and metric: `mean` over seeds of the mean over folds, `low` and
    `high` of its 95 % Student-t interval, the number of `seeds`; `difference` to the arm
    ``study.reference``, seed by seed over the seeds that both have, with its 95 % interval and the
    two-sided `p_value` of the paired t test. What one seed cannot tell is missing. A baseline is
    a classifier of the data itself: its `method` is its own name, it has no seeds, and no interval.
    """
    study = open_study(folder)
    scores = collect(study)
    table = summary_of(scores, study.config.study.reference)
    write_atomically(study.folder / RESULTS, scores.to_csv(index=False))
    write_atomically(study.folder / SUMMARY, table.to_csv(index=False))
    return table


def collect(study: Study) -> "pandas.DataFrame":
    """The scores of every fold that are in the folder; columns as in `Study.results`."""
    import pandas

    from ..evaluation import Evaluation

    rows: list[dict[str, Any]] = []

    def add(path: Path, arm: str, seed: int | None) -> None:
        evaluation = Evaluation.load(path)
        for fold in evaluation.folds:
            scores = {metric: getattr(fold, metric) for metric in METRICS}
            rows.append(
                {"arm": arm, "seed": seed, "fold": fold.fold, "method": evaluation.method, **scores}
            )

    for arm, seed in study.finished():
        for path in evaluation_files(run_folder(study.folder, arm, seed)):
            add(path, arm, seed)
    for name in study.config.study.baselines:
        if (path := baseline_file(study.folder, name)).is_file():
            add(path, name, None)
    return pandas.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype({"seed": "Int64"})


def summary_of(results: "pandas.DataFrame", reference: str) -> "pandas.DataFrame":
    """The summary of a table of fold scores; see `summarize`."""
    import pandas

    from ..evaluation import interval

    means = (
        results.groupby(["arm", "method", "seed"], sort=False, dropna=False)[list(METRICS)]
        .mean()
        .reset_index()
    )
    rows = []
    for (arm, method), group in means.groupby(["arm", "method"], sort=False):
        of_reference = means[
            (means.arm == reference) & (means.method == method) & (arm != reference)
        ]
        both = group.dropna(subset="seed").merge(
            of_reference, on="seed", suffixes=("", "_reference")
        )
        for metric in METRICS:
            row = {
                "arm": arm,
                "method": method,
                "metric": metric,
                "seeds": int(group.seed.notna().sum()),
            }
            row.update(zip(("mean", "low", "high"), interval(group[metric].tolist()), strict=False))
            rows.append(
                {**row, **_difference(both[metric].tolist(), both[f"{metric}_reference"].tolist())}
            )
    return pandas.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _difference(scores: Sequence[float], of_reference: Sequence[float]) -> dict[str, float]:
    from ..evaluation import paired_difference

    if not scores:
        return {}
    found = paired_difference(scores, of_reference)
    return {
        "difference": found.mean,
        "difference_low": found.low,
        "difference_high": found.high,
        "p_value": found.p_value,
    }
