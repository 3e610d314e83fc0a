"""Exported models: one file gives the embeddings and the masks of the run, and another file is
refused.
"""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="pretraining is Lightning's")
pytest.importorskip("scanpy", reason="the cells are scanpy's")
pytest.importorskip("safetensors", reason="models are exported to it")

import scmam
from scmam import cli
from scmam.config import Config, load_config
from scmam.data import Cells, open_cells
from scmam.errors import CellsError, ConfigError, RunError
from scmam.objective import build_pretraining
from scmam.runs import Run, create_folder, open_run, update_record, write_weights
from scmam.weights import export_model, load_model

import mam_kernels as mam
from tests.scmam.small import SMALL_MODEL

SMALL = {
    "data.label": "bulk_labels",
    "data.genes": "variable",
    "data.num_genes": 60,
    **SMALL_MODEL,
    "masking.ratio": 0.25,
    "training.batch_size": 8,
    "training.steps": 3,
    "training.validation": 0,
    "training.checkpoint_every": 3,
    "evaluation.folds": 2,
}


def settings(**changes: object) -> Config:
    """A small run; names of `changes` are section__name."""
    return load_config(
        None, {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    )


@pytest.fixture(scope="module")
def cells() -> Cells:
    """A hundred real cells."""
    return open_cells(settings().data).subset(np.arange(0, 700, 7))


@pytest.fixture(scope="module")
def run(cells, tmp_path_factory) -> Run:
    """A finished run, not to be changed."""
    return scmam.pretrain(
        settings(masking__injection="decoder"),
        tmp_path_factory.mktemp("runs") / "mam",
        cells=cells,
        progress=False,
    )


@pytest.fixture(scope="module")
def content(run, tmp_path_factory) -> bytes:
    return export_model(run, tmp_path_factory.mktemp("models") / "mam.safetensors").read_bytes()


@pytest.fixture
def file(content, tmp_path) -> Path:
    (tmp_path / "mam.safetensors").write_bytes(content)
    return tmp_path / "mam.safetensors"


def untrained(
    folder: Path, cells: Cells, schedule: torch.Tensor | None = None, **changes: object
) -> Run:
    """A run folder as pretraining leaves it, with the first weights."""
    config = settings(**changes)
    create_folder(folder, config, cells.genes, {"status": "running", "steps": 0}, schedule)
    write_weights(
        folder,
        config,
        cells.genes,
        build_pretraining(config, cells.num_genes, schedule=schedule).state_dict(),
    )
    update_record(folder, status="done")
    return open_run(folder)


def header_of(content: bytes) -> dict:
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


# What comes back


def test_embeddings_are_those_of_the_run_folder(run, file, cells):
    scmam.evaluate(run, cells, run.config.evaluation, methods=["linear-probe"], progress=False)
    vectors = load_model(file).embed(cells)
    with np.load(run.folder / "evaluation" / "embedding.npz") as stored:
        np.testing.assert_array_equal(vectors.astype(np.float16), stored["features"])
    with torch.inference_mode():
        np.testing.assert_allclose(
            vectors, run.load().features(cells.batch(np.arange(len(cells)))).numpy(), atol=1e-5
        )
    assert vectors.shape == (len(cells), 16)
    assert vectors.std(axis=0).min() > 1e-4


def test_cells_are_matched_by_the_names_of_their_genes(file, cells):
    everything = open_cells(settings(data__genes="all").data).subset(np.arange(0, 700, 7))
    assert everything.num_genes > cells.num_genes
    model = load_model(file)
    np.testing.assert_allclose(model.embed(everything), model.embed(cells), atol=1e-6)
    with pytest.raises(CellsError) as caught:
        replace(model, genes=("no gene", *model.genes[1:])).embed(cells)
    assert (
        f"1 of the 60 genes that {file} was trained on are not among the 60 of these cells (no"
        " gene)" in str(caught.value)
    )
    assert str(caught.value).endswith(
        "data.vocabulary=a file with the genes of the model, one a line"
    )


def test_masks_and_losses_are_those_of_the_run(run, file, cells):
    batch = cells.batch(np.arange(20))
    model, original = load_model(file).pretraining, run.load()
    assert not model.training
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            model(batch, seed=1, step=2), original(batch, seed=1, step=2), strict=True
        )
    )
    assert model(batch, seed=1, step=2).penalty > 0


def test_settings_genes_and_origin_come_along(run, file):
    model = scmam.load_model(file)
    assert model.config == run.config.model_copy(
        update={name: getattr(Config(), name) for name in ("evaluation", "study")}
    )
    assert model.genes == run.genes
    assert model.record == {
        name: run.record[name] for name in ("steps", "cells", "unit", "date", "versions")
    }
    assert (model.record["steps"], model.record["cells"]) == (3, 100)
    assert model.path == file


@pytest.mark.parametrize(
    "changes",
    [
        {"masking__slope_norm": 2.0, "masking__injection": "separate"},
        {"masking__strategy": "mam-embedding", "masking__zero_ratio": 0.1},
        {"masking__strategy": "uniform"},
        {"masking__strategy": "none", "training__loss": "nb"},
    ],
    ids=["fixed norm", "embeddings", "uniform", "none"],
)
def test_every_strategy_comes_back(cells, tmp_path, changes):
    run = untrained(tmp_path / "run", cells, **changes)
    model = load_model(
        export_model(run.folder, tmp_path / "new folder" / "model.safetensors")
    ).pretraining
    batch = cells.batch(np.arange(6))
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            model(batch, seed=1, step=0), run.load()(batch, seed=1, step=0), strict=True
        )
    )


def test_a_matched_run_keeps_its_shares(cells, tmp_path):
    schedule = torch.tensor([[0.1, 0.5], [0.2, 0.6]])
    (tmp_path / "mam").mkdir()
    run = untrained(
        tmp_path / "run",
        cells,
        schedule,
        masking__strategy="matched",
        masking__matched_to=str(tmp_path / "mam"),
    )
    model = load_model(export_model(run, tmp_path / "m.safetensors"))
    assert model.pretraining.strategy.shares.tolist() == schedule.tolist()
    assert model.config.masking.matched_to == "mam"


def test_the_file_names_no_folder_of_the_machine(cells, tmp_path):
    vocabulary = tmp_path / "secret" / "genes.txt"
    run = untrained(
        tmp_path / "run",
        cells,
        data__path="/home/someone/cells.h5ad",
        data__genes="vocabulary",
        data__vocabulary=str(vocabulary),
    )
    content = export_model(run, tmp_path / "m.safetensors").read_bytes()
    assert not [word for word in (b"/home", b"secret", str(tmp_path).encode()) if word in content]
    config = load_model(tmp_path / "m.safetensors").config
    assert (config.data.path, config.data.vocabulary) == (Path("cells.h5ad"), Path("genes.txt"))


def test_a_run_of_several_files_keeps_their_names(cells, tmp_path):
    run = untrained(tmp_path / "run", cells, data__path=["/secret/a.h5ad", "/secret/b.h5ad"])
    config = load_model(export_model(run, tmp_path / "m.safetensors")).config
    assert config.data.path == (Path("a.h5ad"), Path("b.h5ad"))


def test_the_masking_module_can_be_taken_out(run, file, tmp_path, cells):
    strategy = load_model(file).pretraining.strategy
    mam.weights.save(strategy.latents, tmp_path / "masker.safetensors")
    values = torch.log1p(cells.batch(np.arange(5)).counts)
    assert torch.equal(
        mam.weights.load(tmp_path / "masker.safetensors")(values, seed=0).mask,
        strategy.latents(values, seed=0).mask,
    )
    for source in (file, run.folder / "checkpoints" / "last.ckpt"):  # the second by Lightning
        found = mam.weights.from_published(source, num_heads=2)
        assert torch.equal(found(values, seed=0).context, strategy.latents(values, seed=0).context)


# What is refused


def test_a_run_that_is_not_done_is_refused(run, cells, tmp_path):
    unfinished = untrained(tmp_path / "run", cells)
    update_record(unfinished.folder, status="interrupted")
    with pytest.raises(RunError, match="pretraining is not done"):
        export_model(unfinished.folder, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.pt: expected a name that ends in \.safetensors$"):
        export_model(run, tmp_path / "model.pt")
    with pytest.raises(RunError, match=r"cannot be written there \(.*\); name another file$"):
        export_model(run, run.folder / "run.json" / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_that_are_no_exported_model_are_refused_in_one_line(file, content, run):
    masker = file.with_name("masker.safetensors")
    mam.weights.save(run.load().strategy.latents, masker)
    text = file.with_name("notes.safetensors")
    text.write_text("notes")
    cut = file.with_name("cut.safetensors")
    cut.write_bytes(content[:-100])
    for path, found in [
        (masker, "expected a scmam.Pretraining; got a MultinomialAttentionMasking"),
        (text, "expected a safetensors file; got a text file that begins with 'notes'"),
        (
            cut,
            "expected a safetensors file; got a safetensors file cut short:"
            f" {len(content) - 100:,} bytes of {len(content):,}",
        ),
        (
            run.folder / "model.pt",
            "expected a safetensors file; got a zip archive, such as torch.save writes",
        ),
        (run.folder, "expected a file; got a folder"),
        (file.with_name("none.safetensors"), "no such file"),
    ]:
        with pytest.raises(RunError) as caught:
            load_model(path)
        assert str(caught.value) == f"{path}: {found}"
    with pytest.raises(
        ValueError,
        match=r"expected a MultinomialAttentionMasking or ContextInjection; got a scmam\.Pre",
    ):
        mam.weights.load(file)


def test_headers_that_do_not_fit_the_weights_are_refused(file, content):
    length, header = struct.unpack("<Q", content[:8])[0], header_of(content)
    description = json.loads(header["__metadata__"]["mam_kernels"])

    def rewrite(**changes: object) -> None:
        arguments = {**description["arguments"], **changes}
        header["__metadata__"]["mam_kernels"] = json.dumps(
            {
                **description,
                "arguments": {
                    name: value for name, value in arguments.items() if value is not None
                },
            }
        )
        encoded = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    rewrite(genes=description["arguments"]["genes"][1:])
    with pytest.raises(
        RunError,
        match=r"expected the tensors of Pretraining; got .* of shape \(60, .*\) on cpu, .*"
        r" shape \(59, ",
    ):
        load_model(file)
    rewrite(genes=None)
    with pytest.raises(
        RunError, match=r"expected config, genes and record in its header; got no genes$"
    ):
        load_model(file)
    for sizes, message in [
        ({"model": {"width": 2**40}}, r"model\.width: .*65536; got 1099511627776"),
        ({"model": {"encoder_layers": 10**9}}, r"model\.encoder_layers: .*1024; got 1000000000"),
        ({"masking": {"num_latents": 10**400}}, r"masking\.num_latents: .*\.\.\."),
        ("tiny", r"; got 'tiny'"),
    ]:
        rewrite(config=sizes)
        with pytest.raises(ConfigError, match=message) as caught:
            load_model(file)
        assert len(str(caught.value)) < 300
    layers = {"width": 2**16, "encoder_layers": 2**10, "decoder_layers": 2**10}  # 200 TB
    rewrite(config={"model": layers})
    with pytest.raises(RunError, match=r"mam\.safetensors: expected the tensors of Pretraining"):
        load_model(file)
    rewrite(genes=[["a"]] * 60)
    with pytest.raises(RunError, match="expected a list of gene names in its header"):
        load_model(file)
    rewrite(config={"masking": {"colour": 3}})
    with pytest.raises(ConfigError, match=r"mam\.safetensors: masking\.colour: unknown setting"):
        load_model(file)


# The command


def test_the_command_writes_the_same_file(run, content, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(run.folder), str(tmp_path / "out.safetensors")])
    assert not ended.value.code
    assert (tmp_path / "out.safetensors").read_bytes() == content
    written = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in run.load().parameters())
    assert (
        f"Written: {tmp_path / 'out.safetensors'} ({parameters:,} parameters, 60 genes,"
        f" {len(content) / 1e6:.1f} MB)" in written
    )


def test_the_command_refuses_in_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(run.folder), str(tmp_path / "out.bin")])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'out.bin'}: expected a name that ends in .safetensors\n"
    )
