"""The demo: a study like any other, of a size that fits two cores."""

import pytest

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
pytest.importorskip("torch")

from scmam import demo
from scmam.study.tasks import planned


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "scmam.study.comparison.compare",
        lambda config, folder, **options: calls.append((config, folder, options)),
    )
    return calls


def test_it_compares_what_learns_with_what_does_not(tmp_path):
    tasks = planned(demo.DEMO, tmp_path, interpret=True)
    strategies = {name.partition(",")[0] for name in (task.name for task in tasks)}
    baselines = {"baseline pca", "baseline logistic-regression"}
    assert strategies == {"uniform", "uniform-half", "mam"} | baselines
    assert len(demo.DEMO.study.seeds) == 3
    assert demo.DEMO.study.reference in demo.DEMO.study.arms
    assert demo.DEMO.data.path is None  # the cells that come with scanpy: nothing is downloaded
    assert any("--interpret" in task.arguments for task in tasks if task.name.startswith("mam,"))


def test_it_is_an_ordinary_study(calls, tmp_path):
    demo.run(tmp_path / "report", progress=False)
    assert calls == [(demo.DEMO, tmp_path / "report", {"progress": False})]


def test_more_jobs(calls, tmp_path):
    demo.run(tmp_path / "report", jobs=5)
    assert calls[0][0].study.jobs == 5
    assert calls[0][0].training == demo.DEMO.training
