"""The arms of the benchmark: shares x zeros x corruption, strategies at one share, and controls.

In all of them corruption concerns the decoder's input alone, as published.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from itertools import product
from typing import Any, NamedTuple

from ..config import Config, packaged, with_settings
from ..errors import ConfigError

SETTINGS: dict[str, dict[str, Any]] = packaged(__package__, "benchmark.yaml")
"""Of every arm, by section, where file and flags say nothing else."""

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
    for share, (zeros, factor), (ending, corruption) in product(
        SHARES, ZEROS.items(), CORRUPTIONS.items()
    ):
        of_zeros = share * factor  # per cent
        behind = "80/10/10" if ending else "tokens"
        arms[f"{share}-{zeros}{ending}"] = BenchmarkArm(
            f"{share} % of non-zeros, {of_zeros:g} % of zeros, {behind}",
            {"ratio": share / 100, "zero_ratio": of_zeros / 100, "corruption": corruption},
        )
    return arms


AT_50 = "50-tenth"
MAM = {"strategy": "mam", "corruption": "all", "injection": "decoder"}
SPLIT = {"ratio": 0.5, "zero_ratio": 0.05, "corruption": "all"}
UNDECAYED = {"training.masking_weight_decay": 0.0}


def _mam(what: str, same_share: str = "uniform-token", **settings: Any) -> BenchmarkArm:
    return BenchmarkArm(f"MAM on values, {what}", {**MAM, **settings}, same_share)


def _at_50(what: str, settings: Mapping[str, Any]) -> BenchmarkArm:
    return BenchmarkArm(what, {**SPLIT, **settings}, AT_50)


def _taught(what: str, strategy: str) -> BenchmarkArm:
    settings = {**SPLIT, "strategy": strategy, "matched_to": TAUGHT}
    return BenchmarkArm(what, settings, AT_50, follows=TAUGHT)


REWARDED = {"strategy": "mam-embedding", "gradient": "reward", "penalty": 0.0, **UNDECAYED}
SHARP = {**MAM, "strategy": "mam-embedding", "temperature": 0.3, **UNDECAYED}
WIDE = {"ratio": 0.15, "ratio_to": 0.85, "zero_ratio": 0.015}
TAUGHT = "mam-sharp-50"
"""The arm whose rates are replayed."""

STRATEGIES: dict[str, BenchmarkArm] = {
    "mam": _mam("as published"),
    "mam-mixed": _mam("80/10/10", UNIFORM, corruption="80/10/10"),
    "mam-published": BenchmarkArm(
        "MAM on values, published first weights", {"like": "mam-published-decoder"}, "uniform-token"
    ),
    "mam-encoder": _mam("context in the encoder", injection="encoder"),
    "mam-both": _mam("context in both", injection="both"),
    "mam-separate": _mam("an adapter each", injection="separate"),
    "mam-50": _at_50("MAM on values", MAM),
    "mam-embedding-50": _at_50("MAM on embeddings", {**MAM, "strategy": "mam-embedding"}),
    TAUGHT: _at_50("MAM on embeddings, not decayed, temperature 0.3", SHARP),
    "mam-reward-50": _at_50("MAM on embeddings, taught by the errors", REWARDED),
    "expression-50": _at_50("in proportion to expression", {"strategy": "expression"}),
    "random-ratio": _at_50("15 to 85 %, each cell its own", WIDE),
    "modules-50": _at_50("co-expressed modules", {"strategy": "modules"}),
    "harder-50": _at_50("harder genes more often", {"strategy": "harder"}),
    "labels-50": _at_50("informative genes more often (uses the labels)", {"strategy": "labels"}),
    "replayed-50": _taught("rates of MAM on embeddings, replayed", "replayed"),
    "permuted-50": _taught("the same, exchanged among genes of equal mean", "permuted"),
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
