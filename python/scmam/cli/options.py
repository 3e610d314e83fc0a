"""Options that several commands share, with the help and defaults of the settings themselves, and
how they become a `Config`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import Config, load_config
from ..errors import ConfigError

SETTINGS = "Settings"


SETTING_OF: dict[str, str] = {}  # "section.name" of the flags that set one


def setting(name: str, flag: str, *, metavar: str | None = None, help: str | None = None) -> Any:
    """An option that sets ``section.name``; its help is the setting's description, its default is
    said and not set. The parameter that has it is named as the flag.
    """
    SETTING_OF[flag.removeprefix("--").replace("-", "_")] = name
    section, _, field = name.partition(".")
    info = type(getattr(Config(), section)).model_fields[field]
    default = json.loads(Config().model_dump_json())[section][field]
    shown = "none" if default is None else default
    if isinstance(default, list):
        shown = ",".join(map(str, default))
    description = help or " ".join((info.description or "").split())
    text = f"{description} ({name}; default: {shown})"
    return typer.Option(
        flag, metavar=metavar, help=text, show_default=False, rich_help_panel=SETTINGS
    )


def own(flag: str, metavar: str, help: str, *short: str) -> Any:
    """An option of a command that is no setting, and has no default to be shown."""
    return typer.Option(flag, *short, metavar=metavar, help=help, show_default=False)


def out(metavar: str, help: str) -> Any:
    """The option that says where a command writes."""
    return typer.Option("--out", "-o", metavar=metavar, help=help)


ConfigFile = Annotated[
    Path | None, own("--config", "FILE", "YAML file with settings; see `scmam config`", "-c")
]
Assignments = Annotated[
    list[str] | None,
    own("--set", "SECTION.NAME=VALUE", "another setting, over the file; may be repeated", "-s"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]

DataFile = Annotated[Path | None, setting("data.path", "--data", metavar="PATH")]
Label = Annotated[str | None, setting("data.label", "--label", metavar="COLUMN")]
Donor = Annotated[str | None, setting("data.donor", "--donor", metavar="COLUMN")]
Counts = Annotated[str | None, setting("data.counts", "--counts", metavar="WHERE")]
Size = Annotated[
    str | None, setting("model.size", "--size", metavar="SIZE", help="tiny, small, base or paper")
]
Strategy = Annotated[
    str | None,
    setting(
        "masking.strategy",
        "--strategy",
        metavar="NAME",
        help="which genes are hidden: none, uniform, expression, mam, mam-embedding or matched",
    ),
]
Injection = Annotated[str | None, setting("masking.injection", "--injection", metavar="SCHEME")]
Steps = Annotated[int | None, setting("training.steps", "--steps")]
BatchSize = Annotated[int | None, setting("training.batch_size", "--batch-size")]
LearningRate = Annotated[float | None, setting("training.lr", "--lr")]
Seed = Annotated[
    int | None,
    setting("training.seed", "--seed", help="of the weights, the order of cells and the masks"),
]
StartFrom = Annotated[Path | None, setting("training.start_from", "--start-from", metavar="MODEL")]
Device = Annotated[
    str | None, setting("training.device", "--device", metavar="DEVICE", help="auto, cpu or cuda")
]
Methods = Annotated[
    str | None,
    setting("evaluation.methods", "--methods", metavar="A,B", help="how cell types are predicted"),
]
Folds = Annotated[
    int | None, setting("evaluation.folds", "--folds", help="folds of the cross-validation")
]
Arms = Annotated[
    str | None,
    setting("study.arms", "--arms", metavar="A,B", help="see `scmam config --arms`"),
]
Seeds = Annotated[
    str | None,
    setting("study.seeds", "--seeds", metavar="0-4,7", help="of every arm; numbers and ranges"),
]
Reference = Annotated[str | None, setting("study.reference", "--reference", metavar="ARM")]
Baselines = Annotated[
    str | None,
    setting(
        "study.baselines", "--baselines", metavar="A,B", help="classifiers of the data; '': none"
    ),
]
Jobs = Annotated[int | None, setting("study.jobs", "--jobs", metavar="N")]
Scheduler = Annotated[str | None, setting("study.scheduler", "--scheduler", metavar="ADDRESS")]


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Settings among the parameters of a command, ``{"section.name": value}``; lists are taken
    apart.
    """
    flags = {SETTING_OF[name]: value for name, value in parameters.items() if name in SETTING_OF}
    for name, value in flags.items():
        if name == "study.seeds":
            flags[name] = numbers(value, "--seeds")
        elif name in ("study.arms", "study.baselines", "evaluation.methods"):
            flags[name] = names(value)
    return flags


def configuration(
    file: Path | None,
    assignments: Iterable[str] | None,
    flags: Mapping[str, Any],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """The defaults, over them the file, over it ``--set``, over it the other flags (those that are
    not None); ``defaults``, by section, take the place of others.
    """
    given = [
        f"{name}={json.dumps(value, default=str)}"
        for name, value in flags.items()
        if value is not None
    ]
    return load_config(file, [*(assignments or ()), *given], defaults)


def names(text: str | None) -> list[str] | None:
    """``"none, mam"`` as a list; None stays None."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None, flag: str) -> list[int] | None:
    """``"0-3,7"`` as [0, 1, 2, 3, 7]; None stays None."""
    if text is None:
        return None
    matches = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in names(text) or ()]
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) if m else range(0) for m in matches]
    if not ranges or not all(ranges):
        raise ConfigError(f"{flag}: expected numbers and ranges such as 0-4,7; got {text!r}")
    return [value for values in ranges for value in values]
