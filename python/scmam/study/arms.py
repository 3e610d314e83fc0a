"""The arms of a study by name: which genes each one hides, and its purpose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import Config, with_settings
from ..errors import ConfigError
from ..settings import Masking


class Arm(NamedTuple):
    """One way to pretrain."""

    what: str  # for tables and help
    # Settings of `masking` that differ from a plain uniform mask without latents.
    masking: Mapping[str, Any]
    training: Mapping[str, Any] = {}  # settings of `training` that differ from the study's


OF_THE_STUDY = {
    *("latent_dim", "num_latents", "latent_heads", "latent_fraction"),
    *("penalty", "reward_temperature"),
}
"""Settings of `masking` that arms take from the study."""

PLAIN = Masking().model_dump(exclude=OF_THE_STUDY)
PLAIN |= {"ratio": 0.3, "zero_ratio": None, "corruption": "80/10/10"}
"""Settings of `masking` of an arm that names none."""

TOKENS = {"corruption": "all"}  # every hidden gene behind a mask token
INJECTED = {**TOKENS, "injection": "decoder"}
MAM = {"strategy": "mam", **INJECTED}
EMBEDDING = {"strategy": "mam-embedding", "zero_ratio": 0.03}
MIXED = {"corruption": "80/10/10"}
UNDECAYED = {"masking_weight_decay": 0.0}
PUBLISHED = {
    "random_values": "uniform",
    "injection_start": "published",
    "latent_start": "published",
    "penalty_norm": "plain",
}


def _mam(what: str, masking: Mapping[str, Any], training: Mapping[str, Any] = {}) -> Arm:
    return Arm(f"mam {what}", {**MAM, **masking}, training)


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
        "the same, every hidden gene behind a mask token", {"zero_ratio": 0.3, **TOKENS}
    ),
    "uniform-half": Arm(
        "uniform, 50 % of the non-zeros and 5 % of the zeros, every hidden one behind a mask token:"
        " the default",
        {"ratio": 0.5, "zero_ratio": 0.05, **TOKENS},
    ),
    "uniform-nonzero": Arm("uniform over the non-zeros", {"zero_ratio": 0.0}),
    "uniform-all-token": Arm(
        "uniform over all genes, every hidden one behind a mask token", TOKENS
    ),
    "uniform-injected": Arm("uniform over all genes, with the latents' context injected", INJECTED),
    "uniform-matched": Arm(
        "uniform, at the hidden shares of zeros and non-zeros of the arm mam",
        {"strategy": "matched", "matched_to": "mam", **TOKENS},
    ),
    "mam": Arm(
        "Multinomial Attention Masking on the values, the context injected into the decoder", MAM
    ),
    "mam-mixed": _mam("with the corruption that uniform masks have, 80/10/10", MIXED),
    "mam-mixed-both": Arm(
        "the same, the corrupted values read by the encoder too",
        {**MAM, **MIXED, "corruption_view": "both"},
    ),
    "mam-visible": Arm(
        "mam, its context without the hidden values", {**MAM, "context_from": "visible"}
    ),
    "mam-sharp": _mam("at a temperature that makes its masks sharp", {"temperature": 0.1}),
    "mam-undecayed": _mam(
        "without weight decay on the latents, which can flatten their masks", {}, UNDECAYED
    ),
    "mam-fixed-norm": _mam(
        "with slopes of fixed norm, so that its masks cannot flatten", {"slope_norm": 1.0}
    ),
    "mam-nonzero": _mam("over the non-zeros", {"zero_ratio": 0.0}),
    "mam-embedding": _mam("on gene and value embeddings of the non-zeros", EMBEDDING),
    "mam-embedding-mixed": Arm(
        "the same with the corruption that uniform masks have, 80/10/10",
        {**INJECTED, **EMBEDDING, **MIXED},
    ),
    "mam-reward": Arm(
        "mam on embeddings that learns to hide what is predicted worst; without injection, so that"
        " only which non-zeros are hidden differs from uniform masks",
        {**TOKENS, **EMBEDDING, "gradient": "reward", "penalty": 0.0},
        UNDECAYED,
    ),
    "expression": Arm(
        "in proportion to expression", {"strategy": "expression", "zero_ratio": 0.03, **TOKENS}
    ),
    "orig": Arm("the model of training.start_from as it is", {"strategy": "none"}),
    **{
        f"mam-published-{scheme}{suffix}": _mam(
            f"with the published first weights, penalty and random values, injected: {scheme};"
            f" {corruption if suffix else 'mask tokens'}",
            {"corruption": corruption, "injection": scheme, **PUBLISHED},
        )
        for scheme in ("encoder", "decoder", "both", "separate")
        for suffix, corruption in (("", "all"), ("-mixed", "80/10/10"))
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
    masking = dict(PLAIN)
    others: dict[str, dict[str, Any]] = {"training": {"seed": seed}, "model": {}, "evaluation": {}}
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
