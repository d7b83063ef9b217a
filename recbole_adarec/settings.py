"""Where the default settings are, and how YAML is read: as RecBole reads it, with nothing executed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_adarec.errors import AdaRecError

# Installed beside the package's modules; in a checkout beside the package.
_CANDIDATES = (Path(__file__).parent / "properties", Path(__file__).parent.parent / "properties")
PROPERTIES = next((folder for folder in _CANDIDATES if folder.is_dir()), _CANDIDATES[0])


class Loader(yaml.SafeLoader):
    """Plain values only; ``1e-3`` is a number, as in RecBole's own loader."""


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
    """The mapping in a YAML file.

    Raises
    ------
    AdaRecError
        If the file cannot be read, is no YAML, or holds something else than a mapping.
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


def find_file(name: str | Path, what: str) -> Path:
    """A file where the user stands, else in properties/.

    Raises
    ------
    AdaRecError
        Names both places.
    """
    for path in (Path(name), PROPERTIES / name):
        if path.is_file():
            return path
    raise AdaRecError(f"{what}: no file {str(name)!r}, looked in {Path.cwd()} and {PROPERTIES}")


@cache
def _model_defaults(name: str) -> dict[str, Any]:
    return load_yaml(PROPERTIES / "model" / f"{name}.yaml")


def model_defaults(name: str) -> dict[str, Any]:
    """Default settings of one of our models, a fresh copy of properties/model/<name>.yaml."""
    return dict(_model_defaults(name))


def backbone_defaults(backbone: str) -> dict[str, Any]:
    """What a teacher's backbone has otherwise than properties/model/AdaRecTeacher.yaml says, if anything."""
    path = PROPERTIES / "backbone" / f"{backbone}.yaml"
    return load_yaml(path) if path.is_file() else {}


def run_defaults() -> dict[str, Any]:
    """Default settings of a run, properties/adarec.yaml."""
    return load_yaml(PROPERTIES / "adarec.yaml")
