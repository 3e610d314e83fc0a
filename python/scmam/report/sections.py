"""The sections of evidence.

Each gives its HTML, or nothing where the folder holds nothing for it.
"""

import math
import shlex
from typing import TYPE_CHECKING, Any

import yaml

from .drawing import Palette
from .facts import cells_facts, class_sizes, first
from .findings import METHOD_NAMES, UNDER
from .formatting import amount, count, duration, listed, percent
from .gene_figures import frequencies_figure, masks_figure, types_figure
from .maps import Projection, classes_legend, map_figure, project, shown_cells
from .markup import (
    Markup,
    bullets,
    element,
    figure,
    folding,
    join,
    panels,
    paragraph,
    scrolling,
    section,
)
from .material import METHODS, Material
from .score_figures import confusion_figure, confusion_of, differences_figure, scores_figure
from .scores import shown_arm
from .tables import (
    arms_table,
    classes_table,
    comparison_table,
    enrichment_table,
    facts_table,
    genes_table,
    masks_table,
    timing_table,
)
from .training_figures import arms_with_masks, loss_figures, mask_figures

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEW_ARMS = 4
"""Up to which the genes of every arm are shown at once; of more, those that do not learn their
masks fold away.
"""


def arms_section(material: Material, palette: Palette) -> Markup:
    """The cells and the arms."""
    facts, sizes = cells_facts(material), class_sizes(material)
    types = sorted(sizes.items(), key=lambda item: -item[1])
    told = facts_table(
        {
            "cells": count(facts["num_cells"]) if facts.get("num_cells") else "",
            "genes": count(facts["num_genes"]) if facts.get("num_genes") else "",
            "non-zero": percent(facts["density"]) if facts.get("density") else "",
            "source": facts.get("source"),
            "unit": facts.get("unit"),
            "label column": facts.get("label"),
            "donor column": facts.get("donor"),
            "cell types": ", ".join(f"{name} {count(size)}" for name, size in types),
            "notes": bullets(facts["notes"]) if facts.get("notes") else "",
        },
        "The cells",
    )
    return section("what", "What was run", told, arms_table(material, palette))


def comparison_section(material: Material, palette: Palette) -> Markup:
    """Tables and dots with intervals, a method after the other."""
    parts: list[object] = []
    for method in material.methods():
        if (table := comparison_table(material, palette, method)) is not None:
            drawn = (
                [draw(material, palette, method) for draw in (scores_figure, differences_figure)]
                if material.is_study
                else []
            )
            parts += [table, panels([figure(one) for one in drawn if one is not None], widest=440)]
    if not parts:
        return Markup("")
    absent = [UNDER[method] for method in METHODS if method not in material.methods()]
    if absent:
        parts.append(paragraph(f"There is no evaluation {listed(absent)}."))
    if not material.is_study:
        return section("comparison", "How well it tells cell types apart", *parts)
    told = (
        "Large marks are means, bars their 95 % intervals over seeds, small dots single seeds. Baselines, hollow, are classifiers of the"
        " data themselves in the same folds; they have no seeds, hence no interval."
    )
    return section("comparison", "How the arms compare", paragraph(told), *parts)


def classes_section(material: Material, palette: Palette) -> Markup:
    """F1 of each type and confusion matrices, by the first method; the others fold away."""
    parts: list[object] = []
    for method in material.methods():
        if (table := classes_table(material, palette, method)) is not None:
            content = [table, confusions(material, method)]
            parts += [folding(f"The same {UNDER[method]}", *content)] if parts else content
    return section("types", "Cell type by cell type", *parts) if parts else Markup("")


def confusions(material: Material, method: str) -> Markup:
    """Of the reference and of the shown arm, over all folds and seeds."""
    drawn = []
    for arm in dict.fromkeys(
        arm for arm in (material.reference, shown_arm(material) or material.arms[0]) if arm
    ):
        if evaluations := material.evaluations(arm, method):
            title = f"{arm}, {METHOD_NAMES[method]}"
            matrix = figure(confusion_figure(title, *confusion_of(evaluations)))
            drawn.append(scrolling(matrix, label=f"Confusion matrix of {title}", class_="matrix"))
    told = "Of every 100 cells of a type (row), how many were taken for which (column); over all folds and seeds."
    return (
        join([panels(drawn, widest=400), paragraph(told, class_="lead")]) if drawn else Markup("")
    )


def training_section(material: Material, palette: Palette) -> Markup:
    drawn = loss_figures(material, palette)
    told = (
        "A thin line a seed: the training loss, smoothed, and with dots the loss on cells kept aside, of hidden genes and of the cell"
        " embedding together. Arms hide different genes, some easier to predict than others: between arms, a lower loss does not mean"
        " better cells."
    )
    return (
        section("training", "Loss while pretraining", paragraph(told), panels(drawn, widest=290))
        if drawn
        else Markup("")
    )


def masks_section(material: Material, palette: Palette) -> Markup:
    drawn = mask_figures(material, palette)
    told = (
        "Thick lines are means over seeds, thin lines the seeds. Entropy is that of the distribution that masks are drawn from, over the"
        " largest it could have: at 1 masks are uniform, whatever was learned."
    )
    if not drawn:
        return Markup("")
    legend = palette.legend(arms_with_masks(material))
    return section(
        "masks", "What the masks hide", paragraph(told), legend, panels(drawn, widest=290)
    )


def genes_section(material: Material, palette: Palette) -> Markup:
    """Which genes are hidden: of the first seed of each arm that was interpreted."""
    tables = {
        arm: found
        for arm in material.arms
        if (found := first(material.of(arm), "frequencies")) is not None
    }
    numbers = masks_table(material, palette)
    if not tables and numbers is None:
        return Markup("")
    arm = _told_arm(material, tables)
    content = (
        [_gene_figures(material, palette, tables, arm), _genes_of(material, arm)] if arm else []
    )
    return section("genes", "Which genes are hidden", numbers or "", *content)


def _told_arm(material: Material, tables: "dict[str, pd.DataFrame]") -> str | None:
    """The arm whose genes are told one by one: the shown one, or another whose masks are learned."""
    wanted = [shown_arm(material), *(arm for arm in tables if material.is_learned(arm)), *tables]
    return next((arm for arm in wanted if arm in tables), None)


def _gene_figures(
    material: Material, palette: Palette, tables: "dict[str, pd.DataFrame]", told_arm: str
) -> Markup:
    top = 1.08 * max(float(table["hidden"].max()) for table in tables.values())
    drawn = {
        arm: figure(frequencies_figure(palette, arm, table, top)) for arm, table in tables.items()
    }
    shown = [
        arm
        for arm in drawn
        if len(drawn) <= FEW_ARMS
        or arm in (told_arm, material.reference)
        or material.is_learned(arm)
    ]
    ahead, others = [drawn[arm] for arm in shown], [drawn[arm] for arm in drawn if arm not in shown]
    if (by_type := first(material.of(told_arm), "frequencies_by_type")) is not None:
        ahead.append(figure(types_figure(told_arm, by_type, top)))
    dashed = any("uniform" in table.columns for table in tables.values())
    told = (
        "A dot a gene; the line is the median along the expression"
        + (", the dashed line what a uniform mask of the same size would give" if dashed else "")
        + ". The vertical axis is the same in all, from 0."
    )
    rest = folding("The other arms", panels(others, widest=400)) if others else ""
    return join([paragraph(told), panels(ahead, widest=400), rest])


def _genes_of(material: Material, arm: str) -> Markup:
    """Mask pictures, the genes that stand out, and gene sets, of one arm."""
    runs, parts = material.of(arm), []
    if (masks := first(runs, "masks")) is not None:
        parts += [
            scrolling(figure(masks_figure(arm, masks)), label=f"Masks of {arm}", class_="wide"),
            _chance_of(masks),
        ]
    if (ranking := first(runs, "ranking")) is not None:
        told = f"z is in standard errors over the masks drawn; of {amount(len(ranking), 'gene')}, some pass 3 by chance alone."
        parts += [genes_table(arm, ranking), paragraph(told, class_="lead")]
    for name, which in (
        ("enrichment", "hidden most"),
        ("enrichment_beyond_expression", "hidden most beyond their expression"),
    ):
        if (enrichment := first(runs, name)) is not None:
            parts.append(enrichment_table(arm, enrichment, which))
    return join(parts)


def _chance_of(masks: "dict[str, np.ndarray]") -> Markup:
    """How far the squares of the mask picture differ by chance alone."""
    draws = int(masks["draws"]) if "draws" in masks else 0
    if draws < 1:
        return Markup("")
    rate = float(masks["hidden"].mean())
    error = math.sqrt(rate * (1 - rate) / draws)
    told = (
        f"A gene that is hidden at the mean rate of {percent(rate, 0)} is found hidden in that share of {draws} masks ± {percent(error)}"
        " (one standard error): differences between squares of up to about three times that may be chance."
    )
    return paragraph(told, class_="lead")


def maps_section(material: Material, projection: Projection) -> Markup:
    """The cells by the encoder of the untrained, the reference and the shown arm, side by side."""
    arms = dict.fromkeys(
        arm
        for arm in (
            material.untrained(),
            material.reference,
            shown_arm(material) or material.arms[0],
        )
        if arm
    )
    found = {
        arm: arrays for arm in arms if (arrays := first(material.of(arm), "embedding")) is not None
    }
    if not found:
        return Markup("")
    drawn, told = [], ""
    for arm, arrays in found.items():
        number, classes = len(arrays["features"]), arrays["classes"].tolist()
        rows = shown_cells(number)
        some = (
            ""
            if len(rows) == number
            else f"; {count(len(rows))} of {count(number)} cells, chosen at random"
        )
        drawn.append(
            figure(
                map_figure(
                    arm,
                    project(arrays["features"][rows], projection),
                    arrays["codes"][rows],
                    classes,
                    projection,
                )
            )
        )
        told = _map_text(projection, some)
    sizes = [int((arrays["codes"] == code).sum()) for code in range(len(classes))]
    return section(
        "maps",
        "Maps of the cells",
        panels(drawn, widest=290),
        classes_legend(list(map(str, classes)), sizes),
        paragraph(told, class_="lead"),
    )


def _map_text(projection: Projection, some: str) -> str:
    how = {"umap": "UMAP of 50 principal components", "pca": "The first two principal components"}[
        projection
    ]
    return (
        f"{how} of the standardised features, one seed an arm{some}. Each map is laid out on its own: only which cells lie together can be"
        " compared. A map shows; the scores above measure."
    )


def timing_section(material: Material, palette: Palette) -> Markup:
    table = timing_table(material, palette)
    told = "Medians over the steps of a run, then means over runs; masking is the forward pass of the masking strategy."
    return (
        section("times", "Time", table, paragraph(told, class_="lead"))
        if table is not None
        else Markup("")
    )


def reproduction_section(material: Material) -> Markup:
    """Commands, configuration, machine and versions."""
    return section(
        "again",
        "Doing it again",
        paragraph("With the configuration below saved as ", element("code", "config.yaml"), ":"),
        element("pre", commands(material)),
        folding("Configuration, resolved", element("pre", _as_yaml(material.config)))
        if material.config
        else "",
        _arm_settings(material),
        folding(
            "Machine and versions",
            facts_table(_environment(material), "Machine and versions", titled=False),
        ),
    )


def commands(material: Material) -> str:
    """What writes such a folder, a command a line."""
    folder = shlex.quote(material.folder.resolve().name)
    if material.is_study:
        return f"scmam compare --config config.yaml --out {folder}"
    return f"scmam pretrain --config config.yaml --out {folder}\nscmam evaluate {folder}\nscmam genes {folder}\nscmam report {folder}"


def _arm_settings(material: Material) -> Markup:
    """The masking settings of each arm of a study; the rest of it is in the configuration above."""
    settings = {
        arm: material.masking(arm)
        for arm in material.arms
        if material.is_study and material.masking(arm)
    }
    return (
        folding("Masking settings of each arm", element("pre", _as_yaml(settings)))
        if settings
        else Markup("")
    )


def _as_yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _environment(material: Material) -> dict[str, object]:
    record, run = material.record, next((run.record for run in material.runs if run.record), {})
    versions = record.get("versions") or run.get("versions")
    seconds, parameters = record.get("seconds"), run.get("parameters")
    return {
        "date": record.get("date"),
        "duration": duration(seconds) if isinstance(seconds, int | float) else "",
        "device": run.get("device"),
        "threads of a run": run.get("threads"),
        "parameters": count(parameters) if isinstance(parameters, int | float) else "",
        "fingerprint": record.get("fingerprint"),
        **(versions if isinstance(versions, dict) else {}),
    }
