"""The configuration of a run and of a study: YAML in and out.

A file names what differs from the defaults; flags of the command line override the file; what
results is saved with each run.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .errors import ConfigError, one_line
from .settings import Config

PATHS = (("data", "path"), ("data", "vocabulary"), ("training", "start_from"))
"""Settings that name files, by section."""


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read a YAML file, and set single values over it.

    Args:
        path: the file; None: the defaults.
        overrides: ``"section.name=value"`` with a YAML value, as on the command line, or a mapping
            from ``"section.name"`` to values.
        defaults: by section, what holds where the file says nothing.

    Raises:
        ConfigError: no such file, no YAML, or a setting that is unknown or out of range; every one
            is named, with what is required.
    """
    settings = {} if path is None else _read_yaml(Path(path))
    for section, values in (defaults or {}).items():
        if isinstance(settings.setdefault(section, {}), dict):
            settings[section] = {**values, **settings[section]}
    if not isinstance(overrides, Mapping):
        overrides = dict(_assignment(text) for text in overrides)
    for name, value in overrides.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise ConfigError(f"{name}: expected section.name, such as training.steps")
        target = settings.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{section}: expected a section of settings, got {target!r}")
        target[key] = value
    return validated(settings, str(path or "configuration"))


def validated(settings: Mapping[str, Any], source: str = "configuration") -> Config:
    """A `Config` of nested settings; `source` is named in errors."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(map(problem, error.errors()))
        raise ConfigError(f"{source}: {problems}") from None
    except RecursionError:
        raise ConfigError(f"{source}: its settings are nested too deep") from None


def with_settings(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some settings replaced, checked again: ``with_settings(config, training={"seed":
    1})``.
    """
    settings = config.model_dump()
    for section, changes in sections.items():
        settings[section] = {**settings[section], **changes}
    return validated(settings)


def with_absolute_paths(config: Config) -> Config:
    """A copy whose `PATHS` mean the same from any working directory."""
    return validated(with_paths(config.model_dump(mode="json"), lambda path: str(path.absolute())))


def with_paths(
    settings: dict[str, Any], change: Callable[[Path], str], more: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Settings in values of JSON, of which those of `PATHS` and `more` are changed in place."""
    for section, name in (*PATHS, *more):
        if value := settings[section][name]:
            several = isinstance(value, list)
            changed = [change(Path(one)) for one in (value if several else [value])]
            settings[section][name] = changed if several else changed[0]
    return settings


def as_yaml(config: Config) -> str:
    """Every setting, resolved."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of settings in values of JSON."""
    return digest(json.dumps(settings, sort_keys=True).encode())


def digest(content: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def flat(config: Config) -> dict[str, Any]:
    """All settings as ``{"section.name": value}``, in values of JSON."""
    sections = config.model_dump(mode="json").items()
    return {f"{section}.{name}": x for section, values in sections for name, x in values.items()}


def packaged(package: str, name: str) -> Any:
    """The content of a YAML file beside the modules of a package."""
    return yaml.safe_load(files(package).joinpath(name).read_text(encoding="utf-8"))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; give the path of a YAML file, or none for the defaults"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML file ({one_line(error)})") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}: expected sections ({', '.join(Config.model_fields)}), got"
            f" {type(settings).__name__}"
        )
    return settings


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: expected section.name=value, such as training.steps=200")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return name.strip(), value
    except RecursionError:
        raise ConfigError(f"{name.strip()}: its value is nested too deep") from None


def problem(detail: Mapping[str, Any]) -> str:
    """One of the errors that pydantic found, in words: where, what is required, and what came."""
    # Not which type of a union.
    where = "".join(f"{part}." for part in map(str, detail["loc"]) if "[" not in part)
    where = f"{where[:-1]}: " if where else ""
    if detail["type"] == "extra_forbidden":
        return f"{where}unknown setting"
    message = detail["msg"].removeprefix("Value error, ")
    value = repr(detail["input"])
    value = value if len(value) <= 80 else f"{value[:80]} ..."
    shown = "" if isinstance(detail["input"], dict) else f"; got {value}"
    return f"{where}{message[0].lower() + message[1:]}{shown}"
