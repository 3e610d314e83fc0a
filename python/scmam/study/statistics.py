"""From scores of folds to the comparison: means over folds first, then Student-t intervals over
seeds, differences paired by seed.
"""

from pathlib import Path

import pandas

from ..evaluation.intervals import interval, paired_difference
from ..evaluation.scores import METRICS, Evaluation
from ..storage import write_file
from .folder import RESULTS, SUMMARY, Study, baseline_file, evaluation_files, open_study, run_folder

RESULT_COLUMNS = ("arm", "seed", "fold", "method", *METRICS)
SUMMARY_COLUMNS = (
    *("arm", "method", "metric", "mean", "low", "high", "seeds"),
    *("difference", "difference_low", "difference_high", "p_value"),
)


def summarize(folder: str | Path) -> pandas.DataFrame:
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
    write_file(study.folder / RESULTS, scores.to_csv(index=False))
    write_file(study.folder / SUMMARY, table.to_csv(index=False))
    return table


def collect(study: Study) -> pandas.DataFrame:
    """The scores of every fold that are in the folder; columns as in `Study.results`."""

    files: list[tuple[str, int | None, Path]] = [
        (arm, seed, path)
        for arm, seed in study.finished()
        for path in evaluation_files(run_folder(study.folder, arm, seed))
    ]
    baselines = ((name, baseline_file(study.folder, name)) for name in study.config.study.baselines)
    files += [(name, None, path) for name, path in baselines if path.is_file()]
    rows = [
        (arm, seed, fold.fold, evaluation.method, *(getattr(fold, metric) for metric in METRICS))
        for arm, seed, path in files
        for evaluation in [Evaluation.load(path)]
        for fold in evaluation.folds
    ]
    return pandas.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype({"seed": "Int64"})


def summary_of(results: pandas.DataFrame, reference: str) -> pandas.DataFrame:
    """The summary of a table of fold scores; see `summarize`."""

    by_run = results.groupby(["arm", "method", "seed"], sort=False, dropna=False)
    means = by_run[list(METRICS)].mean().reset_index()
    rows = []
    for (arm, method), group in means.groupby(["arm", "method"], sort=False):
        others = means[(means.arm == reference) & (means.method == method) & (arm != reference)]
        pairs = group.dropna(subset="seed").merge(others, on="seed", suffixes=("", "_reference"))
        for metric in METRICS:
            mean = interval(group[metric].tolist())[:3]
            ours, theirs = (pairs[name].tolist() for name in (metric, f"{metric}_reference"))
            difference = paired_difference(ours, theirs)[:4] if ours else (None,) * 4
            rows.append((arm, method, metric, *mean, group.seed.notna().sum(), *difference))
    return pandas.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
