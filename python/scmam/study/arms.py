"""The arms of a study by name: which genes each one hides, and its purpose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import Config, with_settings
from ..errors import ConfigError


class Arm(NamedTuple):
    """One way to pretrain."""

    what: str  # for tables and help
    # Settings of `masking` that differ from a plain uniform mask without latents.
    masking: Mapping[str, Any]
    training: Mapping[str, Any] = {}  # settings of `training` that differ from the study's


PLAIN = {
    "strategy": "uniform",
    "ratio": 0.3,
    "ratio_to": None,
    "zero_ratio": None,
    "matched_to": None,
    "corruption": "80/10/10",
    "corruption_view": "decoder",
    "random_values": "observed",
    "injection": "none",
    "injection_start": "random",
    "latent_start": "standard",
    "penalty_norm": "squared",
    "context_from": "all",
    "temperature": 1.0,
    "slope_norm": None,
    "gradient": "none",
}

ARMS: dict[str, Arm] = {
    "none": Arm(
        "no pretraining: the encoder as initialised", {"strategy": "none"}, {"start_from": None}
    ),
    "uniform": Arm("uniform over all genes", {}),
    "uniform-both": Arm(
        "uniform over all genes, the corrupted values read by the encoder too",
        {"corruption_view": "both"},
    ),
    "uniform-split": Arm(
        "uniform, 30 % of the non-zeros and 3 % of the zeros", {"zero_ratio": 0.03}
    ),
    "uniform-stratified": Arm(
        "the published baseline: uniform, 30 % of the non-zeros and 30 % of the zeros, each counted"
        " by itself, random values up to the largest of the batch",
        {"zero_ratio": 0.3, "random_values": "uniform"},
    ),
    "uniform-stratified-token": Arm(
        "the same, every hidden gene behind a mask token", {"zero_ratio": 0.3, "corruption": "all"}
    ),
    "uniform-half": Arm(
        "uniform, 50 % of the non-zeros and 5 % of the zeros, every hidden one behind a mask token:"
        " the default",
        {"ratio": 0.5, "zero_ratio": 0.05, "corruption": "all"},
    ),
    "uniform-nonzero": Arm("uniform over the non-zeros", {"zero_ratio": 0.0}),
    "uniform-all-token": Arm(
        "uniform over all genes, every hidden one behind a mask token", {"corruption": "all"}
    ),
    "uniform-injected": Arm(
        "uniform over all genes, with the latents' context injected: what injection brings alone",
        {"corruption": "all", "injection": "decoder"},
    ),
    "uniform-matched": Arm(
        "uniform, at the hidden shares of zeros and non-zeros of the arm mam",
        {"strategy": "matched", "matched_to": "mam", "corruption": "all"},
    ),
    "mam": Arm(
        "Multinomial Attention Masking on the values, the context injected into the decoder",
        {"strategy": "mam", "corruption": "all", "injection": "decoder"},
    ),
    "mam-mixed": Arm(
        "mam with the corruption that uniform masks have, 80/10/10",
        {"strategy": "mam", "corruption": "80/10/10", "injection": "decoder"},
    ),
    "mam-mixed-both": Arm(
        "the same, the corrupted values read by the encoder too",
        {
            "strategy": "mam",
            "corruption": "80/10/10",
            "corruption_view": "both",
            "injection": "decoder",
        },
    ),
    "mam-visible": Arm(
        "mam, its context without the hidden values",
        {"strategy": "mam", "corruption": "all", "injection": "decoder", "context_from": "visible"},
    ),
    "mam-sharp": Arm(
        "mam at a temperature that makes its masks sharp",
        {"strategy": "mam", "corruption": "all", "injection": "decoder", "temperature": 0.1},
    ),
    "mam-undecayed": Arm(
        "mam without weight decay on the latents, which can flatten their masks",
        {"strategy": "mam", "corruption": "all", "injection": "decoder"},
        {"masking_weight_decay": 0.0},
    ),
    "mam-fixed-norm": Arm(
        "mam with slopes of fixed norm, so that its masks cannot flatten",
        {"strategy": "mam", "corruption": "all", "injection": "decoder", "slope_norm": 1.0},
    ),
    "mam-nonzero": Arm(
        "mam over the non-zeros",
        {"strategy": "mam", "corruption": "all", "injection": "decoder", "zero_ratio": 0.0},
    ),
    "mam-embedding": Arm(
        "mam on gene and value embeddings of the non-zeros",
        {
            "strategy": "mam-embedding",
            "corruption": "all",
            "injection": "decoder",
            "zero_ratio": 0.03,
        },
    ),
    "mam-embedding-mixed": Arm(
        "the same with the corruption that uniform masks have, 80/10/10",
        {
            "strategy": "mam-embedding",
            "corruption": "80/10/10",
            "injection": "decoder",
            "zero_ratio": 0.03,
        },
    ),
    "mam-reward": Arm(
        "mam on embeddings that learns to hide what is predicted worst; without injection, so that"
        " only which non-zeros are hidden differs from uniform masks",
        {
            "strategy": "mam-embedding",
            "corruption": "all",
            "zero_ratio": 0.03,
            "gradient": "reward",
            "penalty": 0.0,
        },
        {"masking_weight_decay": 0.0},
    ),
    "expression": Arm(
        "in proportion to expression",
        {"strategy": "expression", "corruption": "all", "zero_ratio": 0.03},
    ),
    "orig": Arm("the model of training.start_from as it is", {"strategy": "none"}),
    **{
        f"mam-published-{scheme}{suffix}": Arm(
            f"mam with the published first weights, penalty and random values, injected: {scheme};"
            f" {what}",
            {
                "strategy": "mam",
                "corruption": corruption,
                "random_values": "uniform",
                "injection": scheme,
                "injection_start": "published",
                "latent_start": "published",
                "penalty_norm": "plain",
            },
        )
        for scheme in ("encoder", "decoder", "both", "separate")
        for suffix, corruption, what in (
            ("", "all", "mask tokens"),
            ("-mixed", "80/10/10", "80/10/10"),
        )
    },
}


def arm_config(config: Config, name: str, seed: int) -> Config:
    """The configuration of one run of a study.

    A named arm sets what is hidden and how; sizes of the latents and the penalty are those of
    ``config.masking``. An arm of ``config.study.custom`` starts from a plain uniform mask, or from
    the arm that its ``like`` names; its ``training.NAME``, ``model.NAME`` and ``evaluation.NAME``
    settings go to those sections. One of a named arm's name takes its place.

    Raises:
        ConfigError: no such arm, or settings that do not fit together.
    """
    masking, others = dict(PLAIN), {"training": {"seed": seed}, "model": {}, "evaluation": {}}
    if name in config.study.custom:
        custom = dict(config.study.custom[name])
        like = custom.pop("like", None)
        if like is not None:
            masking.update(_preset(like).masking)
            others["training"].update(_preset(like).training)
        for key, value in custom.items():
            section, dot, setting = key.partition(".")
            if not dot:
                masking[key] = value
            elif section in others:
                others[section][setting] = value
            else:
                allowed = "a setting of masking, training.NAME, model.NAME or evaluation.NAME"
                raise ConfigError(f"study.custom.{name}.{key}: expected {allowed}")
    else:
        preset = _preset(name, custom=config.study.custom)
        masking.update(preset.masking)
        others["training"].update(preset.training)
    return with_settings(config, masking=masking, **others)


def _preset(name: str, custom: Mapping[str, Any] = {}) -> Arm:
    if name not in ARMS:
        raise ConfigError(
            f"study.arms: expected some of {', '.join([*ARMS, *custom])}; got {name!r}"
        )
    return ARMS[name]
