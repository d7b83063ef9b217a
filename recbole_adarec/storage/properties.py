"""Finds the default settings in properties/ and files that a user names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.yaml_files import Loader, load_yaml

# Installed beside the package's modules; in a checkout beside the package.
_CANDIDATES = (Path(__file__).parents[1] / "properties", Path(__file__).parents[2] / "properties")
PROPERTIES = next((folder for folder in _CANDIDATES if folder.is_dir()), _CANDIDATES[0])
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


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
