"""The study runs, and it refuses to report a ratio of computations that disagree."""

import json
import time

import pytest
import torch

from benchmarks import results, study, sweeps, tables, workloads
from mam_kernels.testing import agreement, side_by_side
from mam_kernels.testing.measure import Contender
from mam_kernels.testing.paper import PaperMasking

TINY = [
    *(
        "--positions=64",
        "--latents=6",
        "--heads=2",
        "--width=8",
        "--cells=3",
        "--token-positions=20",
        "--token-cells=2",
    ),
    *("--selection-positions=50", "--selection-rows=2", "--samples=3", "--seconds=0"),
]


@pytest.fixture(autouse=True)
def _no_fresh_process(monkeypatch):
    monkeypatch.setattr(study, "import_seconds", lambda: {"torch": 1.0, "mam_kernels_adds": 0.1})
    monkeypatch.setattr(study, "RIVALS", (side_by_side.SDPA,))  # compiling takes a minute


def test_the_study_runs(tmp_path, capsys):
    assert study.main([*TINY, f"--out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "study.json").read_text())
    assert len(content["sections"]) == 3
    for rows in content["sections"].values():
        baselines = [row for row in rows if row["ratio"] is None]
        assert baselines
        assert all(row["contender"] == row["baseline"] for row in baselines)
        assert len(rows) > len(baselines)
    assert content["sizes"]["positions"] == 64
    assert "import mam_kernels adds" in capsys.readouterr().out.splitlines()[-1]


def test_the_study_refuses_when_results_disagree(tmp_path, capsys, monkeypatch):
    right = agreement.paper_twin

    def wrong(module):
        twin = right(module)
        with torch.no_grad():
            twin.latents.mul_(1.01)
        return twin

    monkeypatch.setattr(side_by_side, "paper_twin", wrong)
    assert study.main([*TINY, f"--out={tmp_path}"]) == 1
    assert "no ratios: the results disagree" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_study_refuses_a_wrong_draw(monkeypatch):
    right = study.mam.sample_without_replacement
    monkeypatch.setattr(
        study.mam,
        "sample_without_replacement",
        lambda *given, **options: right(*given, **options).roll(1, dims=1),
    )
    with pytest.raises(agreement.Disagreement, match="positions of its draw"):
        study.require_right_draw("reference", workloads.near_uniform_weights(2, 40))


@pytest.mark.parametrize(
    "select", [workloads.select_by_multinomial, workloads.select_by_exponential_topk]
)
def test_rival_selections_draw_the_same_number(select):
    weights = workloads.near_uniform_weights(3, 40)
    assert select(weights).sum(dim=1).tolist() == [12, 12, 12]


def test_ratios_are_per_cell():
    contenders = {
        "one": Contender(lambda cells: time.sleep(0.02), [(torch.ones(1, 20),)]),
        "ten": Contender(lambda cells: time.sleep(0.02), [(torch.ones(10, 20),)]),
    }
    rows = side_by_side.measure_against("one", contenders, what="wait")
    assert rows[0].ratio is None
    assert 3 < rows[1].ratio < 30


def test_the_table_shows_every_row(tmp_path):
    rows = side_by_side.measure_against(
        "a", {"a": Contender(torch.sum, [(torch.ones(2, 20),)])}, what="sum"
    )
    assert "sum: a" in results.table({"A title": rows})
    results.save(tmp_path, "name", {"A title": rows})
    assert [path.name for path in tmp_path.iterdir()] == ["name.json"]


def test_results_go_where_they_are_asked_to(tmp_path, monkeypatch):
    monkeypatch.delenv("OUT", raising=False)
    assert results.folder(None) == results.COMMITTED
    monkeypatch.setenv("OUT", str(tmp_path))
    assert results.folder(None) == tmp_path
    assert results.folder(tmp_path / "named") == tmp_path / "named"


def test_the_documentation_shows_the_committed_measurements():
    assert tables.main(["--check"]) == 0


def test_a_page_with_other_figures_is_noticed(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    for page in tables.TABLES:
        (tmp_path / page).write_text((tables.ROOT / page).read_text())
    readme = tmp_path / "README.md"
    shown = readme.read_text()
    readme.write_text(shown.replace(" × |", "0 × |", 1).replace(" ×** |", "0 ×** |", 1))
    assert readme.read_text() != shown
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert "README.md does not show" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


def test_the_benchmark_of_maskings_is_shown_as_it_was_saved(tmp_path, monkeypatch):
    summary = tmp_path / "summary.csv"
    summary.write_text(
        "data,genes,arm,part,metric,mean,against,difference,low,high,seeds\n"
        "blood_counts,300,uniform,rest,probe,60,,,,,3\n"
        "blood_counts,300,50-tenth,rest,probe,62,uniform,2.04,-1.0,5.08,3\n"
        "blood_counts,300,50-tenth,development,probe,99,uniform,39,38,40,3\n"
        "blood_counts,300,mam,rest,probe,60,same share,9,8,10,3\n"
        "blood_counts,300,mam,rest,probe,60,uniform,-0.01,-2,2,2\n"
        "worm,300,50-tenth,rest,probe,62,uniform,1,0.5,1.5,5\n"
        "worm,300,mam,rest,probe,62,uniform,1,,,1\n"
    )
    monkeypatch.setattr(tables, "MASKINGS", tmp_path)
    assert tables.maskings().splitlines() == [
        "| arm | blood, 300 | worm, 300 |",
        "|---|---|---|",
        "| `50-tenth` | +2.0 [−1.0, +5.1], 3 | +1.0 [+0.5, +1.5], 5 |",
        "| `mam` | 0.0 [−2.0, +2.0], 2 | – |",
    ]


@pytest.mark.parametrize("folder", ["fine_tuned", "long"])
def test_the_committed_summary_of_the_maskings_follows_from_their_runs(folder, tmp_path):
    pandas = pytest.importorskip("pandas", reason="reads the tables")
    pytest.importorskip("lightning", reason="scmam makes the tables")
    from benchmarks import maskings

    committed = maskings.MASKINGS / folder
    assert maskings.main([str(committed), f"--out={tmp_path}"]) == 0
    assert (tmp_path / "runs.csv").read_bytes() == (committed / "runs.csv").read_bytes()
    ours, theirs = (pandas.read_csv(path / "summary.csv") for path in (tmp_path, committed))
    # Scores in runs.csv are rounded to a thousandth of a point, points here to a hundredth.
    pandas.testing.assert_frame_equal(ours, theirs, rtol=0, atol=0.0101)


def test_sweeps_run_along_every_axis(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws the curves")
    monkeypatch.setattr(sweeps, "ceilings", lambda: {"copied_bytes": 1e10})
    monkeypatch.setattr(
        sweeps, "AXES", {axis: (label, values[:3]) for axis, (label, values) in sweeps.AXES.items()}
    )
    assert sweeps.main(["--most-positions=4096", "--samples=3", f"--out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "sweeps.json").read_text())
    assert {row["axis"] for row in content["rows"]} == set(sweeps.AXES)
    assert all(row["median_us"] > 0 for row in content["rows"])
    assert set(content["lines"]) == {"positions", "cells"}
    assert (tmp_path / "sweeps.svg").read_text().count("latents × heads") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweeps.json", "sweeps.svg"]
    assert "us a cell" in capsys.readouterr().out


def test_a_line_is_found_again():
    rows = [
        {"positions": size, "cells": 4, "median_us": (100 + 0.5 * size) / 4}
        for size in (10, 100, 1000)
    ]
    found = sweeps.slope_of(rows, "positions")
    assert found["fixed_us"] == pytest.approx(100)
    assert found["us_each"] == pytest.approx(0.5)
    assert found["largest_relative_error"] < 1e-9


def test_ceilings_are_rates():
    found = sweeps.ceilings(seconds=0)
    assert set(found) == {"copied_bytes", "exponentials", "multiply_adds"}
    assert min(found.values()) > 1e6


@pytest.mark.parametrize("input_dim", [None, 8])
def test_fused_attention_gives_the_context_of_the_paper_computation(input_dim):
    torch.manual_seed(0)
    paper = PaperMasking(input_dim, latent_dim=8, num_latents=6, num_heads=2).double()
    tokens = (
        torch.randn(3, 20, dtype=torch.float64)
        if input_dim is None
        else torch.randn(3, 20, 8, dtype=torch.float64)
    )
    found, wanted = paper.attend_only(tokens), paper(tokens)
    torch.testing.assert_close(found.context, wanted.context)
    torch.testing.assert_close(found.penalty, wanted.penalty)
    assert found.mask.numel() == 0


def test_a_rival_that_is_wrong_is_refused_and_one_that_does_not_run_left_out(monkeypatch):
    torch.manual_seed(0)
    paper, tokens, said = (
        PaperMasking(latent_dim=8, num_latents=6, num_heads=2),
        torch.rand(3, 20),
        [],
    )
    assert set(side_by_side._rival(side_by_side.SDPA, paper, tokens, said.append)) == {
        side_by_side.SDPA
    }
    right = PaperMasking.attend_only
    monkeypatch.setattr(
        PaperMasking,
        "attend_only",
        lambda self, x: right(self, x)._replace(context=right(self, x).context + 0.1),
    )
    with pytest.raises(
        agreement.Disagreement, match="its context is not that of the paper computation"
    ):
        side_by_side._rival(side_by_side.SDPA, paper, tokens, said.append)
    monkeypatch.setattr(torch, "compile", lambda module: torch.nn.Identity())
    assert side_by_side._rival(side_by_side.COMPILED, paper, tokens, said.append) == {}
    assert "left out, because it does not run here" in said[-1]


def test_curves_and_shares_are_shown():
    line = {"dense, forward": {"fixed_us": 400.0, "us_each": 0.02}}
    found = {
        "lines": {
            "positions": line,
            "cells": {"dense, forward": {"fixed_us": 350.0, "us_each": 45.0}},
        },
        "ceilings": {"copied_bytes": 1e10, "multiply_adds": 8e10},
        "rows": [{"axis": "positions", "cells": 8}],
        "environment": {
            "cpu": "A CPU",
            "threads": 2,
            "instruction_set": "AVX2",
            "versions": {"torch": "2.13.0"},
            "date": "2026-11-22T00:00:00",
        },
    }
    text = " ".join(tables._curves(found))
    assert "(2.50 ns each, forward, dense, 8 cells a call, beside 400 µs a call)" in text
    assert "the number of cells (45 µs each)" in text
    assert "copies 10.0 GB/s and does 80 G multiply-adds/s (A CPU, 2 threads, AVX2" in text
    record = {"size": "tiny", "genes": 300, "cells": 32, "step_ms": 80.0, "masking_share": 0.0123}
    assert tables._shares({"shares": [record]})[-1] == "| tiny | 300 × 32 | 80.0 ms | 1.2 % |"


def test_masking_takes_a_part_of_a_step(tmp_path):
    from benchmarks import share

    record = share.measured(share.Case("tiny", genes=60, cells=8, steps=6), tmp_path)
    assert 0 < record["masking_share"] < 1
    assert record["masking_ms"] == pytest.approx(record["masking_share"] * record["step_ms"])
