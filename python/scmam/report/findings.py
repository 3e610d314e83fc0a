"""The results in sentences, which claim no more than the intervals allow."""

import math

from ..evaluation.intervals import Interval, PairedDifference
from .folder import METHODS, StudyFiles, number
from .formatting import amount, decimal, listed, percent, points, signed_points
from .scores import baseline_scores, candidates, difference, paired, score, shown_arm
from .training_figures import measured_shares

METHOD_NAMES = {
    "fine-tuning": "fine-tuning",
    "mlp-probe": "two-layer probe",
    "linear-probe": "linear probe",
}
UNDER = {
    "fine-tuning": "under fine-tuning",
    "mlp-probe": "with the two-layer probe",
    "linear-probe": "with the linear probe",
}
VERDICTS = {
    "ahead": "ahead",
    "behind": "behind",
    "not shown": "no difference shown",
    "one seed": "one seed: no interval",
}
HEADINGS = {"ahead": "ahead of", "behind": "behind", "not shown": "not shown to differ from"}
FEW_ARMS = 3
"""Up to so many arms, the first sentence says what each one hid."""


def spoken(arm: str | None) -> str:
    """Its name in a sentence, where an arm called "none" would be misread."""
    return {"none": "no pretraining", None: "the reference"}.get(arm, str(arm))


def interval_text(found: Interval | PairedDifference, *, signed: bool = True) -> str:
    """``95 % interval +0.31 to +1.15``."""
    write = signed_points if signed else points
    return f"95 % interval {write(found.low)} to {write(found.high)}"


def compared(arm: str, other: str, method: str, found: PairedDifference) -> str:
    """One difference of macro-F1 as a sentence; the arm that is ahead is its subject."""
    if found.verdict == "behind":
        return compared(other, arm, method, found.reversed())
    under, seeds = UNDER[method], amount(found.n, "paired seed")
    size = f"{points(abs(found.mean), 2)} points of macro-F1"
    spread = interval_text(found)
    if found.verdict == "ahead":
        return f"{arm} is ahead of {other} {under} by {size} ({spread}; {seeds})."
    if found.verdict == "not shown":
        mean = signed_points(found.mean)
        return (
            f"no difference is shown between {arm} and {other} {under}: {mean} points of"
            f" macro-F1 ({spread}, which covers 0; {seeds})."
        )
    side = "above" if found.mean >= 0 else "below"
    return (
        f"{arm} came out {size} {side} {other} {under}, from one seed: there is no interval,"
        " so nothing is shown."
    )


def headline(study: StudyFiles) -> str:
    """The result in one sentence; empty where there is nothing to compare."""
    found = against_reference(study)
    arm, reference = spoken(shown_arm(study)), spoken(study.reference)
    clauses = {method: _clause(arm, reference, diff) for method, diff in found.items()}
    if len(set(clauses.values())) == 1 and len(clauses) > 1:
        same = next(iter(clauses.values()))
        return _sentence(f"{same}, {listed([UNDER[method] for method in clauses])} alike.")
    told = "; ".join(f"{UNDER[method]}, {clause}" for method, clause in clauses.items())
    return _sentence(f"{told}.") if told else ""


def _sentence(text: str) -> str:
    """With a capital, unless it starts with the name of an arm."""
    is_word = text.partition(" ")[0] in ("no", "under", "with", "one", "at", "on", "against", "of")
    return text[0].upper() + text[1:] if is_word else text


def against_reference(study: StudyFiles) -> dict[str, PairedDifference]:
    """The differences of the headline, by method."""
    arm = shown_arm(study)
    if arm is None or study.reference is None:
        return {}
    return {method: found for method in METHODS if (found := difference(study, arm, method))}


def _clause(arm: str, reference: str, found: PairedDifference) -> str:
    return {
        "ahead": f"{arm} is ahead of {reference}",
        "behind": f"{reference} is ahead of {arm}",
        "not shown": f"no difference is shown between {arm} and {reference}",
        "one seed": f"one seed cannot tell {arm} from {reference}",
    }[found.verdict]


def hidden_headline(study: StudyFiles) -> str:
    """The hidden shares of the shown arm and the reference, or of all arms where few hide anything,
    in one sentence; empty where they are not known.
    """
    told = []
    arms = [shown_arm(study) or study.arms[0], study.reference]
    hiding = [arm for arm in study.arms if study.strategy(arm) != "none"]
    arms += hiding if len(hiding) <= FEW_ARMS else []
    for arm in [arm for arm in dict.fromkeys(arms) if arm in hiding]:
        if shares := measured_shares(study, arm):
            hidden = (number(shares.get(name)) for name in ("hidden_nonzero", "hidden_zero"))
            nonzero, zero = (percent(share, 0) for share in hidden)
            entropy = decimal(number(shares.get("entropy")), 3)
            shape = f"entropy {entropy} of the largest{_scatter(study, arm)}"
            told.append(f"{arm} hid {nonzero} of the non-zeros and {zero} of the zeros ({shape})")
    return f"{'; '.join(told)}." if told else ""


def _scatter(study: StudyFiles, arm: str) -> str:
    """How the hidden counts of genes vary, beside uniform draws; empty where not known."""
    found = study.first_latents(arm).get("dispersion")
    if not isinstance(found, dict):
        return ""
    if found["chi_square"] <= found["high"]:
        return "; genes vary as under uniform draws"
    return f"; the variance over genes is {found['chi_square']:.3g} times that of uniform draws"


def findings(study: StudyFiles) -> list[str]:
    """The sentences of the report, the comparison of the headline first."""
    if not study.is_study:
        return _of_a_run(study)
    parts = (_backbone, _main, _controls, _pretraining, _against_baselines, _all_arms)
    return [_sentence(sentence) for part in parts for sentence in part(study)]


def _backbone(study: StudyFiles) -> list[str]:
    """Whether the model that training continued from is worth continuing from."""
    return [f"{METHOD_NAMES[found.method].capitalize()}: {found}." for found in study.backbones]


def _main(study: StudyFiles) -> list[str]:
    found, arm, other = against_reference(study), shown_arm(study), spoken(study.reference)
    if not found or arm is None:
        return []
    sentences = [compared(spoken(arm), other, *item) for item in found.items()]
    if (number := candidates(study, arm)) > 1:
        kind = "arms with learned masks" if study.is_learned(arm) else "arms"
        sentences.append(
            f"{arm} is shown here because it scored highest of {number} {kind}; being picked this"
            " way flatters its interval."
        )
    return sentences


def _controls(study: StudyFiles) -> list[str]:
    """Learned masks against uniform masks of the same hidden shares, and of the same injection."""
    sentences: list[str] = []
    arm = shown_arm(study) or study.arms[0]
    for other in study.arms:
        injects = study.masking(other).get("injection", "none") != "none"
        if (target := study.matched_to(other)) is not None:
            same = "at the same hidden shares of zeros and non-zeros, "
            sentences += _control(same, study, target, other)
        elif study.is_learned(arm) and injects and study.strategy(other) == "uniform":
            same = "with the latents' context injected into both, "
            sentences += _control(same, study, arm, other)
    return sentences


def _control(introduction: str, study: StudyFiles, arm: str, other: str) -> list[str]:
    """One comparison by the first method that both have.

    None with the reference, which is compared with everything anyway.
    """
    for method in METHODS if other != study.reference else ():
        if found := paired(study, arm, other, method, "macro_f1"):
            names = spoken(arm), spoken(other)
            return [introduction + compared(*names, method, found)]
    return []


def _pretraining(study: StudyFiles) -> list[str]:
    """Whether pretraining brings anything over the same encoder untrained."""
    arm, untrained = shown_arm(study), study.untrained
    if arm is None or untrained is None or arm == untrained:
        return []
    return _control("against the same encoder as initialised, ", study, arm, untrained)


def _against_baselines(study: StudyFiles) -> list[str]:
    """The best arm beside the baselines, tested on the same cells."""
    pairs = [(arm, method) for arm in study.arms for method in METHODS]
    means = {pair: found.mean for pair in pairs if (found := score(study, *pair))}
    baselines = {name: found.mean for name, found in baseline_scores(study).items()}
    if not means or not baselines:
        return []
    arm, method = max(means, key=means.__getitem__)
    told = listed([f"{points(value)} ({name})" for name, value in baselines.items()])
    above = [name for name, value in baselines.items() if value > means[arm, method]]
    verb = "is" if len(above) == 1 else "are"
    ending = f": {listed(above)} {verb} above every arm" if above else ""
    best = f"the highest arm, {spoken(arm)} {UNDER[method]}, {points(means[arm, method])}"
    return [
        f"on the same {study.tested_on}s, plain classifiers of the data reach a macro-F1 of"
        f" {told}, and {best}{ending}."
    ]


def _all_arms(study: StudyFiles) -> list[str]:
    """All arms against the reference, by what was shown."""
    if study.reference is None or len(study.arms) < 3:
        return []
    sentences = []
    for method in METHODS:
        groups: dict[str, list[str]] = {verdict: [] for verdict in (*HEADINGS, "one seed")}
        for arm in study.arms:
            if found := difference(study, arm, method):
                groups[found.verdict].append(spoken(arm))
        told = [
            f"{heading} {spoken(study.reference)}: {listed(groups[verdict])}"
            for verdict, heading in HEADINGS.items()
            if groups[verdict]
        ]
        if told:
            sentences.append(f"of all arms {UNDER[method]}, {'; '.join(told)}.")
    return sentences


def _of_a_run(study: StudyFiles) -> list[str]:
    sentences = []
    for method in METHODS:
        if found := score(study, study.arms[0], method):
            folds = amount(found.n, study.tested_on)
            spread = interval_text(found, signed=False)
            ending = f" ({spread}, over {folds})" if found.has_interval else ""
            name = METHOD_NAMES[method].capitalize()
            sentences.append(f"{name}: macro-F1 {points(found.mean)}{ending}.")
    return sentences


def masking_share(study: StudyFiles) -> tuple[str, float]:
    """The arm whose masking takes the largest share of a step, and that share of 1.

    Arms with learned masks count, where there are any. The share is nan where it was not measured.
    """
    arms = [arm for arm in study.arms if study.is_learned(arm)] or list(study.arms)
    means = {arm: study.mean(arm, "masking_share") for arm in arms}
    known = {arm: mean for arm, mean in means.items() if not math.isnan(mean)}
    return max(known.items(), key=lambda item: item[1]) if known else (arms[0], math.nan)
