"""Tables of results that `evaluate` and `genes` print."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from ..interpretation import Interpretation

SHOWN_GENES = 10


def evaluations_text(evaluations: Iterable["Evaluation"]) -> str:
    """A line per method: mean and standard deviation over its folds, in per cent."""
    lines = [
        f"{'method':22}{'accuracy':>14}{'macro-F1':>14}{'micro-F1':>14}   (per cent, mean ±"
        " standard deviation over the folds)"
    ]
    for evaluation in evaluations:
        line = f"{evaluation.method:22}"
        for metric in ("accuracy", "macro_f1", "micro_f1"):
            scores = 100 * evaluation.values(metric)
            line += f"{f'{scores.mean():.1f} ± {scores.std(ddof=1):.1f}':>14}"
        lines.append(line)
    return "\n".join(lines)


def genes_text(found: "Interpretation") -> str:
    """The genes hidden most, how far the masks are from uniform, and warnings."""
    most = found.frequencies.nlargest(SHOWN_GENES, "hidden")
    lines = [f"{'gene':20}{'hidden':>10}{'mean expression':>18}{'detected':>10}"]
    lines += [
        f"{row.gene:20}{row.hidden:>10.1%}{row.mean_expression:>18.3f}{row.detected:>10.1%}"
        for row in most.itertuples()
    ]
    summary = found.latents
    if summary["spearman"] is not None:
        lines.append(
            f"Spearman correlation of hidden with mean expression: {summary['spearman']:+.2f}"
        )
    if summary["entropy"] is not None:
        lines.append(
            f"entropy of the masking distribution: {summary['entropy']:.4f} of its maximum, which"
            " is uniform"
        )
    if (scatter := summary["dispersion"]) is not None:
        chance = f"uniform draws: {scatter['low']:.2f} to {scatter['high']:.2f}"
        lines.append(f"variance over genes, chi^2/df: {scatter['chi_square']:.2f} ({chance})")
    lines += [f"warning: {warning}" for warning in found.warnings]
    return "\n".join(lines)
