"""The arms of a study by name: which genes each one hides, and its purpose. ``arms.yaml`` lists
them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import Config, packaged, with_settings
from ..errors import ConfigError
from ..settings import Masking


class Arm(NamedTuple):
    """One way to pretrain."""

    what: str  # for tables and help
    settings: Mapping[str, Any]  # as those of an arm of `study.custom`


OF_THE_STUDY = {
    *("latent_dim", "num_latents", "latent_heads", "latent_fraction"),
    *("penalty", "reward_temperature"),
}
"""Settings of `masking` that arms take from the study."""

PLAIN = Masking().model_dump(exclude=OF_THE_STUDY)
"""Settings of `masking` of an arm that names none."""

ARMS = {
    name: Arm(settings.pop("what"), settings)
    for name, settings in packaged(__package__, "arms.yaml").items()
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
    sections: dict[str, dict[str, Any]] = {"masking": dict(PLAIN), "training": {"seed": seed}}
    sections |= {"model": {}, "evaluation": {}}
    for key, value in _settings(name, config.study.custom).items():
        section, dot, setting = key.partition(".")
        if not dot:
            section, setting = "masking", key
        elif section == "masking" or section not in sections:
            allowed = "a setting of masking, training.NAME, model.NAME or evaluation.NAME"
            raise ConfigError(f"study.custom.{name}.{key}: expected {allowed}")
        sections[section][setting] = value
    return with_settings(config, **sections)


def _settings(name: str, custom: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of an arm, over those of the named arm that it is like."""
    if name not in custom and name not in ARMS:
        raise ConfigError(
            f"study.arms: expected some of {', '.join([*ARMS, *custom])}; got {name!r}"
        )
    own = dict(custom[name] if name in custom else ARMS[name].settings)
    like = own.pop("like", None)
    return own if like is None else {**_settings(like, {}), **own}
