"""From scores of runs to tables: means over seeds, differences paired by seed, and how arms that
were chosen on development cells do on the others.
"""

from pathlib import Path

import pandas

from ..evaluation.intervals import paired_difference
from ..storage import write_file
from .arms import ARMS, UNIFORM
from .choice import choices_of
from .folder import read_curves, read_runs

NONE = (float("nan"),) * 3
RUNS, SUMMARY, CHOICES, CURVES = "runs.csv", "summary.csv", "choices.csv", "curves.csv"
COLUMNS = (
    *("data", "genes", "arm", "part", "metric", "mean"),
    *("against", "difference", "low", "high", "seeds"),
)


def summarize(folder: Path) -> pandas.DataFrame:
    """Write the tables of a benchmark, and return the summary.

    A row for each data set, arm, part, metric and reference (`against`): "uniform" is uniform over
    all positions, "same share" the uniform arm that hides as much. `mean` is over all seeds of the
    arm, in points of 100; `difference`, `low` and `high` are the mean and the 95 % Student-t
    interval of differences over the `seeds` that both have.
    """
    return write_tables(folder, read_runs(folder), read_curves(folder))


def write_tables(
    folder: Path, runs: pandas.DataFrame, curves: pandas.DataFrame
) -> pandas.DataFrame:
    """The tables of `summarize`, of runs as `read_runs` and `read_curves` give them."""
    table = summary_of(runs)
    write_file(folder / RUNS, runs.to_csv(index=False, float_format="%.5g"))
    write_file(folder / SUMMARY, table.to_csv(index=False, float_format="%.2f"))
    write_file(folder / CHOICES, choices_of(runs).to_csv(index=False, float_format="%.2f"))
    if not curves.empty:
        write_file(folder / CURVES, curves.to_csv(index=False, float_format="%.5g"))
    return table


def summary_of(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The summary of a table as `read_runs` gives it."""

    rows = []
    scored = runs[runs.part != "masks"]
    for key, group in scored.groupby(["data", "genes", "part", "metric"], sort=False):
        data, genes, part, metric = key
        table = 100 * group.pivot(index="seed", columns="arm", values="value")
        for arm in [arm for arm in ARMS if arm in table]:
            mean = table[arm].mean()
            if arm == UNIFORM:
                rows.append((data, genes, arm, part, metric, mean, "", *NONE, table[arm].count()))
            for against, other in _references(arm):
                if other in table:
                    found = _difference(table, arm, other)
                    rows.append((data, genes, arm, part, metric, mean, against, *found))
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _references(arm: str) -> list[tuple[str, str]]:
    same_share = ARMS[arm].same_share
    found = [] if arm == UNIFORM else [(UNIFORM, UNIFORM)]
    return found + ([] if same_share is None else [("same share", same_share)])


def _difference(table: pandas.DataFrame, arm: str, other: str) -> tuple[float, float, float, int]:
    pairs = table[[arm, other]].dropna()
    if pairs.empty:
        return *NONE, 0
    found = paired_difference(pairs[arm].tolist(), pairs[other].tolist())
    return found.mean, found.low, found.high, found.n
