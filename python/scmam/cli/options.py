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
    shown = (
        ",".join(map(str, default))
        if isinstance(default, list)
        else "none"
        if default is None
        else default
    )
    text = f"{help or info.description} ({name}; default: {shown})"
    return typer.Option(
        flag, metavar=metavar, help=text, show_default=False, rich_help_panel=SETTINGS
    )


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file with settings; see `scmam config`",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="SECTION.NAME=VALUE",
        help="any other setting, over the file; may be repeated",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]

DataFile = Annotated[Path | None, setting("data.path", "--data", metavar="PATH")]
Label = Annotated[str | None, setting("data.label", "--label", metavar="COLUMN")]
Donor = Annotated[str | None, setting("data.donor", "--donor", metavar="COLUMN")]
Counts = Annotated[str | None, setting("data.counts", "--counts", metavar="WHERE")]
Size = Annotated[
    str | None,
    setting(
        "model.size", "--size", metavar="SIZE", help="size of the model: tiny, small, base or paper"
    ),
]
Steps = Annotated[int | None, setting("training.steps", "--steps")]
BatchSize = Annotated[int | None, setting("training.batch_size", "--batch-size")]
LearningRate = Annotated[float | None, setting("training.lr", "--lr")]
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
    values: list[int] = []
    for part in names(text) or ():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(f"{flag}: expected numbers and ranges such as 0-4,7; got {text!r}")
        values.extend(range(first, last + 1))
    if not values:
        raise ConfigError(f"{flag}: expected numbers and ranges such as 0-4,7; got {text!r}")
    return values
