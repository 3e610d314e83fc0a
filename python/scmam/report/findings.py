"""What the numbers say, in sentences that say no more than the intervals allow."""

import math
from statistics import fmean

from .formatting import amount, listed, points, signed_points
from .material import METHODS, Material
from .scores import Difference, Score, candidates, difference, over_folds, paired, score, shown_arm

METHOD_NAMES = {"fine-tuning": "fine-tuning", "linear-probe": "linear probe"}
UNDER = {"fine-tuning": "under fine-tuning", "linear-probe": "with the linear probe"}
VERDICTS = {
    "ahead": "ahead",
    "behind": "behind",
    "not shown": "no difference shown",
    "one seed": "one seed: no interval",
}


def interval_text(found: Score, *, signed: bool = True) -> str:
    """``95 % interval +0.31 to +1.15``."""
    write = signed_points if signed else points
    return f"95 % interval {write(found.low)} to {write(found.high)}"


def compared(arm: str, other: str, method: str, found: Difference) -> str:
    """One difference of macro-F1 as a sentence; an arm that is behind is named as plainly as one
    that is ahead.
    """
    size, seeds = (
        f"{points(abs(found.mean), 2)} points of macro-F1",
        amount(found.number, "paired seed"),
    )
    match found.verdict:
        case "ahead":
            return f"{arm} is ahead of {other} {UNDER[method]} by {size} ({interval_text(found)}; {seeds})."
        case "behind":
            spread = interval_text(found.reversed())
            return f"{other} is ahead of {arm} {UNDER[method]} by {size} ({spread}; {seeds})."
        case "not shown":
            return (
                f"no difference is shown between {arm} and {other} {UNDER[method]}: {signed_points(found.mean)} points of macro-F1"
                f" ({interval_text(found)}, which covers 0; {seeds})."
            )
    side = "above" if found.mean >= 0 else "below"
    return f"{arm} came out {size} {side} {other} {UNDER[method]}, from one seed: there is no interval, so nothing is shown."


def headline(material: Material) -> str:
    """The result in one sentence; empty where there is nothing to compare."""
    found = _against_reference(material)
    if not found:
        return ""
    arm, reference = material.spoken(shown_arm(material)), material.spoken(material.reference)
    clauses = {method: _clause(arm, reference, diff) for method, diff in found.items()}
    if len(set(clauses.values())) == 1 and len(clauses) > 1:
        return _sentence(
            f"{next(iter(clauses.values()))}, under fine-tuning and with the linear probe alike."
        )
    return _sentence(
        "; ".join(f"{UNDER[method]}, {clause}" for method, clause in clauses.items()) + "."
    )


def _sentence(text: str) -> str:
    """With a capital, unless it starts with the name of an arm."""
    is_word = text.partition(" ")[0] in ("no", "under", "with", "one", "at", "on", "against", "of")
    return text[0].upper() + text[1:] if is_word else text


def _against_reference(material: Material) -> dict[str, Difference]:
    """The differences of the headline, by method."""
    arm, reference = shown_arm(material), material.reference
    if arm is None or reference is None:
        return {}
    return {
        method: found
        for method in METHODS
        if (found := difference(material, arm, method, "macro_f1"))
    }


def _clause(arm: str, reference: str, found: Difference) -> str:
    return {
        "ahead": f"{arm} is ahead of {reference}",
        "behind": f"{reference} is ahead of {arm}",
        "not shown": f"no difference is shown between {arm} and {reference}",
        "one seed": f"one seed cannot tell {arm} from {reference}",
    }[found.verdict]


def findings(material: Material) -> list[str]:
    """The sentences of the report, the comparison of the headline first."""
    if not material.is_study:
        return _of_a_run(material)
    sentences = [
        *_main(material),
        *_controls(material),
        *_pretraining(material),
        *_against_baselines(material),
        *_all_arms(material),
    ]
    return [_sentence(sentence) for sentence in sentences]


def _main(material: Material) -> list[str]:
    found = _against_reference(material)
    if not found:
        return []
    arm, reference = shown_arm(material), material.reference
    sentences = [
        compared(material.spoken(arm), material.spoken(reference), method, diff)
        for method, diff in found.items()
    ]
    number = candidates(material, arm)
    if number > 1:
        kind = "arms with learned masks" if material.is_learned(arm) else "arms"
        sentences.append(
            f"{arm} is shown here because it scored highest of {number} {kind}; being picked this way flatters its interval."
        )
    return sentences


def _controls(material: Material) -> list[str]:
    """Learned masks against what tells masking and injection apart: uniform masks of the same
    hidden shares, and of the same injection.
    """
    arm, sentences = shown_arm(material), []
    for other in material.arms:
        if (target := material.matched_to(other)) is not None:
            sentences += _control(
                "at the same hidden shares of zeros and non-zeros, ", material, target, other
            )
        elif _is_injected_uniform(material, other) and arm is not None and material.is_learned(arm):
            sentences += _control(
                "with the latents' context injected into both, ", material, arm, other
            )
    return sentences


def _is_injected_uniform(material: Material, arm: str) -> bool:
    return (
        material.strategy(arm) == "uniform"
        and material.masking(arm).get("injection", "none") != "none"
    )


def _control(introduction: str, material: Material, arm: str, other: str) -> list[str]:
    """One comparison by the first method that both have; none with the reference, which is compared
    with everything anyway.
    """
    if other == material.reference:
        return []
    for method in METHODS:
        if found := paired(material, arm, other, method, "macro_f1"):
            return [
                introduction + compared(material.spoken(arm), material.spoken(other), method, found)
            ]
    return []


def _pretraining(material: Material) -> list[str]:
    """Whether pretraining brings anything over the same encoder untrained."""
    arm, untrained = shown_arm(material), material.untrained()
    if arm is None or untrained is None or arm == untrained:
        return []
    return _control("against the same encoder as initialised, ", material, arm, untrained)


def _against_baselines(material: Material) -> list[str]:
    """The best arm beside the baselines, which see the same folds."""
    scores = {
        (arm, method): score(material, arm, method, "macro_f1")
        for arm in material.arms
        for method in METHODS
    }
    means = {key: found.mean for key, found in scores.items() if found}
    baselines = {
        name: over_folds(evaluation, "macro_f1").mean
        for name, evaluation in material.baselines.items()
    }
    if not means or not baselines:
        return []
    arm, method = max(means, key=means.__getitem__)
    told = listed([f"{points(value)} ({name})" for name, value in baselines.items()])
    above = [name for name, value in baselines.items() if value > means[arm, method]]
    ending = (
        f": {listed(above)} {'is' if len(above) == 1 else 'are'} above every arm" if above else ""
    )
    best = f"the highest arm, {material.spoken(arm)} {UNDER[method]}, {points(means[arm, method])}"
    return [
        f"on the same folds, plain classifiers of the data reach a macro-F1 of {told}, and {best}{ending}."
    ]


def _all_arms(material: Material) -> list[str]:
    """All arms against the reference, by what was shown."""
    if material.reference is None or len(material.arms) < 4:
        return []
    reference, sentences = material.spoken(material.reference), []
    headings = {
        "ahead": f"ahead of {reference}",
        "behind": f"behind {reference}",
        "not shown": f"not shown to differ from {reference}",
    }
    for method in METHODS:
        found = {
            arm: diff
            for arm in material.arms
            if (diff := difference(material, arm, method, "macro_f1"))
        }
        groups = {
            word: [material.spoken(arm) for arm, diff in found.items() if diff.verdict == word]
            for word in headings
        }
        told = [
            f"{heading}: {listed(groups[word])}"
            for word, heading in headings.items()
            if groups[word]
        ]
        if told:
            sentences.append(f"of all arms {UNDER[method]}, {'; '.join(told)}.")
    return sentences


def _of_a_run(material: Material) -> list[str]:
    sentences = []
    for method in METHODS:
        if found := score(material, material.arms[0], method, "macro_f1"):
            spread = (
                f" ({interval_text(found, signed=False)}, over {amount(found.number, 'fold')})"
                if found.has_interval
                else ""
            )
            sentences.append(
                f"{METHOD_NAMES[method].capitalize()}: macro-F1 {points(found.mean)}{spread}."
            )
    return sentences


def masking_share(material: Material) -> tuple[str, float]:
    """The arm whose masking takes the largest share of a step, of those with learned masks where
    there are any, and that share of 1.

    The share is nan where it was not measured.
    """
    arms = [arm for arm in material.arms if material.is_learned(arm)] or list(material.arms)
    measured = {
        arm: [
            value
            for run in material.of(arm)
            if not math.isnan(value := run.number("masking_share"))
        ]
        for arm in arms
    }
    means = {arm: fmean(values) for arm, values in measured.items() if values}
    return max(means.items(), key=lambda item: item[1]) if means else (arms[0], math.nan)


def how_to_read(material: Material) -> list[str]:
    """Three sentences: what an interval is, what pairing is, and what the words mean."""
    if not material.is_study:
        return [
            "Scores are in points of 100, averaged over the folds.",
            "The interval is a 95 % Student t interval over the folds of one run: it speaks of the split into folds, not of another seed.",
            "To compare ways of masking, run scmam compare, which repeats every arm with the same seeds.",
        ]
    arms = len([arm for arm in material.arms if arm != material.reference])
    chance = (
        f" (one interval in twenty misses by chance; the {arms} here are not corrected for that)"
        if arms > 2
        else ""
    )
    return [
        "A score, in points of 100, is averaged over folds and then over seeds; its 95 % Student t interval is over seeds, so it says what"
        " other seeds would give on these cells, and nothing of other cells.",
        f"A difference to {material.spoken(material.reference or 'the reference')} is taken seed by seed (the same initial weights, order"
        " of cells and folds) and only then averaged, so it can be known better than either score.",
        "“Ahead” is said only where the interval of a difference lies above 0, “behind” only where it lies below; where it covers 0,"
        f" no difference was shown, which is not the same as there being none{chance}.",
    ]
