"""Options of settings, with the help and defaults of the settings themselves, and how they become a
`Config`.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import typer

from ..config import Config, load_config
from ..errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., None])


def own(flag: str, metavar: str, help: str, *short: str, least: int | None = None) -> Any:
    """An option of a command that is no setting, and has no default to be shown."""
    return typer.Option(flag, *short, metavar=metavar, help=help, min=least, show_default=False)


def out(metavar: str, help: str) -> Any:
    """The option that says where a command writes."""
    return typer.Option("--out", "-o", metavar=metavar, help=help)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]
ConfigFile = Annotated[
    Path | None, own("--config", "FILE", "YAML file with settings; see `scmam config`", "-c")
]
Assignments = Annotated[
    list[str] | None,
    own("--set", "SECTION.NAME=VALUE", "another setting, over the file; may be repeated", "-s"),
]


class Flag(NamedTuple):
    """An option that sets ``section.name``; its default is said and not set."""

    setting: str
    kind: type = str
    metavar: str | None = None
    help: str | None = None  #: None: the setting's description

    def parameter(self, name: str) -> inspect.Parameter:
        """The parameter of a command that takes it."""
        section, _, field = self.setting.partition(".")
        info = type(getattr(Config(), section)).model_fields[field]
        default = json.loads(Config().model_dump_json())[section][field]
        shown = "none" if default is None else default
        if isinstance(default, list):
            shown = ",".join(map(str, default))
        description = self.help or " ".join((info.description or "").split())
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            metavar=self.metavar,
            help=f"{description} ({self.setting}; default: {shown})",
            show_default=False,
            rich_help_panel="Settings",
        )
        return _keyword(name, Annotated[self.kind | None, option])

    def value(self, name: str, text: Any) -> Any:
        """The value of the setting: lists are taken apart."""
        if self.setting == "study.seeds":
            return numbers(text, f"--{name}")
        if self.setting in ("study.arms", "study.baselines", "evaluation.methods"):
            return names(text)
        return text


FLAGS = {
    "data": Flag("data.path", Path, "PATH"),
    "label": Flag("data.label", str, "COLUMN"),
    "donor": Flag("data.donor", str, "COLUMN"),
    "counts": Flag("data.counts", str, "WHERE"),
    "size": Flag("model.size", str, "SIZE", "tiny, small, base or paper"),
    "strategy": Flag(
        "masking.strategy",
        str,
        "NAME",
        "which genes are hidden: none, uniform, expression, mam, mam-embedding or matched",
    ),
    "injection": Flag("masking.injection", str, "SCHEME"),
    "steps": Flag("training.steps", int),
    "batch_size": Flag("training.batch_size", int),
    "lr": Flag("training.lr", float),
    "seed": Flag("training.seed", int, None, "of the weights, the order of cells and the masks"),
    "start_from": Flag("training.start_from", Path, "MODEL"),
    "device": Flag("training.device", str, "DEVICE", "auto, cpu or cuda"),
    "methods": Flag("evaluation.methods", str, "A,B", "how cell types are predicted"),
    "folds": Flag("evaluation.folds", int, None, "folds of the cross-validation"),
    "arms": Flag("study.arms", str, "A,B", "see `scmam config --arms`"),
    "seeds": Flag("study.seeds", str, "0-4,7", "of every arm; numbers and ranges"),
    "reference": Flag("study.reference", str, "ARM"),
    "baselines": Flag("study.baselines", str, "A,B", "classifiers of the data; '': none"),
    "jobs": Flag("study.jobs", int, "N"),
    "scheduler": Flag("study.scheduler", str, "ADDRESS"),
}
"""By the name of the option."""


class Given(NamedTuple):
    """The settings of a command line, for `configuration`."""

    file: Path | None
    assignments: list[str]
    flags: dict[str, Any]  #: ``"section.name": value``, of the options that were given


def settable(*flags: str, file: bool = True) -> Callable[[Command], Command]:
    """A decorator of commands: their parameter ``given`` becomes options of the command line.

    Args:
        flags: names of `FLAGS`; --set is always there.
        file: whether there is --config.
    """
    options = [FLAGS[flag].parameter(flag) for flag in flags]
    options += [_keyword("config", ConfigFile)] if file else []
    options += [_keyword("assignments", Assignments)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            said = {FLAGS[flag]: FLAGS[flag].value(flag, values.pop(flag)) for flag in flags}
            known = {flag.setting: value for flag, value in said.items() if value is not None}
            given = Given(values.pop("config", None), values.pop("assignments") or [], known)
            command(given=given, **values)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            parameters += options if parameter.name == "given" else [parameter]
        cast(Any, wrapped).__signature__ = inspect.Signature(parameters)  # typer reads it
        return cast(Command, wrapped)

    return decorate


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def configuration(
    file: Path | None,
    assignments: Iterable[str],
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
    return load_config(file, [*assignments, *given], defaults)


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
