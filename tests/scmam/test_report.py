"""The report: its numbers are those of the files, its words follow the intervals, and nothing that
is missing or odd breaks it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("matplotlib", reason="the single-cell layer is not installed")
pytest.importorskip("sklearn", reason="the single-cell layer is not installed")
pytest.importorskip("yaml", reason="the single-cell layer is not installed")
pytest.importorskip("jinja2", reason="the single-cell layer is not installed")
pytest.importorskip("scipy", reason="the single-cell layer is not installed")

import jinja2
import pandas as pd
from scipy import stats
from scmam.config import Config, as_yaml, with_settings
from scmam.errors import ReportError
from scmam.evaluation.intervals import PairedDifference
from scmam.evaluation.scores import Evaluation, FoldScores
from scmam.report import (
    maps,
    mask_section,
    page,
    score_figures,
    sections,
    training_figures,
)
from scmam.report.findings import compared, findings, headline, hidden_headline
from scmam.report.folder import open_study_files
from scmam.report.formatting import duration, listed, milliseconds, percent, points, signed_points
from scmam.report.page import write_report
from scmam.report.palette import arm_styles
from scmam.study.statistics import METRICS, RESULT_COLUMNS, summary_of

CLASSES = ("CD4+ <b>T</b>", "B & plasma", "$NK_1$", "Mono's", "DC", "HSC")
SIZES = (70, 50, 30, 25, 15, 10)
GENES = ("<i>LYZ</i>", "CD3$E$", "NA", *(f"GENE{i}" for i in range(117)))
ARMS = {
    "none": {"strategy": "none"},
    "uniform": {"strategy": "uniform", "corruption": "80/10/10"},
    "uniform-matched": {"strategy": "matched", "matched_to": "mam"},
    "mam": {"strategy": "mam", "injection": "decoder"},
}
BASE = {
    ("none", "fine-tuning"): 0.60,
    ("uniform", "fine-tuning"): 0.64,
    ("uniform-matched", "fine-tuning"): 0.645,
    ("mam", "fine-tuning"): 0.66,
    ("none", "linear-probe"): 0.50,
    ("uniform", "linear-probe"): 0.63,
    ("uniform-matched", "linear-probe"): 0.60,
    ("mam", "linear-probe"): 0.63,
}
METHODS = ("fine-tuning", "linear-probe")
FOLDS = 3


def confusion(accuracy, rng):
    """Counts of a fold with about that accuracy; rows are the truth."""
    matrix = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    for row, size in enumerate(SIZES):
        for _ in range(size // FOLDS + 1):
            matrix[row, row if rng.random() < accuracy else rng.integers(len(CLASSES))] += 1
    return matrix


def evaluation(method, accuracy, rng):
    """Scores that follow from their confusion matrices."""
    folds = []
    for fold in range(FOLDS):
        matrix = confusion(accuracy, rng)
        f1 = 2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))
        right = float(matrix.trace() / matrix.sum())
        counts = tuple(map(tuple, matrix.tolist()))
        folds.append(
            FoldScores(
                fold,
                right,
                float(f1.mean()),
                right,
                tuple(f1.tolist()),
                counts,
                130,
                int(matrix.sum()),
                0.4,
            )
        )
    return Evaluation(method, CLASSES, tuple(folds), {"folds": FOLDS})


def metrics(arm, rng, steps=60):
    rows = []
    for step in range(1, steps + 1):
        loss = 1.2 + 2 * np.exp(-step / 15) + 0.05 * rng.standard_normal()
        hidden = {"none": 0.0, "mam": 0.35 - 0.001 * step}.get(arm, 0.3)
        entropy = 0.99 + 0.0001 * step if arm == "mam" else 1.0
        row = {
            "step": step,
            "epoch": step // 20,
            "phase": "train",
            "loss": loss,
            "reconstruction": loss / 2,
            "cell": loss / 2,
        }
        row |= {
            "penalty": 1e-4,
            "hidden": 0.3,
            "hidden_nonzero": hidden,
            "hidden_zero": 0.3,
            "entropy": entropy,
            "lr": 1e-3,
        }
        rows.append(row)
        if step % 20 == 0:
            rows.append(row | {"phase": "validation", "loss": loss + 0.1})
    return pd.DataFrame(rows)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder, arm, seed, rng):
    """A run folder as `scmam.training.pretrain`, `scmam.evaluation.evaluate` and
    `scmam.interpretation.interpret` leave it.
    """
    config = with_settings(Config(), masking=ARMS[arm], training={"seed": seed})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(config))
    (folder / "genes.txt").write_text("\n".join(GENES))
    steps = 0 if arm == "none" else 60
    times = {
        "step_ms": 74.0,
        "masking_ms": 0.9 if arm == "mam" else 0.4,
        "masking_share": 0.0122 if arm == "mam" else 0.0054,
    }
    record = {
        "status": "done",
        "cells": 200,
        "genes": "genes.txt",
        "num_genes": len(GENES),
        "source": "blood: X",
        "steps": steps,
        "seconds": 12.5 + seed,
        "parameters": 123456,
    }
    record |= {
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2.13.0", "scmam": "0.1.0"},
        "date": "2026-01-02T03:04:05+00:00",
    }
    write_json(
        folder / "run.json",
        record | (times | {"loader_ms": 0.8, "cells_per_second": 432.1} if steps else {}),
    )
    if steps:
        metrics(arm, rng).to_csv(folder / "metrics.csv", index=False)
    for method in METHODS:
        wobble = 0.01 * rng.standard_normal()
        evaluation(method, BASE[arm, method] + wobble, rng).save(
            folder / "evaluation" / f"{method}.json"
        )
    codes = np.repeat(np.arange(len(CLASSES)), SIZES)
    centres = rng.normal(size=(len(CLASSES), 8))
    features = (centres[codes] + 0.4 * rng.normal(size=(len(codes), 8))).astype(np.float16)
    arrays = {
        "features": features,
        "codes": codes,
        "classes": np.array(CLASSES),
        "cell_ids": np.arange(len(codes)),
    }
    np.savez(folder / "evaluation" / "embedding.npz", **arrays)
    if steps and seed == 0:
        write_genes(folder / "genes", arm, rng)


def write_genes(folder, arm, rng):
    folder.mkdir()
    expression = rng.gamma(0.5, 0.8, len(GENES)) + 1e-3
    hidden = (
        0.3 + (0.04 * expression if arm == "mam" else 0) + 0.005 * rng.standard_normal(len(GENES))
    )
    table = pd.DataFrame(
        {
            "gene": GENES,
            "mean_expression": expression,
            "detected": 0.5,
            "hidden": hidden,
            "hidden_error": 0.005,
            "hidden_when_nonzero": hidden,
            "uniform": 0.3,
            "expected": 0.3,
            "beyond_expression": hidden - 0.3,
        }
    )
    table.to_csv(folder / "frequencies.csv", index=False)
    parts = [
        table.assign(cell_type=name, cells=size) for name, size in zip(CLASSES, SIZES, strict=True)
    ]
    pd.concat(parts).to_csv(folder / "frequencies_by_type.csv", index=False)
    ranked = table.assign(
        beyond_expression=0.002 * rng.standard_normal(len(GENES)),
        z=rng.standard_normal(len(GENES)),
        expected=0.3,
    )
    ranked.sort_values("beyond_expression", ascending=False).to_csv(
        folder / "ranking.csv", index=False
    )
    warnings = (
        ["masks are indistinguishable from <uniform> ones: 0.99950 of the largest entropy"]
        if arm == "mam"
        else []
    )
    latents = {
        "entropy": 0.9995,
        "effective_positions": 115.2,
        "drawable_positions": 120.0,
        "spearman": 0.71,
        "hidden": 0.31,
        "masks": 4000,
        "draws": 20,
        "dispersion": {"chi_square": 38.66, "low": 0.85, "high": 1.17, "spread": 0.0238},
        "encoder": {"genes": 83.1, "nonzero_read": 0.736, "invented": 0.0992},
    }
    latents |= {
        "hidden_nonzero": 0.34,
        "hidden_zero": 0.3,
        "warnings": warnings,
        "attention": {"overlap": {"cosine": 0.9}},
    }
    write_json(
        folder / "latents.json",
        latents if arm == "mam" else latents | {"attention": None, "spearman": None},
    )
    values = rng.gamma(0.3, 1.0, (5, len(GENES))).astype(np.float32)
    arrays = {
        "values": values,
        "mask": values > 0.5,
        "hidden": np.clip(values / 3, 0, 1),
        "importance": values / values.sum(),
    }
    np.savez(
        folder / "masks.npz",
        **arrays,
        draws=200,
        genes=np.array(GENES),
        cells=np.array(list("abcde")),
        cell_types=np.array(CLASSES[:5]),
    )
    enrichment = {"term": ["IMMUNE <set>", "OTHER"], "overlap": [9, 1], "set_size": [12, 20]}
    enrichment |= {
        "p_value": [1e-4, 0.7],
        "adjusted_p_value": [2e-4, 0.7],
        "genes": ["<i>LYZ</i>;CD3$E$", "GENE1"],
    }
    pd.DataFrame(enrichment).to_csv(folder / "enrichment.csv", index=False)


def t_interval(values):
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def write_tables(folder, reference="uniform"):
    """results.csv and summary.csv from the evaluations that are there."""
    rows = []
    for path in [
        *sorted(folder.glob("runs/*/seed-*/evaluation/*.json")),
        *sorted(folder.glob("baselines/*.json")),
    ]:
        found = Evaluation.load(path)
        is_run = path.parent.name == "evaluation"
        arm, seed = (
            (path.parts[-4], int(path.parts[-3].removeprefix("seed-")))
            if is_run
            else (path.stem, None)
        )
        for fold in found.folds:
            scores = {metric: getattr(fold, metric) for metric in METRICS}
            rows.append(
                {"arm": arm, "seed": seed, "fold": fold.fold, "method": found.method, **scores}
            )
    results = pd.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype({"seed": "Int64"})
    results.to_csv(folder / "results.csv", index=False)
    summary_of(results, reference).to_csv(folder / "summary.csv", index=False)


def write_study(folder, arms=tuple(ARMS), seeds=(0, 1, 2), reference="uniform"):
    """A finished study folder."""
    folder.mkdir(parents=True)
    config = with_settings(Config(), study={"arms": arms, "seeds": seeds, "reference": reference})
    (folder / "config.yaml").write_text(as_yaml(config))
    cells = {
        "source": "blood <cells>.h5ad: .raw.X",
        "unit": "counts recovered from log1p of counts per 10k",
        "num_cells": 200,
    }
    cells |= {
        "num_genes": len(GENES),
        "density": 0.1234,
        "label": "cell_type",
        "donor": None,
        "notes": ["2 genes & 1 cell were dropped"],
    }
    record = {
        "status": "done",
        "fingerprint": "0123456789abcdef",
        "cells": cells | {"classes": dict(zip(CLASSES, SIZES, strict=True))},
    }
    record |= {
        "arms": list(arms),
        "seeds": list(seeds),
        "versions": {"torch": "2.13.0", "python": "3.12.1"},
        "failures": [],
    }
    write_json(
        folder / "study.json", record | {"date": "2026-01-02T03:04:05+00:00", "seconds": 460.0}
    )
    for arm in arms:
        for seed in seeds:
            write_run(
                folder / "runs" / arm / f"seed-{seed}",
                arm,
                seed,
                np.random.default_rng([seed, len(arm)]),
            )
    for name in ("logistic-regression", "pca"):
        evaluation(name, 0.7, np.random.default_rng(len(name))).save(
            folder / "baselines" / f"{name}.json"
        )
    write_tables(folder, reference)
    return folder


class Page(HTMLParser):
    """The text, the tables and the attributes of a page; fails on a tag that is not closed in its
    place.
    """

    VOID = ("meta", "br", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.attributes, self.tags, self.words = [], [], [], [], []
        self.pictures = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if ("role", "img") in attrs:
            self.pictures.append(dict(attrs)["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += f" {data}"

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def cells(self):
        """Rows of tables as tuples of plain text."""
        return [tuple(re.sub(r"\s+", " ", cell).strip() for cell in row) for row in self.rows]

    def told(self):
        """All that the page says, alternative texts too."""
        return self.text + " ".join(
            value for _, name, value in self.attributes if name == "aria-label"
        )


def section(study, name, part):
    """One section of the page."""
    template = page.environment().get_template(f"sections/{name}.html")
    return Page(template.render(study=study, styles=arm_styles(study), part=part))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "blood")


@pytest.fixture(scope="module")
def source(study):
    return write_report(study, projection="pca").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(source):
    return Page(source)


@pytest.fixture
def small(tmp_path):
    """A study that a test may change: two arms, two seeds."""
    return write_study(tmp_path / "small", ("uniform", "mam"), (0, 1))


def set_summary(folder, arm, method, mean, low, high):
    table = pd.read_csv(folder / "summary.csv")
    rows = (table["arm"] == arm) & (table["method"] == method) & (table["metric"] == "macro_f1")
    table.loc[rows, ["difference", "difference_low", "difference_high"]] = mean, low, high
    table.to_csv(folder / "summary.csv", index=False)


def test_the_page_is_one_file_without_scripts_or_references(source, shown):
    assert "script" not in shown.tags
    assert not re.search(r"@import|javascript:|url\((?!#)", source)
    for tag, name, value in shown.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
        elif not name.startswith("xmlns"):
            assert "//" not in value, (tag, name, value[:80])
    assert not {"link", "iframe", "object", "embed", "form"} & set(shown.tags)


def test_identifiers_are_there_once_and_lead_somewhere(shown):
    named = [value for _, name, value in shown.attributes if name == "id"]
    assert len(named) == len(set(named))
    used = [value for _, name, value in shown.attributes if name.endswith("href")]
    assert {value[1:] for value in used if value.startswith("#")} <= set(named)
    assert any(tag == "use" for tag, name, _ in shown.attributes if name == "xlink:href")


def test_the_page_is_small_and_the_same_each_time(study, source):
    assert len(source.encode()) < 1_000_000
    assert page.render(open_study_files(study), "pca") == source


def test_dark_pages_replace_every_colour_of_the_figures(source):
    for colour, variable in page.VARIABLES.items():
        for kind in ("fill", "stroke"):
            rule = f'svg [style*="{kind}: {colour}"] {{ {kind}: var({variable}) !important; }}'
            assert rule in source
    dark = source[source.index("prefers-color-scheme: dark") :]
    for variable in page.VARIABLES.values():
        assert f"{variable}: #" in source
    assert {"--ink", "--quiet", "--rule", "--ground"} <= set(re.findall(r"--\w+(?=: #)", dark))
    for kind in ("fill", "stroke"):  # as matplotlib writes them
        assert re.search(rf'style="[^"]*{kind}: #1c2127', source)


def test_links_lead_to_sections(shown):
    anchors = {value for _, name, value in shown.attributes if name == "id"}
    links = [value[1:] for tag, name, value in shown.attributes if (tag, name) == ("a", "href")]
    assert links == [
        "hidden",
        "findings",
        "comparison",
        "what",
        "types",
        "training",
        "genes",
        "maps",
        "times",
        "again",
    ]
    assert set(links) <= anchors


def test_every_picture_says_what_it_shows(shown):
    assert len(shown.pictures) == 22 + 1  # the genes that are specific to a type
    assert all(len(label) > 40 for label in shown.pictures)
    assert "Confusion matrix of mam, fine-tuning" in " ".join(shown.pictures)


def test_what_was_hidden_comes_first(study, shown):
    files = open_study_files(study)
    assert shown.text.index("What the encoder read of a cell") < shown.text.index(
        "Fine-tuning: mean"
    )
    chance = "38.66 by chance 0.85 to 1.17"
    numbers = ("31.0 %", "34.0 %", "30.0 %", "0.9995", "115 of 120", chance, "2.38")
    assert ("mam", *numbers, "0.71", "0.900") in shown.cells
    assert ("mam", "83", "73.6 %", "9.9 %") in shown.cells
    said = hidden_headline(files)
    assert said.startswith(
        "mam hid 34 % of the non-zeros and 30 % of the zeros (entropy 1.000 of the largest; the"
        " variance over genes is 38.7 times that of uniform draws); uniform hid 34 % of the"
        " non-zeros"
    )  # as the table says
    assert "; uniform-matched hid 34 % of the non-zeros" in said
    assert said in shown.text


def test_masks_that_scatter_as_uniform_ones_are_said_to(small):
    path = small / "runs/mam/seed-0/genes/latents.json"
    found = json.loads(path.read_text())
    write_json(path, found | {"dispersion": {"chi_square": 1.1, "low": 0.9, "high": 1.2}})
    assert "genes vary as under uniform draws" in hidden_headline(open_study_files(small))


def test_folders_of_an_earlier_version_show_what_they_hold(small):
    for path in small.glob("runs/*/*/genes/latents.json"):
        found = json.loads(path.read_text())
        write_json(path, {x: found[x] for x in found if x not in ("dispersion", "encoder")})
    files = open_study_files(small)
    shown = section(files, "hidden", mask_section.hidden(files, arm_styles(files)))
    dashes = ("0.9995", "115 of 120", "–", "–", "0.71", "0.900")
    assert ("mam", "31.0 %", "34.0 %", "30.0 %", *dashes) in shown.cells
    assert "What the encoder read" not in shown.text
    shutil.rmtree(small / "runs/mam/seed-0/genes")
    files = open_study_files(small)
    measured = mask_section.hidden(files, arm_styles(files))["measured"]["mam"]
    assert measured["entropy"] == training_figures.hidden_shares(files, "mam")["entropy"]


@pytest.mark.parametrize("method", METHODS)
def test_the_table_holds_the_numbers_of_the_summary(study, shown, method):
    summary = pd.read_csv(study / "summary.csv").set_index(["method", "metric", "arm"])
    place = shown.text.index(
        {"fine-tuning": "Fine-tuning: mean", "linear-probe": "Linear probe: mean"}[method]
    )
    assert place > 0
    for arm in ARMS:
        macro, accuracy = (
            summary.loc[(method, metric, arm)] for metric in ("macro_f1", "accuracy")
        )
        rows = [cells for cells in shown.cells if cells[:1] == (f"{arm} 3 seeds",)]
        wanted = f"{100 * macro['mean']:.1f} {100 * macro.low:.1f} to {100 * macro.high:.1f}"
        row = next(cells for cells in rows if cells[1] == wanted)
        assert (
            row[3]
            == f"{100 * accuracy['mean']:.1f} {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
        )
        if arm == "uniform":
            assert row[2] == "reference"
        else:
            ends = (macro.difference, macro.difference_low, macro.difference_high)
            gap = "{:+.2f} {:+.2f} to {:+.2f}".format(*(100 * value for value in ends))
            assert row[2].startswith(gap.replace("-", "−"))
            verdict = (
                "ahead"
                if macro.difference_low > 0
                else "behind"
                if macro.difference_high < 0
                else "no difference shown"
            )
            assert row[2].endswith(verdict)
            assert row[5] == ("< 0.001" if macro.p_value < 0.001 else f"{macro.p_value:.3f}")


def test_the_title_says_what_was_run_on_what(shown):
    assert "Masked pretraining compared on blood <cells>.h5ad" in shown.text
    assert (
        "200 cells × 120 genes · 6 cell types · 4 arms, 3 seeds · 3 folds · 2026-01-02"
        in shown.text
    )
    facts = dict(cells[:2] for cells in shown.cells if len(cells) == 2)
    assert facts["non-zero"] == "12.3 %"
    assert facts["unit"] == "counts recovered from log1p of counts per 10k"
    assert facts["notes"] == "2 genes & 1 cell were dropped"
    assert facts["cell types"].startswith("CD4+ <b>T</b> 70, B & plasma 50")
    assert facts["torch"] == "2.13.0"
    assert "scmam compare --config config.yaml --out blood" in shown.text


def test_cards_show_masking_and_time(shown):
    assert "Masking's share of a step 1.2 % mam: 0.90 of 74.0 ms." in shown.text
    assert (
        "Time 7 min 40 s 12 runs, evaluation and baselines. 14 s of pretraining a run."
        in shown.text
    )


def test_names_from_files_stand_as_they_are(source, shown):
    assert "<b>T" not in source
    assert "<i>LYZ" not in source
    assert "IMMUNE <set>" not in source
    assert source.count("CD4+ &lt;b&gt;T&lt;/b&gt;") > 10
    for name in (
        "CD4+ <b>T</b>",
        "$NK_1$",
        "Mono's",
        "<i>LYZ</i>",
        "CD3$E$",
        "IMMUNE <set>",
        "blood <cells>.h5ad",
    ):
        assert name in shown.text, name
    # A gene's name, not a missing value.
    assert "NA" in [cells[0] for cells in shown.cells if cells] or "NA" in shown.text.split()


def test_warnings_of_the_interpretation_are_visible(shown):
    assert (
        "Warnings on the masks mam : masks are indistinguishable from <uniform> ones" in shown.text
    )


def test_class_table_and_times(study, shown):
    runs = [
        json.loads((study / f"runs/mam/seed-{seed}/evaluation/fine-tuning.json").read_text())
        for seed in range(3)
    ]
    mean = np.mean([fold["per_class_f1"] for run in runs for fold in run["folds"]], axis=0)
    row = next(cells for cells in shown.cells if cells[:2] == (CLASSES[0], "70"))
    assert row[5] == f"{100 * mean[0]:.1f}"
    assert ("mam", "60", "74.0", "0.90", "1.2 %", "0.80", "432", "14 s") in shown.cells


def difference_of(mean, low, high, number=5):
    return PairedDifference(mean, low, high, float("nan"), number)


@pytest.mark.parametrize(
    ("found", "verdict", "sentence"),
    [
        (
            difference_of(0.0142, 0.003, 0.0254),
            "ahead",
            "mam is ahead of uniform under fine-tuning by 1.42 points of macro-F1 (95 % interval"
            " +0.30 to +2.54; 5 paired seeds).",
        ),
        (
            difference_of(-0.0142, -0.0254, -0.003),
            "behind",
            "uniform is ahead of mam under fine-tuning by 1.42 points of macro-F1 (95 % interval"
            " +0.30 to +2.54; 5 paired seeds).",
        ),
        (
            difference_of(0.0042, -0.0031, 0.0115),
            "not shown",
            "no difference is shown between mam and uniform under fine-tuning: +0.42 points of"
            " macro-F1"
            " (95 % interval −0.31 to +1.15, which covers 0; 5 paired seeds).",
        ),
        (
            difference_of(-0.0042, np.nan, np.nan, 1),
            "one seed",
            "mam came out 0.42 points of macro-F1 below uniform under fine-tuning, from one seed:"
            " there is no interval, so nothing"
            " is shown.",
        ),
        (
            difference_of(0.01, 0.0, 0.02),
            "not shown",
            "no difference is shown between mam and uniform under fine-tuning: +1.00 points of"
            " macro-F1"
            " (95 % interval +0.00 to +2.00, which covers 0; 5 paired seeds).",
        ),
    ],
)
def test_sentences_say_what_the_interval_allows(found, verdict, sentence):
    assert found.verdict == verdict
    assert compared("mam", "uniform", "fine-tuning", found) == sentence


AHEAD, BEHIND, COVERS = (0.02, 0.01, 0.03), (-0.02, -0.03, -0.01), (0.01, -0.01, 0.03)


@pytest.mark.parametrize(
    ("tuned", "probed", "sentence"),
    [
        (
            AHEAD,
            AHEAD,
            "mam is ahead of uniform, under fine-tuning and with the linear probe alike.",
        ),
        (
            BEHIND,
            BEHIND,
            "uniform is ahead of mam, under fine-tuning and with the linear probe alike.",
        ),
        (
            COVERS,
            COVERS,
            "No difference is shown between mam and uniform, under fine-tuning and with the linear"
            " probe alike.",
        ),
        (
            AHEAD,
            BEHIND,
            "Under fine-tuning, mam is ahead of uniform; with the linear probe, uniform is ahead"
            " of mam.",
        ),
        (
            COVERS,
            AHEAD,
            "Under fine-tuning, no difference is shown between mam and uniform; with the linear"
            " probe, mam is ahead of uniform.",
        ),
    ],
)
def test_headline_for_each_outcome(small, tuned, probed, sentence):
    set_summary(small, "mam", "fine-tuning", *tuned)
    set_summary(small, "mam", "linear-probe", *probed)
    files = open_study_files(small)
    assert headline(files) == sentence
    cards = section(files, "findings", sections.found(files)).text
    named = {AHEAD: "Mam ahead", BEHIND: "Uniform ahead", COVERS: "No difference shown"}
    assert f"Fine-tuning {signed_points(tuned[0])} {named[tuned]} . mam minus uniform" in re.sub(
        "mam ahead", "Mam ahead", cards
    ).replace("uniform ahead", "Uniform ahead")


def test_findings_tell_controls_pretraining_and_baselines(study):
    sentences = findings(open_study_files(study))
    text = " ".join(sentences)
    results = pd.read_csv(study / "results.csv")
    means = results[results["method"] == "fine-tuning"].groupby(["arm", "seed"])["macro_f1"].mean()
    gap = t_interval(means["mam"] - means["uniform-matched"])
    assert (
        f"At the same hidden shares of zeros and non-zeros, {_told(gap, 'mam', 'uniform-matched')}"
        in text
    )
    gap = t_interval(means["mam"] - means["none"])
    assert f"Against the same encoder as initialised, {_told(gap, 'mam', 'no pretraining')}" in text
    baselines = {
        name: json.loads((study / f"baselines/{name}.json").read_text())
        for name in ("logistic-regression", "pca")
    }
    scores = {
        name: np.mean([fold["macro_f1"] for fold in found["folds"]])
        for name, found in baselines.items()
    }
    told = " and ".join(f"{100 * value:.1f} ({name})" for name, value in scores.items())
    assert (
        f"On the same folds, plain classifiers of the data reach a macro-F1 of {told}, and the"
        " highest arm" in text
    )
    assert all(sentence.endswith(".") for sentence in sentences)


def _told(gap, arm, other):
    return compared(arm, other, "fine-tuning", PairedDifference(*gap, float("nan"), 3)).rstrip(".")


def test_the_best_of_several_is_said_to_be_picked(tmp_path):
    ARMS["mam-sharp"] = {"strategy": "mam", "temperature": 0.1}
    try:
        BASE["mam-sharp", "fine-tuning"], BASE["mam-sharp", "linear-probe"] = 0.5, 0.5
        folder = write_study(tmp_path / "picked", ("uniform", "mam", "mam-sharp"), (0, 1))
    finally:
        del ARMS["mam-sharp"]
    files = open_study_files(folder)
    assert (
        "mam is shown here because it scored highest of 2 arms with learned masks; being picked"
        " this way flatters its interval." in findings(files)
    )
    assert "(best of 2) minus uniform" in section(files, "findings", sections.found(files)).text


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A study of the published protocol: a backbone, an untrained model, and one continuation."""
    monkeypatch.setitem(ARMS, "orig", {"strategy": "none"})
    for method in METHODS:
        monkeypatch.setitem(BASE, ("orig", method), BASE["none", method] + 0.01)
    folder = write_study(tmp_path / "table", ("none", "orig", "mam"), (0, 1), reference="orig")
    settings = {"protocol": "published", "methods": ("mlp-probe", "fine-tuning")}
    study = {"arms": ("none", "orig", "mam"), "seeds": (0, 1), "reference": "orig"}
    config = with_settings(Config(), study=study, evaluation=settings)
    (folder / "config.yaml").write_text(as_yaml(config))
    names = {"linear-probe": "mlp-probe"}
    for path in [*folder.glob("runs/*/*/evaluation/*.json"), *folder.glob("baselines/*.json")]:
        found = Evaluation.load(path)
        path.unlink()
        method = names.get(found.method, found.method)
        replaced = Evaluation(method, found.classes, found.folds, {"protocol": "published"})
        replaced.save(path.with_name(f"{method}.json"))
    write_tables(folder, "orig")
    summary = pd.read_csv(folder / "summary.csv")
    for arm, mean in (("none", 0.5), ("orig", 0.52)):
        summary.loc[(summary["arm"] == arm) & (summary["metric"] == "macro_f1"), "mean"] = mean
    summary.to_csv(folder / "summary.csv", index=False)
    return folder


def test_the_published_protocol(published):
    shown = Page(write_report(published, projection="pca").read_text())
    assert "There is no evaluation" not in shown.text
    for caption in ("Two-layer probe", "Fine-tuning"):
        assert f"{caption}: mean and 95 % interval over the seeds" in shown.text
    headings = next(row for row in shown.cells if "micro-F1" in row)
    assert headings == ("arm", "macro-F1", "minus orig", "micro-F1", "minus orig", "p")
    assert "accuracy" not in shown.told()
    assert "3 bootstraps" in shown.text
    assert "in the same bootstraps" in shown.text
    assert "fold" not in shown.text.partition("Configuration, resolved")[0].replace("folder", "")
    told = (
        "the backbone is 2.0 points of macro-F1 better than an untrained encoder, and 3 or more"
        " better are required: it taught the encoder too little for what continues from it to be"
        " compared."
    )
    assert f"Fine-tuning: {told}" in findings(open_study_files(published))[:2]
    assert shown.text.count(f"Two-layer probe: {told}") == 2  # at the top too, as a problem


def test_missing_parts_are_left_out_or_named(small):
    for path in [
        *small.glob("runs/*/*/genes"),
        *small.glob("runs/*/*/evaluation/fine-tuning.json"),
    ]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(small / "baselines")
    (small / "runs/mam/seed-1/metrics.csv").unlink()
    (small / "runs/mam/seed-0/evaluation/embedding.npz").unlink()
    write_tables(small)
    shown = Page(write_report(small, projection="pca").read_text())
    links = [value for tag, name, value in shown.attributes if (tag, name) == ("a", "href")]
    assert "#genes" not in links
    assert "#maps" in links
    assert "There is no evaluation under fine-tuning." in shown.text
    assert "Fine-tuning" not in shown.told()
    assert "plain classifiers" not in shown.text
    assert "Loss of mam over the steps of 1 seed;" in shown.told()


def test_failed_and_unfinished_runs_are_named(small):
    record = json.loads((small / "study.json").read_text())
    failure = {"task": "mam, seed 1", "message": "the loss is <nan>", "log": "log.txt"}
    write_json(small / "study.json", record | {"status": "failed", "failures": [failure]})
    shutil.rmtree(small / "runs/mam/seed-1")
    run = json.loads((small / "runs/uniform/seed-1/run.json").read_text())
    write_json(
        small / "runs/uniform/seed-1/run.json", run | {"status": "interrupted", "step_ms": None}
    )
    notes = " ".join(sections.notes(open_study_files(small)))
    assert "Some of the runs failed" in notes
    assert "mam, seed 1 failed: the loss is <nan>" in notes
    assert "uniform: not finished for seed 1." in notes
    assert "mam: not finished for seed 1." in notes


def test_files_that_cannot_be_read_are_named_and_do_no_harm(small):
    (small / "runs/mam/seed-0/evaluation/fine-tuning.json").write_text("{ half")
    (small / "runs/mam/seed-0/evaluation/embedding.npz").write_bytes(b"PK\x03\x04 no more")
    (small / "runs/mam/seed-0/genes/frequencies.csv").write_text("gene,hidden\nA,0.3\n")
    (small / "runs/mam/seed-1/metrics.csv").write_text("")
    (small / "runs/uniform/seed-0/run.json").write_text("[]")
    (small / "baselines/pca.json").write_text("3")
    masks = small / "runs/uniform/seed-0/genes/masks.npz"
    arrays = dict(np.load(masks))
    np.savez(masks, **arrays | {"hidden": arrays["hidden"][:2]})
    embedding = small / "runs/uniform/seed-0/evaluation/embedding.npz"
    arrays = dict(np.load(embedding))
    np.savez(embedding, **arrays | {"features": np.full_like(arrays["features"], np.inf)})
    shown = Page(write_report(small, projection="pca").read_text())
    for name in (
        "evaluation/fine-tuning.json",
        "evaluation/embedding.npz",
        "genes/frequencies.csv",
    ):
        assert f"runs/mam/seed-0/{name} could not be read and is left out" in shown.text, name
    assert "runs/mam/seed-1/metrics.csv could not be read" in shown.text
    assert "it has no column mean_expression" in shown.text
    assert (
        "baselines/pca.json could not be read and is left out (not the scores of an"
        " evaluation" in shown.text
    )
    assert (
        "its arrays do not fit together: values (5, 120), mask (5, 120), hidden (2, 120)"
        in shown.text
    )
    assert "not every number in features is finite" in shown.text
    assert "runs/uniform/seed-0/run.json could not be read" in shown.text


def test_one_seed_shows_nothing(tmp_path):
    folder = write_study(tmp_path / "one", ("uniform", "mam"), (0,))
    files = open_study_files(folder)
    assert headline(files).startswith("One seed cannot tell mam from uniform")
    assert (
        "One seed: no interval . mam minus uniform, points of macro-F1."
        in section(files, "findings", sections.found(files)).text
    )
    shown = section(files, "comparison", sections.comparison(files, arm_styles(files)))
    row = next(cells for cells in shown.cells if cells[0] == "mam 1 seed")
    assert row[1].endswith("no interval")
    assert row[2].endswith("one seed: no interval")
    assert row[5] == "–"


def test_one_arm_is_shown_without_differences(tmp_path):
    folder = write_study(tmp_path / "alone", ("mam",), (0, 1), reference="mam")
    shown = Page(write_report(folder, projection="pca").read_text())
    assert "mam: macro-F1, points; 95 % interval" in shown.text
    assert "ahead" not in shown.text.replace("“Ahead” is said only", "")


def test_a_single_run(study):
    folder = study / "runs/mam/seed-0"
    path = write_report(folder, study / "run.html", projection="pca")
    shown = Page(path.read_text())
    path.unlink()
    folds = [
        fold["macro_f1"]
        for fold in json.loads((folder / "evaluation/fine-tuning.json").read_text())["folds"]
    ]
    mean, low, high = (100 * value for value in t_interval(folds))
    assert (
        f"Fine-tuning: macro-F1 {mean:.1f} (95 % interval {low:.1f} to {high:.1f}, over 3 folds)."
        in shown.text
    )
    assert "Pretraining with mam masks on blood" in shown.text
    assert "200 cells × 120 genes · 6 cell types · seed 0 · 3 folds" in shown.text
    assert "scmam pretrain --config config.yaml --out seed-0" in shown.text
    assert "it speaks of the split into folds, not of another seed" in shown.text
    assert "reference" not in shown.text.replace("reference: uniform", "").split()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: folder / "nowhere",
            "no such folder; give the folder of `scmam compare` or `scmam pretrain`",
        ),
        (lambda folder: folder, "has neither study.json nor run.json"),
    ],
)
def test_folders_without_anything_to_report(tmp_path, make, message):
    with pytest.raises(ReportError, match=re.escape(message)) as caught:
        write_report(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_runs_is_an_error(tmp_path):
    write_json(tmp_path / "study.json", {"status": "running"})
    with pytest.raises(
        ReportError, match="holds no run yet; start or resume the study with `scmam compare`"
    ):
        write_report(tmp_path)


def test_places_that_cannot_be_written_to(study, tmp_path):
    with pytest.raises(
        ReportError, match=r"is a folder; give the name of a file, such as .*report\.html"
    ):
        write_report(study, tmp_path)
    (tmp_path / "file").write_text("there")
    with pytest.raises(ReportError, match=r"cannot be written .*; give another file"):
        write_report(study / "runs/mam/seed-0", tmp_path / "file" / "report.html", projection="pca")
    assert (tmp_path / "file").read_text() == "there"


def test_projections(monkeypatch):
    with pytest.raises(ReportError, match="projection: expected auto, umap or pca; got 'tsne'"):
        maps.checked_projection("tsne")
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    assert maps.checked_projection("auto") == "pca"
    with pytest.raises(
        ReportError, match="umap needs the package umap-learn; install it, or take pca"
    ):
        maps.checked_projection("umap")


def test_umap_gets_a_fixed_seed_and_standardised_components(monkeypatch):
    given = {}

    class Umap:
        def __init__(self, **settings):
            given.update(settings)

        def fit_transform(self, reduced):
            given["reduced"] = reduced
            return reduced[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    features = np.random.default_rng(0).normal(3, [1, 10, 100, 5], (60, 4)).astype(np.float16)
    flat = maps.project(features, "umap")
    assert flat.shape == (60, 2)
    assert given["random_state"] == 0
    assert given["reduced"].shape == (60, 4)
    # Four columns of variance 1.
    np.testing.assert_allclose(given["reduced"].var(axis=0).sum(), 4, rtol=1e-4)
    assert maps.project(features[:, :1], "pca").shape == (60, 2)


def test_many_cells_are_thinned_out_by_a_fixed_choice():
    assert maps.shown_cells(300).tolist() == list(range(300))
    rows = maps.shown_cells(60_000)
    assert len(np.unique(rows)) == maps.MOST_CELLS
    np.testing.assert_array_equal(rows, maps.shown_cells(60_000))


def test_every_preset_has_a_look_of_its_own(tmp_path):
    arms_of = pytest.importorskip("scmam.study.arms")
    for arm in arms_of.ARMS:
        config = arms_of.arm_config(Config(), arm, 0)
        (tmp_path / "runs" / arm / "seed-0").mkdir(parents=True)
        (tmp_path / "runs" / arm / "seed-0" / "config.yaml").write_text(as_yaml(config))
    files = open_study_files(tmp_path)
    styles = arm_styles(files)
    assert set(styles) == set(arms_of.ARMS)
    assert len({(style.colour, style.dash) for style in styles.values()}) == len(styles)
    learned = {styles[arm].colour for arm in styles if files.is_learned(arm)}
    assert learned.isdisjoint(styles[arm].colour for arm in styles if not files.is_learned(arm))
    assert "at the hidden shares of zeros and non-zeros of mam" in mask_section.described(
        files, "uniform-matched"
    )
    assert mask_section.described(files, "mam-visible").endswith(
        "context injected into the decoder, without the hidden values"
    )
    assert "temperature 0.1" in mask_section.described(files, "mam-sharp")


def test_an_arm_keeps_its_colour_everywhere(study, source):
    styles = arm_styles(open_study_files(study))
    assert len({styles[arm].colour for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        variable = page.VARIABLES[styles[arm].colour]
        assert f'style="background:var({variable})"></i>{arm}' in source
        assert f"stroke: {styles[arm].colour}" in source


def test_a_matched_arm_may_name_a_run_folder(small):
    path = small / "runs/uniform/seed-0/config.yaml"
    for target in ("mam", str(small / "runs/mam/seed-0")):
        config = with_settings(Config(), masking={"strategy": "matched", "matched_to": target})
        path.write_text(as_yaml(config))
        assert open_study_files(small).matched_to("uniform") == "mam"


def scored(*folds):
    """An evaluation of two classes from (confusion, per-class F1)."""
    return Evaluation(
        "linear-probe",
        ("a", "b"),
        tuple(
            FoldScores(i, 0.5, 0.5, 0.5, f1, matrix, 4, 4, 0.1)
            for i, (matrix, f1) in enumerate(folds)
        ),
        {},
    )


def test_confusions_are_shares_of_the_true_type_largest_first():
    run = scored((((3, 1), (2, 4)), (0.5, 0.2)), (((1, 3), (6, 0)), (0.7, 0.4)))
    classes, shares = score_figures.confusion_of([run, run])
    assert classes == ("b", "a")
    np.testing.assert_allclose(shares, [[1 / 3, 2 / 3], [0.5, 0.5]])
    assert sections.class_scores([run, run]) == pytest.approx({"a": 0.6, "b": 0.3})


def test_smoothing_keeps_ends_and_bounds_the_points():
    table = pd.DataFrame({"step": np.arange(5000), "loss": np.linspace(2, 1, 5000)})
    thin = training_figures.smoothed(table, "loss")
    assert len(thin) == training_figures.MOST_POINTS
    assert thin["step"].iloc[[0, -1]].tolist() == [0, 4999]
    assert thin["loss"].is_monotonic_decreasing
    assert training_figures.smoothed(table.assign(loss=np.nan), "loss").empty


def test_numbers_as_they_are_written():
    assert [points(0.6531), points(-0.002), points(np.nan)] == ["65.3", "−0.2", "–"]
    assert [signed_points(0.0142), signed_points(-0.0142)] == ["+1.42", "−1.42"]
    assert [percent(0.0122), percent(0.0054), percent(None), percent(0.3, 0)] == [
        "1.2 %",
        "0.54 %",
        "–",
        "30 %",
    ]
    assert [milliseconds(x) for x in (1234.5, 74.04, 0.9, 0.0123)] == [
        "1,234",
        "74.0",
        "0.90",
        "0.012",
    ]
    assert [duration(x) for x in (3.14, 42.4, 460, 11_100)] == [
        "3.1 s",
        "42 s",
        "7 min 40 s",
        "3 h 05 min",
    ]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]


def test_templates_escape_what_stands_in_a_table():
    environment = page.environment()
    source = """{% from "macros.html" import plain_table with context %}
        {{ plain_table('say "so"', ["<h>"], [["<b>", "&"]]) }}"""
    text = environment.from_string(source).render()
    for escaped in ("&lt;h&gt;", "&lt;b&gt;", "&amp;", 'aria-label="say &#34;so&#34;"'):
        assert escaped in text
    for name in environment.list_templates():
        text = environment.loader.get_source(environment, name)[0]
        assert text.count("| safe") == (name == "macros.html"), name


def test_a_missing_value_is_an_error_and_not_a_blank():
    with pytest.raises(jinja2.UndefinedError):
        page.environment().from_string("{{ nothing_of_that_name }}").render()


def test_templates_are_installed_with_the_package(tmp_path):
    """The files of a wheel, without compiling: the page is rendered from these alone."""
    pytest.importorskip("setuptools")
    root = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, check=True, cwd=root, capture_output=True)
    there = {path.name for path in (tmp_path / "scmam/report/templates").rglob("*.*")}
    assert there == {path.name for path in (root / "python/scmam/report/templates").rglob("*.*")}
    code = (
        "from importlib.resources import files; from scmam.report.page import environment;"
        "import scmam; print(scmam.__file__); assert files('scmam.report').is_dir();"
        "found = environment(); [found.get_template(x) for x in found.list_templates()];"
        "print(len(found.list_templates()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    place, number = run.stdout.split()
    assert place == str(tmp_path / "scmam" / "__init__.py")
    assert int(number) == len(there)
