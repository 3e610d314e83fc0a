"""The examination of an installation: what it finds in order, and that it does not overlook what is
wrong.
"""

import math
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam import doctor
from scmam.doctor import Check, examine, summary, versions


def by_name(checks):
    return {check.name: check for check in checks}


def test_the_quick_look(capsys):
    found = by_name(examine(validation=False, progress=False))
    assert capsys.readouterr().out == ""
    assert found["torch"].detail == version("torch")
    assert found["python"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert found["backend reference"].ok
    assert "masks hold" not in found


def test_versions_know_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] is None
    found = by_name(doctor._versions())
    assert not found["no-such-package"].ok
    assert found["no-such-package"].detail == "not installed"


def test_the_validation_run_on_real_cells(monkeypatch, capsys):
    pytest.importorskip("scanpy", reason="the single-cell layer is not installed")
    pytest.importorskip("lightning", reason="the single-cell layer is not installed")
    # It has tests of its own.
    monkeypatch.setattr(
        "mam_kernels.testing.check", lambda: "heading\ncpu value path float32 1 2 ok it agrees"
    )
    examination = examine(progress=True)
    assert "validation run ..." in capsys.readouterr().out
    found = by_name(examination)
    for name in ("loss falls", "runs repeat", "masks hold", "check cpu"):
        assert found[name].ok, found[name]
    assert found["check cpu"].detail == "value path float32 1 2 ok it agrees"
    assert found["masks hold"].detail == "229 of 765 genes hidden in each cell, 229 asked"


@pytest.mark.parametrize(
    ("losses", "ok", "detail"),
    [
        ([3.0, 2.0, 1.0], True, "loss 3.000 to 1.000 in 3 steps"),
        ([1.0, 2.0, 3.0], False, "loss 1.000 to 3.000 in 3 steps"),
        ([3.0, math.nan, 1.0], False, "loss not finite in 3 steps"),
        ([], False, "loss not finite in 0 steps"),
    ],
)
def test_a_loss_that_does_not_fall_is_seen(losses, ok, detail):
    assert doctor._falls(losses) == Check("loss falls", ok, detail)


def test_masks_that_do_not_repeat_are_seen():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)

    def strategy(cells, draw):
        return SimpleNamespace(
            mask=torch.rand(cells.values.shape, generator=generator).argsort(dim=1) < 3
        )

    batch = SimpleNamespace(counts=torch.ones(2, 10), depth=torch.ones(2), cell_ids=torch.arange(2))
    cells = SimpleNamespace(num_cells=2, num_genes=10, batch=lambda indices: batch)
    run = SimpleNamespace(load=lambda: SimpleNamespace(strategy=strategy))
    assert not doctor._masks_hold(run, cells).ok
    fixed = torch.arange(10).repeat(2, 1)
    run = SimpleNamespace(
        load=lambda: SimpleNamespace(
            strategy=lambda _, draw: SimpleNamespace(mask=(fixed + draw.step) % 10 < 3)
        )
    )
    assert doctor._masks_hold(run, cells) == Check(
        "masks hold", True, "3 of 10 genes hidden in each cell, 3 asked"
    )


def test_what_breaks_is_found_and_the_rest_still_looked_at(monkeypatch):
    def broken():
        raise OSError("no device")

    monkeypatch.setattr(doctor, "_devices", broken)
    examination = examine(validation=False, progress=False)
    found = by_name(examination)
    assert found["devices"] == Check("devices", False, "OSError: no device")
    assert "backend reference" in found
    assert "WRONG devices" in summary(examination)
    assert summary(examination).splitlines()[-1].startswith("wrong: devices")


def test_too_little_room_is_seen(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**29))
    disk = by_name(doctor._room())["free disk"]
    assert not disk.ok
    assert disk.detail == "0.5 GiB here (at least 1)"
