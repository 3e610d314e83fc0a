"""From scores of runs to tables: means over seeds, differences paired by seed, and how arms that
were chosen on development cells do on the others.
"""

from pathlib import Path

import pandas

from ..evaluation.intervals import interval, paired_difference
from ..storage import write_file
from .arms import ARMS, UNIFORM, UNTRAINED
from .folder import read_curves, read_runs

NONE = (float("nan"),) * 3
RUNS, SUMMARY, CHOICES, CURVES = "runs.csv", "summary.csv", "choices.csv", "curves.csv"
COLUMNS = (
    *("data", "genes", "arm", "part", "metric", "mean"),
    *("against", "difference", "low", "high", "seeds"),
)
SCREENING = 3
"""Seeds, the first of a data set, by which arms are chosen. The others test the choice ..."""

FEWEST = 3
"""... where there are so many; fewer leave an interval that says nothing."""

EVERY = "all sets"
"""Stands for the data where one arm is chosen for all sets."""

NO_CHOICE = (UNTRAINED, "labels-50")  # a control, and the arm that saw the labels of all cells
PARTS = ("development", "rest")
Gains = tuple[pandas.DataFrame, ...]
"""Of each of `PARTS`: differences to uniform in points; rows are seeds, columns arms."""

CHOICE_COLUMNS = (
    *("data", "genes", "metric", "candidates", "arm", "on_development"),
    *("difference", "low", "high", "seeds", "other_seeds"),
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


def choices_of(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The arm with the highest score on development cells, and its score on the other cells.

    A row for each data set and metric, and for all sets of as many genes together, where an arm
    counts by the mean over sets. ``candidates``: arms with all `SCREENING` seeds. ``arm``: the one
    of them with the largest mean difference to uniform masks on development cells over these seeds,
    ``on_development``; uniform itself where none is ahead. ``difference``, ``low``, ``high`` and
    ``seeds``: its difference to uniform on the other cells, with a 95 % Student-t interval.
    ``other_seeds``: whether that is over seeds that took no part in the choice, as it is where
    there are `FEWEST` of them; else it is over all.

    Args:
        runs: as `scmam.benchmark.folder.read_runs` gives them.
    """

    rows = []
    for (genes, metric), group in runs[runs.part != "masks"].groupby(["genes", "metric"]):
        gains = {data: _gains(one) for data, one in group.groupby("data", sort=False)}
        gains = {data: parts for data, parts in gains.items() if len(parts) == len(PARTS)}
        if len(gains) > 1:
            gains[EVERY] = tuple(
                _mean_over_sets([parts[place] for parts in gains.values()])
                for place in range(len(PARTS))
            )
        for data, parts in gains.items():
            chosen = _choice(*parts)
            if chosen is not None:
                rows.append((data, genes, metric, *chosen))
    return pandas.DataFrame(rows, columns=list(CHOICE_COLUMNS))


def _gains(runs: pandas.DataFrame) -> Gains:
    """Of the parts that are there, of one data set and metric."""
    found = []
    for part in PARTS:
        table = 100 * runs[runs.part == part].pivot(index="seed", columns="arm", values="value")
        if UNIFORM in table:
            arms = [arm for arm in ARMS if arm in table and arm not in NO_CHOICE]
            found.append(table[arms].sub(table[UNIFORM], axis=0).dropna(how="all"))
    return tuple(found)


def _mean_over_sets(gains: list[pandas.DataFrame]) -> pandas.DataFrame:
    """The mean over sets, of the seeds and arms that all of them have."""
    arms = [arm for arm in gains[0] if all(arm in table for table in gains)]
    return (sum(table[arms] for table in gains) / len(gains)).dropna(how="all")


def _choice(
    development: pandas.DataFrame, rest: pandas.DataFrame
) -> tuple[int, str, float, float, float, float, int, bool] | None:
    """`CHOICE_COLUMNS` from "candidates" on; None where no arm has all seeds."""
    screened = development.sort_index().head(SCREENING).dropna(axis=1)
    if len(screened) < SCREENING or len(screened.columns) < 2:
        return None
    means = screened.mean()
    arm = means.idxmax()
    tested = rest[arm].dropna()
    others = tested.drop(screened.index, errors="ignore")
    on_others = len(others) >= FEWEST
    found = interval((others if on_others else tested).tolist())
    return len(means), arm, means[arm], *found, on_others
