"""The demo, small: from cells to a report folder that is whole, self-contained and says what was
measured.
"""

import csv
import json
import re

import pytest
import torch

import mam_kernels as mam

pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("matplotlib", reason="the single-cell layer is not installed")

from scmam import engine_demo, engine_report
from scmam.data.sparse import SparseExpression

from mam_kernels.testing.cases import expression

SMALL = engine_demo.Sizes(
    paper_cells=2,
    published_positions=90,
    published_cells=3,
    published_paper_cells=2,
    samples=3,
    seconds=0.0,
    draws=2,
)


@pytest.fixture(scope="module")
def results():
    values = expression(6, 40, 0.3, torch.Generator().manual_seed(0)).to_sparse_csr()
    cells = SparseExpression(values, tuple(f"<gene {i}>" for i in range(40)), "made & up")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mam.testing, "check", lambda **options: "")  # it has tests of its own
        return engine_demo.run(cells, SMALL, device="cpu")


def test_writes_a_whole_report(results, tmp_path):
    page = engine_report.write_report(tmp_path / "report", results)
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        "report.html",
        "report.md",
        "table.csv",
        "hidden_genes.png",
        "environment.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "made &amp; up" in text
    assert "data:image/png;base64,iVBOR" in text
    assert (
        json.loads((page.parent / "environment.json").read_text())["versions"]["torch"]
        == torch.__version__
    )


def test_the_table_has_every_contender(results, tmp_path):
    page = engine_report.write_report(tmp_path / "report", results)
    with open(page.parent / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    contenders = {row["contender"] for row in rows}
    assert {"paper computation", "reference, dense"} <= contenders
    assert {row["what"] for row in rows} == {"forward", "forward + backward"}
    assert all(float(row["median_us"]) > 0 for row in rows)
    assert all(float(row["ratio"]) > 0 for row in rows if row["contender"] != "paper computation")


def test_masks_have_the_right_size_and_entropy(results):
    for masks in results.masks:
        assert masks.hidden.mean() == pytest.approx(12 / 40)
        assert masks.uniform.mean() == pytest.approx(12 / 40)
    flat, sharp = results.masks
    assert sharp.entropy < flat.entropy <= 1.0
    assert engine_demo.normalized_entropy(torch.ones(2, 50), 1e-8, 0.05) == pytest.approx(1.0)


def test_an_earlier_report_is_replaced_but_nothing_else(results, tmp_path):
    folder = tmp_path / "report"
    engine_report.write_report(folder, results)
    (folder / "old").touch()
    engine_report.write_report(folder, results)
    assert not (folder / "old").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(
        engine_report.ReportError, match="exists and is not a report; give another folder"
    ):
        engine_report.write_report(other, results)
    assert (other / "thesis.tex").exists()


def test_a_report_that_fails_leaves_nothing(results, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_report, "draw_picture", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine_report.write_report(tmp_path / "report", results)
    assert not list(tmp_path.iterdir())


def test_spread_out_takes_real_values_at_the_density():
    values = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]]).to_sparse_csr()
    spread = engine_demo.spread_out(values, 2, 50, 0.2)
    assert (spread != 0).sum(dim=1).tolist() == [10, 10]
    assert set(spread[0].tolist()) <= {0.0, 1.0, 2.0}
    assert set(spread[1].tolist()) <= {0.0, 5.0}


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert (
        engine_demo.main(
            ["--cells", str(tmp_path / "none.h5ad"), "--out", str(tmp_path / "report")]
        )
        == 2
    )
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
