"""What ``backend=None`` takes on a GPU: what is measured fastest, else what is bounded fastest. No
GPU is needed: which backends run is pretended.
"""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mam_kernels as mam
from benchmarks.evidence import bounds, collected, measured
from mam_kernels._core import dispatch, evidence


@pytest.fixture(autouse=True)
def _fresh_choices():
    """Every test starts and ends without cached choices."""
    dispatch.forget()
    yield
    dispatch.forget()


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
    """As on a machine with a GPU, where of the GPU's backends these run."""
    devices = {"triton": "cuda", "cuda": "cuda", "cpu": "cpu"}
    monkeypatch.setattr(
        dispatch, "_missing", lambda name: None if name in available else "it was not built"
    )
    monkeypatch.setattr(dispatch, "_device_of", devices.get)
    for cached in (dispatch.obstacle, dispatch.resolve):
        cached.cache_clear()


def know(monkeypatch: pytest.MonkeyPatch, folder: Path, **kinds: dict[str, dict]) -> None:
    """As if these were the figures: kind -> path -> backend -> microseconds."""
    file = folder / "evidence.json"
    content = {
        kind: {"device": f"a {kind} GPU", "microseconds": by_path}
        for kind, by_path in kinds.items()
    }
    file.write_text(json.dumps(content))
    monkeypatch.setattr(evidence, "FILE", file)
    monkeypatch.setattr(evidence, "figures", evidence.figures.__wrapped__)


def on_gpu(op: str = "sample_without_replacement", backend: str = dispatch.AUTOMATIC) -> str:
    return dispatch.resolve(backend, op, "cuda", torch.float32)


def explained(op: str = "sample_without_replacement", **options) -> dispatch.Explanation:
    with FakeTensorMode():
        return mam.explain(op, torch.empty(2, 3, device="cuda"), **options)


def test_a_gpu_takes_the_backend_with_the_lowest_bound(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, "triton", "cuda")
    know(monkeypatch, tmp_path, bound={"selection": {"triton": 22.75, "cuda": 11.91}})
    assert on_gpu() == "cuda"
    reasons = explained().reasons
    assert reasons["cuda"] == "runs, the fastest that can: bound 11.9 us on a bound GPU"
    assert reasons["triton"] == "could run, but cuda is faster: bound 22.8 us on a bound GPU"
    assert reasons["reference"] == "could run, but cuda comes first"


def test_a_measurement_counts_more_than_a_bound(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, "triton", "cuda")
    know(
        monkeypatch,
        tmp_path,
        bound={"selection": {"triton": 22.75, "cuda": 11.91}},
        measured={"selection": {"triton": 25.0, "cuda": 31.0}},
    )
    assert on_gpu() == "triton"
    assert explained().reasons["triton"].endswith("measured 25.0 us on a measured GPU")


def test_a_backend_without_a_figure_comes_after_those_with_one(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, "triton", "cuda")
    know(monkeypatch, tmp_path, bound={"selection": {"cuda": 99.0}})
    assert on_gpu() == "cuda"
    assert explained().reasons["triton"] == "could run, but cuda comes first"
    assert on_gpu("token_mask") == "triton"  # nothing is known: the order of CHOICES


def test_the_fastest_is_that_of_what_runs(monkeypatch, tmp_path):
    know(monkeypatch, tmp_path, bound={"selection": {"triton": 22.75, "cuda": 11.91}})
    pretend_gpu(monkeypatch, "triton")
    assert on_gpu() == "triton"
    assert explained().reasons["cuda"] == "it was not built"
    pretend_gpu(monkeypatch)
    assert on_gpu() == "reference"


def test_a_name_wins_over_the_figures(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, "triton", "cuda")
    know(monkeypatch, tmp_path, bound={"selection": {"triton": 22.75, "cuda": 11.91}})
    assert on_gpu(backend="triton") == "triton"
    assert explained(backend="triton").reasons["cuda"] == "could run, but triton was named"
    with mam.use_backend("triton"):
        assert explained().chosen == "triton"
    monkeypatch.setattr(dispatch, "_environment", "triton")
    assert explained().chosen == "triton"


def test_the_figures_do_not_count_on_a_cpu(monkeypatch, tmp_path):
    know(monkeypatch, tmp_path, bound={"selection": {"reference": 1.0, "cpu": 2.0}})
    explanation = mam.explain("sample_without_replacement", torch.ones(2, 3))
    assert explanation.chosen == ("cpu" if mam.backends()["cpu"] else "reference")
    assert explanation.reasons[explanation.chosen] == "runs: the first that can"


def test_both_passes_of_an_operation_are_chosen_by_one_figure():
    assert evidence.PATHS["latent_attention"] == evidence.PATHS["latent_attention_backward"]
    assert set(evidence.PATHS) == set(dispatch.IMPLEMENTATIONS)


def test_the_package_knows_what_was_counted_and_measured():
    assert json.loads(evidence.FILE.read_text()) == collected(), "run python -m benchmarks.evidence"
    figures = evidence.figures("sample_without_replacement")
    assert set(figures) == {"triton", "cuda"}
    assert all(figure.microseconds > 0 for figure in figures.values())


@pytest.mark.parametrize("op", [op for op, path in evidence.PATHS.items() if "token" in path])
def test_tokens_go_to_triton_by_the_committed_figures(op, monkeypatch):
    pretend_gpu(monkeypatch, "triton", "cuda")
    figures = evidence.figures(op)
    assert figures["triton"].microseconds < figures["cuda"].microseconds
    assert on_gpu(op) == "triton"
    assert "triton is faster" in explained(op).reasons["cuda"]


def test_what_was_measured_is_read_from_the_records_of_a_device(tmp_path):
    assert measured(tmp_path) is None
    records = [
        {"stage": "machine", "environment": {"gpu": {"name": "a GPU"}}},
        {"path": "selection", "backend": "cuda", "right": True},
        {"path": "selection", "backend": "cuda", "as_called_us": 30.0, "replayed_us": 18.123},
        {"path": "selection", "backend": "triton", "as_called_us": 40.0},
        {"path": "selection", "backend": "triton", "shape": "8 warps", "as_called_us": 1.0},
        {"rival": "torch.topk of given keys", "as_called_us": 2.0},
        {"stage": "value_path, cuda", "ended": "failed: exit status 1"},
    ]
    (tmp_path / "gpu.json").write_text(json.dumps(records))
    assert measured(tmp_path) == ("a GPU", {"selection": {"cuda": 18.12, "triton": 40.0}})
    assert collected(tmp_path)["measured"] == {
        "device": "a GPU",
        "microseconds": {"selection": {"triton": 40.0, "cuda": 18.12}},
    }
    (tmp_path / "gpu.json").write_text(json.dumps(records[1:]))  # a rehearsal on a CPU
    assert measured(tmp_path) is None


def test_bounds_of_both_passes_are_added(tmp_path):
    assert bounds(tmp_path) == {}
    found = {"value_path": {"cuda": 27.0, "triton": 95.0}, "value_path_backward": {"cuda": 21.0}}
    (tmp_path / "machine_code.json").write_text(json.dumps({"bounds_us": found}))
    assert bounds(tmp_path)["value_path_forward_backward"] == {"cuda": 48.0}
