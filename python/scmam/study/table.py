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
    known = set(summary.arm)
    arms, baselines = (
        [name for name in names if name in known] for names in (config.arms, config.baselines)
    )
    # The same number where every cell has one type; the published protocol names it micro-F1.
    published = study.config.evaluation.protocol == "published"
    beside = "micro_f1" if published else "accuracy"
    width = max(18, *(len(name) + 2 for name in (*arms, *baselines)))
    blocks = [_headline(study, arms, summary, published)]
    for method, rows in summary.groupby("method", sort=False):
        if method not in config.baselines:
            blocks.append(_block(rows, method, arms, config.reference, width, beside))
    if baselines:
        blocks.append(_baselines(summary, baselines, width, beside))
    return "\n\n".join(blocks)


def _headline(study: Study, arms: list[str], summary: pandas.DataFrame, published: bool) -> str:
    cells = study.record["cells"]
    counts = sorted(set(summary[summary.arm.isin(arms)].seeds))
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
    method: str,
    arms: list[str],
    reference: str,
    width: int,
    beside: str,
) -> str:
    title = f"macro-F1 minus {reference}'s"
    wide = max(24, len(title) + 2)
    lines = [f"{method:{width}}{NAMES[beside]:>13}{'macro-F1':>13}{title:>{wide}}{'p':>8}"]
    for arm in arms:
        of_arm = rows[rows.arm == arm].set_index("metric")
        if of_arm.empty:
            continue
        first, macro = of_arm.loc[beside], of_arm.loc["macro_f1"]
        difference = _difference(macro.difference, macro.difference_low, macro.difference_high)
        scores = "".join(f"{_score(row['mean'], row.low, row.high):>13}" for row in (first, macro))
        lines.append(f"{arm:{width}}{scores}{difference:>{wide}}{_p(macro.p_value):>8}")
    return "\n".join(lines)


def _baselines(summary: pandas.DataFrame, names: Sequence[str], width: int, beside: str) -> str:
    lines = [f"{'on the data itself':{width}}{NAMES[beside]:>13}{'macro-F1':>13}"]
    for name in names:
        means = summary[summary.arm == name].set_index("metric")["mean"]
        lines.append(f"{name:{width}}{100 * means[beside]:>13.1f}{100 * means['macro_f1']:>13.1f}")
    return "\n".join(lines)


def _score(mean: float, low: float, high: float) -> str:
    half = DASH if math.isnan(low) else f"{50 * (high - low):.1f}"
    return f"{100 * mean:.1f} ± {half}"


def _difference(mean: float, low: float, high: float) -> str:
    if math.isnan(mean):
        return DASH
    bounds = DASH if math.isnan(low) else f"{100 * low:+.1f}, {100 * high:+.1f}"
    return f"{100 * mean:+.1f} [{bounds}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"
