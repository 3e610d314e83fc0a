"""A configuration as a commented YAML file: every setting with what it means, what it may be and
its default.
"""

import inspect
import math
import textwrap
from typing import Any

import yaml

from ..config import Config

WIDTH = 110
KINDS = {"integer": "whole number", "string": "text", "boolean": "true or false"}
"""Types of a JSON schema in words, where their name is another."""
HEADER = """\
Every setting of scmam. A file may leave out what keeps its default:
  scmam compare --config THIS_FILE --out study
Flags go before the file: --set training.steps=200, or a flag of its own such as --steps 200."""


def commented_yaml(config: Config) -> str:
    """All settings of `config`, resolved, each under a comment.

    What is printed reads back as the same configuration.
    """
    defaults = Config().model_dump(mode="json")
    schemas = Config.model_json_schema()["$defs"]
    lines = [*_comment(HEADER)]
    for section, settings in config.model_dump(mode="json").items():
        kind = type(getattr(config, section))
        title = (inspect.getdoc(kind) or "").partition("\n")[0]
        lines += ["", *_comment(title), f"{section}:"]
        for name, value in settings.items():
            schema = schemas[kind.__name__]["properties"][name]
            lines += [
                *_comment(_explained(schema, defaults[section][name]), "  "),
                f"  {name}: {_flow(value)}",
            ]
    return "\n".join(lines) + "\n"


def _explained(schema: dict[str, Any], default: Any) -> str:
    facts = f"{_allowed(schema)}; default {_flow(default)}"
    description = " ".join(schema.get("description", "").split())
    return f"{description} ({facts})" if description else facts


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    style: dict[str, Any] = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False}
    return yaml.safe_dump(value, width=math.inf, **style).partition("\n...")[0].strip()


def _allowed(schema: dict[str, Any]) -> str:
    """The values that a setting takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = KINDS.get(schema["type"], schema["type"])
    if kind == "array":
        return f"list, each {_allowed(schema['items'])}"
    if kind == "object":
        return "mapping"
    if schema.get("format") == "path":
        return "path"
    low, above, high = (schema.get(bound) for bound in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    if low is not None:
        return f"{kind} from {low:g}"
    return kind if above is None else f"{kind} above {above:g}"


def _comment(text: str, indent: str = "") -> list[str]:
    wrapped = (
        textwrap.wrap(line, WIDTH - len(indent), subsequent_indent="  ") or [""]
        for line in text.splitlines()
    )
    return [f"{indent}# {line}".rstrip() for lines in wrapped for line in lines]
