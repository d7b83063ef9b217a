"""YAML as RecBole reads it, with nothing executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from recbole_adarec.errors import AdaRecError


class Loader(yaml.SafeLoader):
    """YAML loader of plain values; ``1e-3`` is a number, as in RecBole's own loader."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value of ``--key=text``: YAML, never evaluated; text that is no YAML stays text."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises
    ------
    AdaRecError
        If the file cannot be read, is not YAML, or holds something other than a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise AdaRecError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise AdaRecError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise AdaRecError(f"{path} holds a {type(content).__name__}, expected key: value lines")
    return content
