"""How often each gene is hidden: overall, by cell type, beyond what its expression predicts, and
beyond what uniform draws would give.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, chi2, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from .tally import Tally

KNOTS = 8
"""Knots of the spline of hidden rate on expression, at quantiles of the genes.

With 5 and with 12 knots, left-out genes were predicted no better.
"""

RANKING = [
    *("rank", "gene", "beyond_expression", "z", "beyond_uniform", "hidden", "expected", "uniform"),
    *("mean_expression", "detected"),
]


@dataclass(frozen=True)
class Dispersion:
    """How far the hidden counts of the genes scatter, against uniform draws of as many positions.

    Each gene's count is compared with its expected value under uniform draws, and the squared
    difference is divided by its variance there. The mean of these has expectation 1 under uniform
    draws, whatever the sizes of the cells. It grows with the number of masks, if genes differ.
    """

    chi_square: float  # mean over genes, which is chi^2 over its degrees of freedom
    low: float  # 95 % of uniform draws give values from here
    high: float  # to here
    genes: int
    spread: float  # standard deviation over genes of the hidden rate, chance taken off


def dispersion(tally: Tally) -> Dispersion | None:
    """None where uniform draws leave nothing to chance, such as where nothing is hidden."""
    hidden = tally.hidden.sum(dim=0).numpy()
    sums = (tally.uniform, tally.uniform_variance)
    expected, variance = (tally.draws * x.sum(dim=0).numpy() for x in sums)
    varies = variance > 0
    genes = int(varies.sum())
    if genes < 2:
        return None
    square, variance = ((hidden - expected) ** 2)[varies], variance[varies]
    low, high = chi2.ppf((0.025, 0.975), genes - 1) / (genes - 1)
    beyond = max(0.0, float((square - variance).mean()))
    ratio = float((square / variance).mean())
    return Dispersion(ratio, float(low), float(high), genes, beyond**0.5 / tally.masks)


def frequencies(tally: Tally, genes: tuple[str, ...]) -> pd.DataFrame:
    """A row a gene, in their order; columns as in the documentation of the package."""
    table = pd.DataFrame({"gene": genes, **_rates(tally, slice(None))})
    hidden, place = table["hidden"].to_numpy(), table.columns.get_loc("hidden") + 1
    table.insert(place, "hidden_error", _error(tally, hidden))
    table["expected"] = expected_from_expression(table["mean_expression"].to_numpy(), hidden)
    table["beyond_expression"] = table["hidden"] - table["expected"]
    return table


def frequencies_by_type(
    tally: Tally, genes: tuple[str, ...], classes: tuple[str, ...]
) -> pd.DataFrame:
    """A row a cell type and gene; types without a cell are left out."""
    columns = ["cell_type", "gene", "cells", *_rates(tally, slice(None))]
    parts = []
    for row, name in enumerate(classes):
        if (cells := int(tally.cells[row])) > 0:
            first = {"cell_type": name, "gene": genes, "cells": cells}
            parts.append(pd.DataFrame(first | _rates(tally, slice(row, row + 1))))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """The genes by how much more often they are hidden than their mean expression predicts.

    Args:
        table: of `frequencies`.

    Returns:
        A row a gene, most first; the columns are `RANKING`. ``z`` is beyond_expression over its
        standard error, nan for genes that are hidden never or always. ``beyond_uniform`` is
        hidden - uniform.
    """
    ranked = table.sort_values("beyond_expression", ascending=False, kind="stable")
    ranked = ranked.reset_index(drop=True)
    error = ranked["hidden_error"].where(ranked["hidden_error"] > 0)
    return ranked.assign(
        rank=np.arange(1, len(ranked) + 1),
        beyond_uniform=ranked["hidden"] - ranked["uniform"],
        z=ranked["beyond_expression"] / error,
    )[RANKING]


def expected_from_expression(expression: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The hidden rate of a gene by its mean expression: a cubic spline through the genes, by least
    squares.

    It is no monotone function, because slopes of both signs hide the low and the high genes and
    spare those between. At the very ends it follows the few genes that are there, so the highest
    gene of all is rarely far from it.

    Args:
        expression: (G,) mean expression.
        hidden: (G,) hidden rates.
    """
    place = np.sqrt(expression)[:, None]  # spreads the many genes of low mean
    knots = np.unique(np.quantile(place, np.linspace(0, 1, KNOTS)))
    if len(knots) < 2:
        return np.full(len(hidden), hidden.mean())
    spline = make_pipeline(SplineTransformer(knots=knots[:, None]), LinearRegression())
    return spline.fit(place, hidden).predict(place)


def correlation(expression: np.ndarray, hidden: np.ndarray) -> float | None:
    """Spearman's; None where either does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        value = float(spearmanr(expression, hidden).statistic)
    return None if np.isnan(value) else value


def _error(tally: Tally, rate: np.ndarray) -> np.ndarray:
    """Standard error of the hidden rates: between draws, or of independent masks if larger.

    Masks of one draw share the latents that were drawn for it, so they are not independent. Draws
    are independent, but the spread of a few draws is a poor estimate.
    """
    independent = np.sqrt(rate * (1 - rate) / tally.masks)
    if tally.draws < 2:
        return independent
    by_draw = tally.hidden_by_draw.numpy() / float(tally.cells.sum())
    return np.maximum(independent, by_draw.std(axis=0, ddof=1) / np.sqrt(tally.draws))


def _rates(tally: Tally, rows: slice) -> dict[str, np.ndarray]:
    """Means over the cells of these rows of the tally, a column a name."""
    cells, names = float(tally.cells[rows].sum()), ("expression", "detected", "hidden")
    sums = (getattr(tally, name) for name in (*names, "hidden_nonzero", "uniform"))
    expression, detected, hidden, both, uniform = (x[rows].sum(dim=0).numpy() for x in sums)
    there = np.where(detected > 0, detected, np.nan)
    return {
        "mean_expression": expression / cells,
        "detected": detected / cells,
        "hidden": hidden / (cells * tally.draws),
        "hidden_when_nonzero": both / (there * tally.draws),
        "uniform": uniform / cells,
    }
