"""The documentation is built without a warning and without a network, has an entry for every public
name, and its examples run.
"""

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from mam_kernels.testing.paper import PaperMasking
from tests.examples import run_examples

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

BUILD = """
import socket, sys

def refused(*arguments, **options):
    raise OSError("the build asked for the network")

socket.socket.connect = socket.getaddrinfo = refused
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages, built as `make docs` builds them."""
    for package in (
        "sphinx",
        "myst_nb",
        "furo",
        "anndata",
        "pydantic",
        "sklearn",
        "typer",
    ):
        pytest.importorskip(package, reason="the documentation cannot be built here")
    folder = tmp_path_factory.mktemp("docs")
    command = [
        sys.executable,
        "-c",
        BUILD,
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(folder / "doctrees"),
        str(DOCS),
    ]
    done = subprocess.run(
        [*command, str(folder / "html")], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def entries(site) -> dict[str, str]:
    """What has an entry in the reference, and its kind; from the inventory, whose lines after the
    head are compressed.
    """
    head, lines = (site / "objects.inv").read_bytes().split(b"compressed using zlib.\n")
    assert b"mam-kernels" in head
    return dict(line.split(" ")[:2] for line in zlib.decompress(lines).decode().splitlines())


@pytest.mark.parametrize(
    "module",
    ["mam_kernels", "mam_kernels.reference", "mam_kernels.testing", "mam_kernels.weights", "scmam"],
)
def test_every_public_name_has_an_entry(entries, module):
    names = [f"{module}.{name}" for name in importlib.import_module(module).__all__]
    assert names
    assert not [name for name in names if name not in entries]


def test_entries_are_of_the_right_kind_and_say_something(site, entries):
    assert entries["mam_kernels.MultinomialAttentionMasking"] == "py:class"
    assert entries["mam_kernels.MultinomialAttentionMasking.forward"] == "py:method"
    assert entries["mam_kernels.MaskingOutput.mask"] == "py:attribute"
    assert entries["mam_kernels.weights"] == "py:module"
    assert entries["mam_kernels.weights.WeightsError"] == "py:exception"
    assert entries["scmam.pretrain"] == "py:function"
    page = (site / "api" / "mam_kernels.html").read_text()
    assert "(B, L) bool, True = hidden" in page
    assert "Alias for field number" not in page
    assert (
        "optimizer steps (whole number from 0; default 400)"
        in (site / "api" / "settings.html").read_text()
    )


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site):
    pages = [
        path.relative_to(DOCS).with_suffix(".html")
        for path in DOCS.rglob("*.md")
        if "_build" not in path.parts
    ]
    assert len(pages) >= 8
    assert not [page for page in pages if not (site / page).is_file()]
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*\"",
            (site / page).read_text(),
        )
        assert not loaded, page


def test_the_examples_of_the_first_page_run():
    assert run_examples(DOCS / "index.md")["out"].mask.any()


def test_the_examples_about_weights_run(tmp_path, monkeypatch, capsys):
    for package in ("anndata", "pydantic", "safetensors", "scanpy"):
        pytest.importorskip(package, reason="the single-cell layer is not installed")
    import scmam

    state = PaperMasking().state_dict()
    adapter = {"output_proj.weight": torch.ones(32, 256), "output_proj.bias": torch.ones(32)}
    torch.save(
        {"state_dict": {f"model.mam.{name}": tensor for name, tensor in (state | adapter).items()}},
        tmp_path / "published.ckpt",
    )
    renamed = {
        name.replace("cross_attention", "attention").replace(
            "input_proj", "value_projection"
        ): tensor
        for name, tensor in state.items()
    }
    torch.save(renamed | {"adapter.weight": torch.ones(2, 256)}, tmp_path / "renamed.ckpt")
    small = {
        "data.genes": "variable",
        "data.num_genes": 50,
        "model.width": 8,
        "masking.strategy": "none",
    }
    run = scmam.pretrain(scmam.load_config(None, small), tmp_path / "run", progress=False)
    scmam.export_model(run, tmp_path / "model.safetensors")

    monkeypatch.chdir(tmp_path)
    names = run_examples(DOCS / "weights.md")
    assert names["vectors"].shape == (700, 16)
    assert (
        "masker.safetensors: expected a safetensors file; got a safetensors file cut short: "
        "100,000 bytes of " in capsys.readouterr().out
    )
