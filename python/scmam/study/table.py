"""The comparison as text for a terminal of 80 columns."""

import math
from collections.abc import Sequence

import pandas

from .folder import Study

NAMES = {"accuracy": "accuracy", "micro_f1": "micro-F1"}
DASH = "-"  # what one seed cannot tell is not 0


def summary_text(study: Study) -> str:
    """Arms as rows, a block for each method, the baselines after them; scores in per cent,
    differences in points of macro-F1.
    """
    summary, config = study.summary(), study.config.study
    arms, baselines = (
        summary[summary.arm.isin(names)] for names in (config.arms, config.baselines)
    )
    # The same number where every cell has one type; the published protocol names it micro-F1.
    published = study.config.evaluation.protocol == "published"
    beside = "micro_f1" if published else "accuracy"
    blocks = [_headline(study, arms, published)]
    for method, rows in arms.groupby("method", sort=False):
        blocks.append(_block(rows, str(method), config.arms, beside, config.reference))
    if not baselines.empty:
        blocks.append(_block(baselines, "on the data itself", config.baselines, beside))
    return "\n\n".join(blocks)


def _headline(study: Study, arms: pandas.DataFrame, published: bool) -> str:
    cells, counts = study.record["cells"], sorted(set(arms.seeds))
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    plural = "" if counts == [1] else "s"
    known = "± and [ ]: 95 % Student-t intervals over seeds"
    if counts == [1]:
        known = "one seed gives no interval"
    tested = (
        f"{study.config.evaluation.folds} {'bootstraps of one test set' if published else 'folds'}"
    )
    return (
        f"{cells['num_cells']} cells, {cells['num_genes']} genes, {len(cells['classes'])} cell"
        f" types; {seeds} seed{plural}, {tested}\nper cent; {known}"
    )


def _block(
    rows: pandas.DataFrame,
    heading: str,
    names: Sequence[str],
    beside: str,
    reference: str | None = None,
) -> str:
    """A row for each arm or baseline, in the order of their names."""
    shown = [name for name in names if name in set(rows.arm)]
    of_metric = rows.set_index(["metric", "arm"])
    first, macro = (of_metric.loc[metric].loc[shown] for metric in (beside, "macro_f1"))
    columns = {NAMES[beside]: first.apply(_score, axis=1), "macro-F1": macro.apply(_score, axis=1)}
    if reference is not None:
        columns[f"macro-F1 minus {reference}'s"] = macro.apply(_difference, axis=1)
        columns["p"] = macro.p_value.map(_p)
    table = pandas.DataFrame(columns).rename_axis(index=None, columns=heading)
    return table.to_string(col_space=[12, 12, 23, 7][: len(columns)])


def _score(row: pandas.Series) -> str:
    if not row.seeds:
        return f"{100 * row['mean']:.1f}"
    half = DASH if math.isnan(row.low) else f"{50 * (row.high - row.low):.1f}"
    return f"{100 * row['mean']:.1f} ± {half}"


def _difference(row: pandas.Series) -> str:
    if math.isnan(row.difference):
        return DASH
    low, high = row.difference_low, row.difference_high
    bounds = DASH if math.isnan(low) else f"{100 * low:+.1f}, {100 * high:+.1f}"
    return f"{100 * row.difference:+.1f} [{bounds}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"
