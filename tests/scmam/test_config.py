"""Configuration: YAML in and out, overrides, and errors that name what is wrong; the arms of a
study.
"""

import pytest

pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam.config import (
    Config,
    as_yaml,
    fingerprint,
    flat,
    load_config,
    with_absolute_paths,
    with_settings,
)
from scmam.errors import ConfigError
from scmam.study.arms import ARMS, arm_config


def test_yaml_goes_out_and_comes_back(tmp_path):
    config = load_config(None, ["training.steps=7", "study.seeds=[3, 4]", "data.path=cells.h5ad"])
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(config))
    assert load_config(path) == config
    assert (config.training.steps, config.study.seeds, str(config.data.path)) == (
        7,
        (3, 4),
        "cells.h5ad",
    )


def test_a_file_names_what_differs_and_flags_override_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  steps: 50\n  batch_size: 8\nmasking:\n  corruption: 80/10/10\n")
    config = load_config(path, {"training.steps": 60})
    assert (config.training.steps, config.training.batch_size, config.masking.corruption) == (
        60,
        8,
        "80/10/10",
    )
    assert config.model == Config().model
    path.write_text("")
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=5", "configuration: training.stepz: unknown setting"),
        (
            "masking.ratio=2",
            "configuration: masking.ratio: input should be less than or equal to 1; got 2",
        ),
        (
            "model.size=huge",
            "configuration: model.size: input should be 'tiny', 'small', 'base' or 'paper'; got"
            " 'huge'",
        ),
        (
            "data.genes=vocabulary",
            "configuration: data: genes: vocabulary and a vocabulary file go together; give both"
            " or neither",
        ),
        (
            "masking.strategy=matched",
            "configuration: masking: strategy: matched, replayed, permuted and matched_to go"
            " together; give both or neither",
        ),
        ("training=5", "training=5"),
        ("nothing.here=1", "configuration: nothing: unknown setting"),
        ("training.lr=.nan", "training.lr"),
        (
            "evaluation.part=development",
            "configuration: evaluation: part: development needs a share of the cells",
        ),
        (
            "training.steps",
            "training.steps: expected section.name=value, such as training.steps=200",
        ),
    ],
)
def test_each_mistake_is_one_line(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)
    assert message.split("=")[0] in str(error.value)
    if "configuration" in message:
        assert message in str(error.value)


def test_settings_of_masking_that_do_not_fit_together():
    for settings, message in (
        ({"strategy": "mam-embedding", "zero_ratio": None}, "mam-embedding draws among the non-z"),
        ({"ratio": 0.5, "ratio_to": 0.4}, "ratio_to: expected at least ratio = 0.5; got 0.4"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(None, {f"masking.{name}": value for name, value in settings.items()})


def test_files_that_are_not_yaml(tmp_path):
    with pytest.raises(
        ConfigError, match=r"absent\.yaml: no such file; give the path of a YAML file"
    ):
        load_config(tmp_path / "absent.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not a YAML file \(.*\)$"):
        load_config(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(
        ConfigError, match=r"bad\.yaml: expected sections \(data, model, .*\), got list"
    ):
        load_config(path)
    path.write_text("training: 5\n")
    with pytest.raises(ConfigError, match="training: expected a section of settings, got 5"):
        load_config(path, ["training.steps=1"])


def test_fingerprint_is_of_the_settings_not_of_their_order():
    settings = flat(Config())
    other = flat(with_settings(Config(), study={"jobs": 1}))
    assert fingerprint(settings) != fingerprint(other)
    assert fingerprint(settings) == fingerprint(dict(reversed(settings.items())))


@pytest.mark.parametrize("depth", [300, 5_000])
def test_settings_that_are_nested_too_deep_are_refused_in_one_line(tmp_path, depth):
    deep = "[" * depth + "]" * depth
    (tmp_path / "config.yaml").write_text(f"study:\n  arms: {deep}\n")
    with pytest.raises(ConfigError) as in_a_file:
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as in_a_flag:
        load_config(None, [f"study.arms={deep}"])
    for refused in (in_a_file, in_a_flag):
        assert len(str(refused.value)) < 400
        assert len(str(refused.value).splitlines()) == 1


def test_names_with_line_feeds_do_not_break_the_line(tmp_path):
    (tmp_path / "config.yaml").write_text('training:\n  "a\\nb\\u2028c": 1\n')
    with pytest.raises(ConfigError, match=r"training\.a\\nb\\u2028c: unknown setting$"):
        load_config(tmp_path / "config.yaml")


# Arms


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_is_a_configuration(name):
    config = arm_config(Config(), name, 4)
    assert config.training.seed == 4
    assert config.masking.latent_dim == Config().masking.latent_dim
    learns_by_context = config.masking.strategy.startswith("mam") and name != "mam-reward"
    assert (config.masking.injection != "none") >= learns_by_context
    assert (config.masking.corruption_view == "both") == (
        name in ("uniform-both", "mam-mixed-both")
    )
    if name == "uniform":
        assert (config.masking.strategy, config.masking.corruption, config.masking.zero_ratio) == (
            "uniform",
            "80/10/10",
            None,
        )


def test_custom_arms_start_from_uniform_or_another():
    custom = {
        "wide": {"like": "mam", "ratio": 0.5, "training.masking_lr": 1e-4, "evaluation.lr": 0.1},
        "plain": {"ratio": 0.1},
    }
    config = load_config(None, {"study.custom": custom})
    wide, plain = arm_config(config, "wide", 0), arm_config(config, "plain", 1)
    assert (wide.evaluation.lr, plain.evaluation.lr) == (0.1, config.evaluation.lr)
    assert (wide.masking.strategy, wide.masking.ratio, wide.training.masking_lr) == (
        "mam",
        0.5,
        1e-4,
    )
    undecayed = arm_config(
        load_config(None, {"study.custom": {"own": {"like": "mam-undecayed", "ratio": 0.5}}}),
        "own",
        0,
    )
    assert (undecayed.training.masking_weight_decay, undecayed.masking.ratio) == (0.0, 0.5)
    assert (plain.masking.strategy, plain.masking.ratio, plain.training.seed) == ("uniform", 0.1, 1)


@pytest.mark.parametrize(
    ("custom", "name", "message"),
    [
        ({}, "mamm", "study.arms: expected some of none, uniform, .*; got 'mamm'"),
        ({"a": {"like": "b"}}, "a", "study.arms: expected some of none, uniform, .*; got 'b'"),
        (
            {"a": {"data.path": "x"}},
            "a",
            "study.custom.a.data.path: expected a setting of masking, training.NAME, model.NAME or"
            " evalu",
        ),
        ({"a": {"ratio": 3}}, "a", "masking.ratio: input should be less than or equal to 1; got 3"),
    ],
)
def test_arms_that_do_not_exist_or_fit(custom, name, message):
    config = load_config(None, {"study.custom": custom})
    with pytest.raises(ConfigError, match=message):
        arm_config(config, name, 0)


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = load_config(None, {"data.path": ["a.h5ad", "b.h5ad"], "training.start_from": "run"})
    config = with_absolute_paths(several)
    assert config.data.path == (tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    assert config.training.start_from == tmp_path / "run"
    assert with_absolute_paths(load_config(None, {"data.path": "a.h5ad"})).data.path == (
        tmp_path / "a.h5ad"
    )
    assert with_absolute_paths(Config()) == Config()


def test_the_default_masking_is_that_of_the_arm_uniform():
    """Arms start from the defaults: with others every recorded arm would change in silence."""
    masking = load_config(None).masking
    assert masking == arm_config(load_config(None), "uniform", 0).masking
    assert (masking.strategy, masking.ratio, masking.zero_ratio) == ("uniform", 0.3, None)
    assert (masking.corruption, masking.corruption_view) == ("80/10/10", "decoder")
