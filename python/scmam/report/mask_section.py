"""The section on what was hidden: the masking of each arm in words, and what its masks hid."""

import math
from typing import Any

from .folder import StudyFiles, number
from .formatting import Writers, count, percent
from .palette import Styles
from .training_figures import arms_with_masks, mask_figures, measured_shares

STRATEGIES = {
    "uniform": "uniform",
    "expression": "in proportion to expression",
    "mam": "learned, by the latents' attention to values",
    "mam-embedding": "learned, by the latents' attention to gene and value embeddings",
    "modules": "co-expressed genes together",
    "harder": "genes that are predicted worse more often",
    "labels": "genes that tell the cell types apart more often (uses the labels)",
    "replayed": "each gene as often as {} hid it in the end",
    "permuted": "as often as {} hid its genes, exchanged among genes of about equal mean",
}
INJECTED = {"both": "encoder and decoder", "separate": "encoder and decoder, an adapter each"}


def hidden(study: StudyFiles, styles: Styles) -> dict[str, Any]:
    """The masks of each arm, and the input that they leave to the encoder."""
    wanted, arms = len(study.wanted_seeds), []
    for arm in study.arms:
        runs = study.of(arm)
        done = sum(run.status == "done" for run in runs)
        arms.append((arm, described(study, arm), f"{done} of {max(len(runs), wanted)}"))
    measured = {arm: found for arm in study.arms if (found := _measured(study, arm))}
    views = {arm: study.first_latents(arm).get("encoder") for arm in measured}
    written: Writers = {"genes": count, "nonzero_read": percent, "invented": percent}
    return {
        "arms": arms,
        "measured": measured,
        "encoder": [
            (arm, *(write(number(view.get(name))) for name, write in written.items()))
            for arm, view in views.items()
            if isinstance(view, dict)
        ],
        "figures": mask_figures(study, styles),
        "legend": arms_with_masks(study),
    }


def _measured(study: StudyFiles, arm: str) -> dict[str, Any]:
    """Measures of the masks of an arm: by its final weights, else as training recorded them."""
    found, latents = measured_shares(study, arm), study.first_latents(arm)
    if not found:
        return {}
    attention, scatter = latents.get("attention") or {}, latents.get("dispersion") or {}
    positions = [number(latents.get(f"{name}_positions")) for name in ("effective", "drawable")]
    shares = ("hidden", "hidden_nonzero", "hidden_zero", "entropy")
    return {
        **{name: number(found.get(name)) for name in shares},
        "positions": "–" if math.isnan(positions[1]) else " of ".join(map(count, positions)),
        "chi_square": number(scatter.get("chi_square")),
        "chance": [number(scatter.get(end)) for end in ("low", "high")] if scatter else None,
        "spread": number(scatter.get("spread")),
        "spearman": number(latents.get("spearman")),
        "overlap": number((attention.get("overlap") or {}).get("cosine")),
    }


def described(study: StudyFiles, arm: str) -> str:
    """The masking settings of an arm in words."""
    masking = study.masking(arm)
    if not masking:
        return "no run of it has started"
    if masking.get("strategy") == "none":
        if arm == "orig":
            return "no further pretraining: the model of training.start_from"
        return "no pretraining: the encoder as initialised"
    corruption, scheme = masking.get("corruption"), masking.get("injection", "none")
    parts = [_hides(masking)]
    reader = " that the encoder reads too" if masking.get("corruption_view") == "both" else ""
    mixed = f"corruption {corruption}{reader}"
    parts.append("mask token everywhere" if corruption == "all" else mixed)
    if scheme != "none":
        visible = masking.get("context_from") == "visible"
        ending = ", without the hidden values" if visible else ""
        parts.append(f"context injected into {INJECTED.get(scheme, f'the {scheme}')}{ending}")
    if masking.get("temperature", 1.0) != 1.0:
        parts.append(f"temperature {masking['temperature']:g}")
    if masking.get("slope_norm") is not None:
        parts.append(f"slopes of norm {masking['slope_norm']:g}")
    return "; ".join(parts)


def _hides(masking: dict[str, Any]) -> str:
    strategy, ratio, zeros = (masking.get(name) for name in ("strategy", "ratio", "zero_ratio"))
    if strategy == "matched":
        target = masking.get("matched_to")
        return f"uniform, at the hidden shares of zeros and non-zeros of {target}"
    what, share = STRATEGIES.get(str(strategy), str(strategy)), percent(ratio, 0)
    if strategy in ("replayed", "permuted"):
        what = what.format(masking.get("matched_to"))
    if masking.get("ratio_to") is not None:
        share = f"{share} to {percent(masking['ratio_to'], 0)}, each cell its own,"
    if zeros is None:
        return f"{what}; {share} of all genes"
    of_zeros = percent(zeros, 0) if zeros else "none"
    return f"{what}; {share} of the non-zeros, {of_zeros} of the zeros"
