"""The command line: its manual, how flags become a configuration, and how it ends.

What the commands compute has tests of its own.
"""

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("typer", reason="the single-cell layer is not installed")
pytest.importorskip("yaml", reason="the single-cell layer is not installed")

import yaml
from scmam import cli
from scmam.cli.options import configuration, numbers
from scmam.cli.settings_text import commented_yaml
from scmam.config import Config, validated
from scmam.errors import CellsError, ConfigError

COMMANDS = (
    "inspect",
    "config",
    "pretrain",
    "evaluate",
    "genes",
    "export",
    "compare",
    "report",
    "demo",
    "doctor",
)


@pytest.fixture
def scmam(capsys, monkeypatch):
    """Run the command line here; gives its status, output and errors."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code or 0, out=captured.out, err=captured.err)

    return run


# The manual


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_page_with_examples(scmam, command):
    page = scmam(command, "--help")
    assert page.status == 0
    assert "Examples" in page.out
    assert f"scmam {command}" in page.out


def test_brackets_of_a_list_are_shown(scmam):
    page = " ".join(scmam("benchmark", "--help").out.split())
    assert "evaluation.methods=[fine-tuning]" in page


def test_the_first_page_lists_every_command(scmam):
    page = scmam("--help").out
    assert all(f"│ {command} " in page for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["config"], ["config", "--arms"]]
)
def test_looking_things_up_imports_nothing_heavy(arguments):
    script = f"""
import sys
from scmam.cli import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert not ended.code
heavy = {{"torch", "anndata", "scanpy", "lightning", "pandas", "sklearn", "matplotlib", "numpy"}}
heavy = (heavy | {{"scipy", "distributed"}}) & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_is_a_module_too():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "scmam", "config"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert validated(yaml.safe_load(done.stdout)) == Config()


# Configuration


def test_the_printed_configuration_reads_back_and_explains_every_setting(scmam):
    config = validated(
        {
            "training": {"steps": 7, "lr": 1e-5},
            "study": {"custom": {"mine": {"like": "mam", "ratio": 0.5}}, "seeds": [4]},
        }
    )
    text = commented_yaml(config)
    assert validated(yaml.safe_load(text)) == config
    lines = text.splitlines()
    settings = [
        index
        for index, line in enumerate(lines)
        if line.startswith("  ") and not line.lstrip().startswith("#")
    ]
    assert len(settings) == sum(
        len(type(getattr(config, section)).model_fields) for section in Config.model_fields
    )
    assert all(lines[index - 1].lstrip().startswith("#") for index in settings)
    assert "  # optimizer steps (whole number from 0; default 400)\n  steps: 7\n" in text
    assert max(map(len, lines)) <= 112


def test_flags_go_before_set_and_set_before_the_file(scmam, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("training: {steps: 1, lr: 0.5, seed: 3}\n")
    config = configuration(
        file, ["training.steps=2", "training.lr=0.25"], {"training.steps": 5, "data.label": None}
    )
    assert (config.training.steps, config.training.lr, config.training.seed) == (5, 0.25, 3)


def test_config_prints_the_resolved_configuration(scmam, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("study: {seeds: [5, 6]}\n")
    shown = scmam("config", "--config", file, "--set", "masking.ratio=0.5")
    config = validated(yaml.safe_load(shown.out))
    assert config.study.seeds == (5, 6)
    assert config.masking.ratio == 0.5


def test_config_lists_the_arms(scmam):
    listed = scmam("config", "--arms").out
    assert "uniform-matched " in listed
    assert "no pretraining" in listed


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", [0]), ("0-3,7", [0, 1, 2, 3, 7]), (" 2 , 4-5", [2, 4, 5]), (None, None)],
)
def test_numbers(text, expected):
    assert numbers(text, "--seeds") == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1.5", "1;2"])
def test_numbers_that_are_none(text):
    with pytest.raises(ConfigError, match="--seeds: expected numbers and ranges such as 0-4,7"):
        numbers(text, "--seeds")


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["config", "--config", "none.yaml"],
            "none.yaml: no such file; give the path of a YAML file, or none for the defaults",
        ),
        (["config", "--set", "training.step=1"], "configuration: training.step: unknown setting"),
        (
            ["config", "--set", "training=1"],
            "training: expected section.name, such as training.steps",
        ),
        (
            ["config", "--set", "steps"],
            "steps: expected section.name=value, such as training.steps=200",
        ),
        (
            ["pretrain", "--out", "run", "--steps", "-1"],
            "configuration: training.steps: input should be greater than or equal to 0; got -1",
        ),
        (
            ["pretrain", "--out", "run", "--arm", "mam", "--strategy", "mam"],
            "--arm and --strategy both say how to mask; give one of them",
        ),
        (
            ["pretrain", "--out", "run", "--arm", "mum"],
            "study.arms: expected some of none, uniform",
        ),
        (
            ["pretrain", "--out", "run", "--arm", "uniform-matched"],
            "--arm uniform-matched takes the hidden fractions of another run",
        ),
        (
            ["compare", "--out", "study", "--seeds", "many"],
            "--seeds: expected numbers and ranges such as 0-4,7; got 'many'",
        ),
        (
            ["compare", "--out", "study", "--arms", "none,mam"],
            "study.reference: uniform is not among the arms (none, mam); name one of them, or add"
            " it to study.arms",
        ),
        (
            ["compare", "--out", "study", "--arms", "uniform,mum"],
            "study.arms: expected some of none, uniform",
        ),
        (
            ["compare", "--out", "study", "--arms", "uniform,uniform-matched"],
            "study.arms: uniform-matched takes its hidden fractions from mam",
        ),
        (
            ["compare", "--out", "study", "--arms", "uniform,uniform"],
            "study.arms: expected each once, got uniform, uniform",
        ),
        (
            ["compare", "--out", "study", "--methods", ""],
            "evaluation.methods: expected at least one, got none",
        ),
        (["evaluate", "no-run"], "no-run: no such folder"),
        (["genes", "no-run"], "no-run: no such folder"),
        (["export", "no-run", "model.safetensors"], "no-run: no such folder"),
        (["report", "no-study"], "no-study: "),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    scmam, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    ended = scmam(*arguments)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_flag_that_does_not_exist_is_said_with_the_way_to_the_manual(scmam):
    ended = scmam("pretrain", "--stepps", "1")
    assert ended.status == 2
    assert "--stepps" in ended.err


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("scmam.doctor.examine", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_ctrl_c_says_how_to_go_on(scmam, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("scmam.study.comparison.compare", interrupted)
    ended = scmam("compare", "--out", tmp_path / "study")
    assert ended.status == 130
    assert ended.err == (
        "\ninterrupted: runs that were finished are kept, others go on from their last checkpoint,"
        " by the same command\n"
    )


# What the commands are told and what they say, with what they call replaced


def test_pretrain_is_called_with_what_the_flags_say(scmam, monkeypatch, tmp_path):
    training = pytest.importorskip("scmam.training")
    calls = []

    def pretrain(config, folder, **options):
        calls.append((config, folder, options))
        return SimpleNamespace(folder=folder, record={"steps": 9, "cells": 700, "seconds": 1.2})

    monkeypatch.setattr(training, "pretrain", pretrain)
    ended = scmam(
        "pretrain",
        "--out",
        tmp_path / "run",
        "--arm",
        "mam",
        "--seed",
        5,
        "--steps",
        9,
        "--data",
        "x.h5ad",
        "-s",
        "data.label=t",
        "-q",
    )
    assert ended.status == 0
    ((config, folder, options),) = calls
    assert (config.masking.strategy, config.masking.injection) == ("mam", "decoder")
    assert (
        config.training.seed,
        config.training.steps,
        str(config.data.path),
        config.data.label,
    ) == (5, 9, "x.h5ad", "t")
    assert folder == tmp_path / "run"
    assert options == {"progress": False}
    assert f"Run: {tmp_path / 'run'} (9 steps on 700 cells in 1 s)" in ended.out


def test_compare_is_called_with_what_the_flags_say(scmam, monkeypatch, tmp_path):
    calls = []

    def compare(config, folder, **options):
        calls.append((config.study, options))
        raise CellsError("stop here")

    monkeypatch.setattr("scmam.study.comparison.compare", compare)
    arguments = [
        "--arms",
        "uniform, mam",
        "--seeds",
        "0-2",
        "--baselines",
        "",
        "--jobs",
        3,
        "--reference",
        "mam",
        "--no-genes",
    ]
    assert scmam("compare", "--out", tmp_path / "study", *arguments).err == "error: stop here\n"
    ((study, options),) = calls
    assert (study.arms, study.seeds, study.baselines, study.jobs, study.reference) == (
        ("uniform", "mam"),
        (0, 1, 2),
        (),
        3,
        "mam",
    )
    assert options == {"interpret": False, "progress": True}


def test_doctor_says_what_is_wrong(scmam, monkeypatch):
    from scmam.doctor import Check

    monkeypatch.setattr(
        "scmam.doctor.examine",
        lambda **options: [Check("disk", True, "much"), Check("gpu", False, "broken")],
    )
    ended = scmam("doctor", "--fast")
    assert ended.status == 1
    assert ended.out == "ok    disk  much\nWRONG gpu   broken\nwrong: gpu\n"


# Packages that are not installed


@pytest.mark.parametrize("package", ["typer", "pydantic", "yaml"])
def test_without_the_extra_it_says_what_to_install(package):
    script = f"""
import sys
sys.modules[{package!r}] = None
from scmam.__main__ import main
main()
"""
    done = _python(script)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f'error: scmam needs the package {package}; pip install "mam-kernels[scmam]"\n'
    )


def test_the_installed_command_looks_before_it_imports():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["scmam"] == "scmam.__main__:main"
    assert {"distributed", "bokeh", "typer"} <= set(project["optional-dependencies"]["scmam"])


def test_a_command_without_its_package_says_what_to_install():
    script = """
import sys
sys.modules["anndata"] = None
from scmam.__main__ import main
sys.argv = ["scmam", "inspect"]
main()
"""
    done = _python(script)
    assert done.returncode == 2
    assert done.stderr == (
        'error: scmam needs the package anndata; pip install "mam-kernels[scmam]"\n'
    )


def test_a_module_of_ours_that_is_missing_is_a_defect():
    done = _python(
        "import sys; sys.modules['scmam.cli'] = None\nfrom scmam.__main__ import main\nmain()"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_to_is_said_in_one_line(scmam, monkeypatch, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "place")

    monkeypatch.setattr("scmam.study.comparison.compare", refuse)
    done = scmam("compare", "--out", "study")
    assert done.status == 2
    assert done.err == f"error: place: {os.strerror(number)}\n"


def test_a_scheduler_goes_into_the_configuration(scmam, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "scmam.study.comparison.compare", lambda config, *rest, **options: asked.append(config)
    )
    monkeypatch.setattr("scmam.cli.studies._conclude", lambda study: None)
    scmam("compare", "--out", "study", "--scheduler", "tcp://host:8786")
    assert asked[0].study.scheduler == "tcp://host:8786"


def _python(script):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
