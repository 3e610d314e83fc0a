"""The arms of the benchmark: shares x zeros x corruption, strategies at one share, and controls.

In all of them corruption concerns the decoder's input alone, as published.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from ..config import Config, with_settings
from ..errors import ConfigError

UNIFORM = "uniform"
"""The reference: 30 % of all positions, 80/10/10 in the decoder."""

UNTRAINED = "untrained"
"""First weights, which the runs of a seed share: what pretraining is to be ahead of."""

SHARES = (15, 30, 50, 70, 85)  # per cent of the non-zeros
ZEROS: dict[str, float] = {"tenth": 0.1, "same": 1.0, "none": 0.0}  # of that share
CORRUPTIONS = {"": "all", "-mixed": "80/10/10"}


class BenchmarkArm(NamedTuple):
    """A masking of the benchmark."""

    what: str  # in a few words, for tables and pictures
    #: as an arm of `study.custom`: settings of `masking` over a plain uniform mask, and of
    #: "training.NAME"
    settings: Mapping[str, Any]
    same_share: str | None = None  #: the uniform arm that hides as much, with the same corruption
    follows: str | None = None  #: the arm from whose runs it takes what it hides


def _shares() -> dict[str, BenchmarkArm]:
    arms = {}
    for share in SHARES:
        for zeros, factor in ZEROS.items():
            for ending, corruption in CORRUPTIONS.items():
                of_zeros = share * factor  # per cent
                settings = {
                    "ratio": share / 100,
                    "zero_ratio": of_zeros / 100,
                    "corruption": corruption,
                }
                behind = "80/10/10" if ending else "tokens"
                arms[f"{share}-{zeros}{ending}"] = BenchmarkArm(
                    f"{share} % of non-zeros, {of_zeros:g} % of zeros, {behind}",
                    settings,
                )
    return arms


MAM = {"strategy": "mam", "corruption": "all", "injection": "decoder"}
SPLIT = {"ratio": 0.5, "zero_ratio": 0.05, "corruption": "all"}
AT_50 = "50-tenth"

STRATEGIES: dict[str, BenchmarkArm] = {
    "mam": BenchmarkArm("MAM on values, as published", MAM, "uniform-token"),
    "mam-mixed": BenchmarkArm(
        "MAM on values, 80/10/10", {**MAM, "corruption": "80/10/10"}, UNIFORM
    ),
    "mam-published": BenchmarkArm(
        "MAM on values, published first weights",
        {"like": "mam-published-decoder"},
        "uniform-token",
    ),
    "mam-encoder": BenchmarkArm(
        "MAM on values, context in the encoder", {**MAM, "injection": "encoder"}, "uniform-token"
    ),
    "mam-both": BenchmarkArm(
        "MAM on values, context in both", {**MAM, "injection": "both"}, "uniform-token"
    ),
    "mam-separate": BenchmarkArm(
        "MAM on values, an adapter each", {**MAM, "injection": "separate"}, "uniform-token"
    ),
    "mam-50": BenchmarkArm("MAM on values", {**MAM, **SPLIT}, AT_50),
    "mam-embedding-50": BenchmarkArm(
        "MAM on embeddings", {**MAM, **SPLIT, "strategy": "mam-embedding"}, AT_50
    ),
    "mam-sharp-50": BenchmarkArm(
        "MAM on embeddings, not decayed, temperature 0.3",
        {
            **MAM,
            **SPLIT,
            "strategy": "mam-embedding",
            "temperature": 0.3,
            "training.masking_weight_decay": 0.0,
        },
        AT_50,
    ),
    "mam-reward-50": BenchmarkArm(
        "MAM on embeddings, taught by the errors",
        {
            **SPLIT,
            "strategy": "mam-embedding",
            "gradient": "reward",
            "penalty": 0.0,
            "training.masking_weight_decay": 0.0,
        },
        AT_50,
    ),
    "expression-50": BenchmarkArm(
        "in proportion to expression", {**SPLIT, "strategy": "expression"}, AT_50
    ),
    "random-ratio": BenchmarkArm(
        "15 to 85 %, each cell its own",
        {**SPLIT, "ratio": 0.15, "ratio_to": 0.85, "zero_ratio": 0.015},
        AT_50,
    ),
    "modules-50": BenchmarkArm("co-expressed modules", {**SPLIT, "strategy": "modules"}, AT_50),
    "harder-50": BenchmarkArm("harder genes more often", {**SPLIT, "strategy": "harder"}, AT_50),
    "labels-50": BenchmarkArm(
        "informative genes more often (uses the labels)", {**SPLIT, "strategy": "labels"}, AT_50
    ),
    "replayed-50": BenchmarkArm(
        "rates of MAM on embeddings, replayed",
        {**SPLIT, "strategy": "replayed", "matched_to": "mam-sharp-50"},
        AT_50,
        "mam-sharp-50",
    ),
    "permuted-50": BenchmarkArm(
        "the same, exchanged among genes of equal mean",
        {**SPLIT, "strategy": "permuted", "matched_to": "mam-sharp-50"},
        AT_50,
        "mam-sharp-50",
    ),
}

ARMS: dict[str, BenchmarkArm] = {
    UNIFORM: BenchmarkArm("30 % of all positions, 80/10/10", {}),
    UNTRAINED: BenchmarkArm("no pretraining", {"strategy": "none"}),
    "uniform-token": BenchmarkArm("30 % of all positions, tokens", {"corruption": "all"}),
    **_shares(),
    **STRATEGIES,
}

GROUPS: dict[str, tuple[str, ...]] = {
    "grid": (UNIFORM, UNTRAINED, "uniform-token", *_shares()),
    "strategies": (UNIFORM, UNTRAINED, "uniform-token", AT_50, *STRATEGIES),
    "all": tuple(ARMS),
}


def chosen_arms(names: Iterable[str]) -> tuple[str, ...]:
    """The arms of names, groups and patterns such as ``50-*``, each once, an arm after the one that
    it follows; the reference is always the first.

    Raises:
        ConfigError: no arm, group or pattern of that name.
    """
    asked: list[str] = [UNIFORM]
    for name in names:
        found = GROUPS.get(name) or [arm for arm in ARMS if fnmatch(arm, name)]
        if not found:
            raise ConfigError(
                f"--arms: expected some of {', '.join([*GROUPS, *ARMS])}, or a pattern;"
                f" got {name!r}"
            )
        for arm in found:
            asked += [ARMS[arm].follows or arm, arm]
    return tuple(dict.fromkeys(asked))


def with_arms(config: Config) -> Config:
    """The configuration with the arms as its own, for `scmam.study.arms.arm_config`."""
    return with_settings(config, study={"custom": {n: dict(a.settings) for n, a in ARMS.items()}})
