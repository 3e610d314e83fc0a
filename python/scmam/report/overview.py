"""The top of the page: what was run on what, the result in a sentence and in cards, what was found,
and how to read it.
"""

import math
from statistics import fmean

from .facts import cells_facts, class_sizes, mean_of, num_folds, source_name, wanted_seeds
from .findings import (
    METHOD_NAMES,
    VERDICTS,
    findings,
    headline,
    how_to_read,
    interval_text,
    masking_share,
)
from .formatting import (
    amount,
    count,
    duration,
    listed,
    milliseconds,
    percent,
    points,
    signed_points,
)
from .markup import Markup, bullets, element, join, paragraph, section
from .material import METHODS, Material
from .scores import Difference, candidates, difference, score, shown_arm
from .tables import TONES

UNFINISHED = {
    "failed": "Some of the runs failed; the same command tries them again.",
    "interrupted": "It was interrupted: this is what is there so far.",
    "running": "It was still running, or was killed: this is what is there so far.",
}


def title(material: Material) -> str:
    """Of the page."""
    if material.is_study:
        return f"Masked pretraining compared on {source_name(material)}"
    return f"Pretraining with {material.arms[0]} masks on {source_name(material)}"


def opening(material: Material) -> Markup:
    """Title, one line on what was run on what, and the verdict."""
    facts, types, seeds = cells_facts(material), class_sizes(material), material.seeds()
    size = [
        amount(int(facts[name]), word)
        for name, word in (("num_cells", "cell"), ("num_genes", "gene"))
        if isinstance(facts.get(name), int)
    ]
    what = (
        f"{amount(len(material.arms), 'arm')}, {amount(len(seeds), 'seed')}"
        if material.is_study
        else f"seed {material.runs[0].seed}"
    )
    parts = [
        " × ".join(size),
        amount(len(types), "cell type") if types else "",
        what,
        amount(num_folds(material), "fold") if num_folds(material) else "not evaluated",
        str(material.record.get("date") or "").partition("T")[0],
    ]
    verdict = headline(material)
    return join(
        [
            element("h1", title(material)),
            paragraph(" · ".join(part for part in parts if part), class_="lead"),
            paragraph(verdict, class_="verdict-line") if verdict else "",
        ]
    )


def notes(material: Material) -> Markup:
    """What is not as it should be: a study that goes on, runs that failed, files that cannot be
    read.
    """
    told = []
    status = str(material.record.get("status", "unknown"))
    if status != "done":
        told.append(
            UNFINISHED.get(status, f"Its status is {status}: this is what is there so far.")
        )
    failures = material.record.get("failures")
    told += [
        f"{failure.get('task')} failed: {failure.get('message')}"
        for failure in failures or ()
        if isinstance(failure, dict)
    ]
    if material.is_study:
        told += _missing_runs(material)
        if material.reference is None:
            told.append("The reference arm is not among the arms: no differences are shown.")
        if material.summary is None:
            told.append(
                "summary.csv is missing: scores are not compared; run scmam report on the folder, which writes it."
            )
    told += material.problems
    return note("Notes", told) if told else Markup("")


def note(heading: str, told: list[object]) -> Markup:
    """A box that is hard to overlook."""
    return element("div", paragraph(heading), bullets(told), class_="notes", role="note")


def _missing_runs(material: Material) -> list[str]:
    told = []
    for arm in material.arms:
        done = {run.seed for run in material.of(arm) if run.status == "done"}
        missing = [str(seed) for seed in wanted_seeds(material) if seed not in done]
        if missing:
            told.append(
                f"{arm}: not finished for seed{'s' if len(missing) > 1 else ''} {listed(missing)}."
            )
    return told


def cards(material: Material) -> Markup:
    """The headline in numbers."""
    found = [
        *(_difference_cards(material) or _score_cards(material)),
        *_masking_card(material),
        *_time_card(material),
    ]
    return element("div", *found, class_="cards") if found else Markup("")


def card(heading: str, number: str, told: object, tone: str = "") -> Markup:
    return element(
        "div",
        element("h3", heading),
        element("b", number),
        paragraph(told),
        class_=f"card {tone}".strip(),
    )


def _difference_cards(material: Material) -> list[Markup]:
    arm, found = shown_arm(material), []
    for method in METHODS if arm else ():
        if diff := difference(material, arm, method, "macro_f1"):
            best = f" (best of {number})" if (number := candidates(material, arm)) > 1 else ""
            spread = (
                f"; {interval_text(diff)}; {amount(diff.number, 'paired seed')}"
                if diff.has_interval
                else ""
            )
            told = join(
                [
                    element("strong", _verdict(material, arm, diff)),
                    f". {arm}{best} less {material.reference}, points of macro-F1{spread}.",
                ]
            )
            found.append(
                card(
                    METHOD_NAMES[method].capitalize(),
                    signed_points(diff.mean),
                    told,
                    TONES[diff.verdict],
                )
            )
    return found


def _verdict(material: Material, arm: str, found: Difference) -> str:
    named = {"ahead": f"{arm} ahead", "behind": f"{material.reference} ahead"}
    return named.get(found.verdict, VERDICTS[found.verdict].capitalize())


def _score_cards(material: Material) -> list[Markup]:
    """Where there is nothing to compare: the scores of the shown arm, or of the only one."""
    arm, found = shown_arm(material) or material.arms[0], []
    for method in METHODS:
        if one := score(material, arm, method, "macro_f1"):
            spread = (
                f"; {interval_text(one, signed=False)} over {amount(one.number, one.over)}"
                if one.has_interval
                else ""
            )
            found.append(
                card(
                    METHOD_NAMES[method].capitalize(),
                    points(one.mean),
                    f"{arm}: macro-F1, points{spread}.",
                )
            )
    return found


def _masking_card(material: Material) -> list[Markup]:
    arm, share = masking_share(material)
    if math.isnan(share):
        return []
    masking, step = (
        milliseconds(mean_of(material.of(arm), name)) for name in ("masking_ms", "step_ms")
    )
    return [card("Masking's share of a step", percent(share), f"{arm}: {masking} of {step} ms.")]


def _time_card(material: Material) -> list[Markup]:
    seconds = material.record.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0:
        return []
    if not material.is_study:
        return [
            card(
                "Time",
                duration(seconds),
                f"{count(material.runs[0].number('steps'))} steps of pretraining.",
            )
        ]
    known = [
        value
        for run in material.runs
        if run.number("steps") > 0 and not math.isnan(value := run.number("seconds"))
    ]
    each = f" {duration(fmean(known))} of pretraining a run." if known else ""
    return [
        card(
            "Time",
            duration(seconds),
            f"{amount(len(material.runs), 'run')}, evaluation and baselines.{each}",
        )
    ]


def findings_section(material: Material) -> Markup:
    """The sentences, warnings on the masks, and how to read them."""
    sentences, warnings = findings(material), collapse_warnings(material)
    told = (
        bullets(sentences, "findings")
        if sentences
        else paragraph("Nothing was compared: there is no evaluation yet.")
    )
    reading = element(
        "div",
        element("h3", "How to read this"),
        *(paragraph(line) for line in how_to_read(material)),
        class_="read",
    )
    left = element("div", told, note("Warnings on the masks", warnings) if warnings else "")
    return section("findings", "What was found", element("div", left, reading, class_="beside"))


def collapse_warnings(material: Material) -> list[Markup]:
    """What the interpretation warned of; each once, with all the arms that it is said of, however
    many seeds warned of it.
    """
    arms_of: dict[str, dict[str, None]] = {}
    for arm in material.arms:
        for run in material.of(arm):
            for warning in run.latents.get("warnings") or ():
                arms_of.setdefault(str(warning), {})[arm] = None
    return [
        join([element("strong", ", ".join(arms)), f": {warning}."])
        for warning, arms in arms_of.items()
    ]


def contents(sections: list[Markup]) -> Markup:
    """Links to the sections that are there."""
    links = []
    for part in sections:
        anchor, _, rest = part.partition('<h2 id="')[2].partition('">')
        links.append(element("a", Markup(rest.partition("</h2>")[0]), href=f"#{anchor}"))
    return element("nav", *links, aria_label="Contents")
