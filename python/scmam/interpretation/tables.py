"""The tables: how often each gene is hidden, overall, by cell type, and beyond what its expression
predicts.
"""

import warnings

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from .tally import Tally

KNOTS = 8
"""Knots of the spline of hidden rate on expression, at quantiles of the genes: 5 and 12 predicted
left-out genes no better.
"""


def frequencies(tally: Tally, genes: tuple[str, ...]) -> pd.DataFrame:
    """A row a gene, in their order; columns as in the documentation of the package."""
    table = pd.DataFrame({"gene": genes, **_rates(tally, slice(None))})
    table.insert(
        table.columns.get_loc("hidden") + 1,
        "hidden_error",
        _error(tally, table["hidden"].to_numpy()),
    )
    table["expected"] = expected_from_expression(
        table["mean_expression"].to_numpy(), table["hidden"].to_numpy()
    )
    table["beyond_expression"] = table["hidden"] - table["expected"]
    return table


def frequencies_by_type(
    tally: Tally, genes: tuple[str, ...], classes: tuple[str, ...]
) -> pd.DataFrame:
    """A row a cell type and gene; types without a cell are left out."""
    parts = [
        pd.DataFrame(
            {
                "cell_type": name,
                "gene": genes,
                "cells": int(tally.cells[row]),
                **_rates(tally, slice(row, row + 1)),
            }
        )
        for row, name in enumerate(classes)
        if tally.cells[row] > 0
    ]
    columns = ["cell_type", "gene", "cells", *_rates(tally, slice(None))]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """The genes by how much more often they are hidden than their mean expression predicts, most
    first.

    Args:
        table: of `frequencies`.

    Returns:
        rank (from 1), gene, beyond_expression, z (the same over its standard error; nan for genes
        that are hidden never or always), beyond_uniform (hidden - uniform, what a strategy that
        tells zeros from non-zeros hides beyond that), hidden, expected, uniform, mean_expression,
        detected.
    """
    ranked = table.sort_values(
        "beyond_expression", ascending=False, kind="stable", ignore_index=True
    )
    ranked["rank"] = np.arange(1, len(ranked) + 1)
    ranked["beyond_uniform"] = ranked["hidden"] - ranked["uniform"]
    ranked["z"] = ranked["beyond_expression"] / ranked["hidden_error"].where(
        ranked["hidden_error"] > 0
    )
    return ranked[
        [
            "rank",
            "gene",
            "beyond_expression",
            "z",
            "beyond_uniform",
            "hidden",
            "expected",
            "uniform",
            "mean_expression",
            "detected",
        ]
    ]


def expected_from_expression(expression: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What the mean expression of a gene predicts of its hidden rate: a cubic spline through the
    genes, by least squares.

    A spline and no monotone function, because slopes of both signs hide the low and the high genes
    and spare those between. At the very ends it follows the few genes that are there, so the
    highest gene of all is rarely far from it.

    Args:
        expression: (G,) mean expression.
        hidden: (G,) hidden rates.
    """
    place = np.sqrt(expression)[:, None]  # spreads the many genes of low mean
    knots = np.unique(np.quantile(place, np.linspace(0, 1, KNOTS)))
    if len(knots) < 2:
        return np.full(len(hidden), hidden.mean())
    return (
        make_pipeline(SplineTransformer(knots=knots[:, None]), LinearRegression())
        .fit(place, hidden)
        .predict(place)
    )


def correlation(expression: np.ndarray, hidden: np.ndarray) -> float | None:
    """Spearman's; None where either does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        value = float(spearmanr(expression, hidden).statistic)
    return None if np.isnan(value) else value


def _error(tally: Tally, rate: np.ndarray) -> np.ndarray:
    """Standard error of the hidden rates: that between draws, or that of as many independent masks
    where it is larger.

    Masks of one draw share the latents that were drawn for it, so they are not independent, but
    draws are; of a few draws, though, their spread tells little.
    """
    independent = np.sqrt(rate * (1 - rate) / tally.masks)
    if tally.draws < 2:
        return independent
    by_draw = tally.hidden_by_draw.numpy() / float(tally.cells.sum())
    return np.maximum(independent, by_draw.std(axis=0, ddof=1) / np.sqrt(tally.draws))


def _rates(tally: Tally, rows: slice) -> dict[str, np.ndarray]:
    """Means over the cells of these rows of the tally, a column a name."""
    cells = float(tally.cells[rows].sum())
    expression, detected, hidden, both, uniform = (
        x[rows].sum(dim=0).numpy()
        for x in (
            tally.expression,
            tally.detected,
            tally.hidden,
            tally.hidden_nonzero,
            tally.uniform,
        )
    )
    there = np.where(detected > 0, detected, np.nan)
    return {
        "mean_expression": expression / cells,
        "detected": detected / cells,
        "hidden": hidden / (cells * tally.draws),
        "hidden_when_nonzero": both / (there * tally.draws),
        "uniform": uniform / cells,
    }
