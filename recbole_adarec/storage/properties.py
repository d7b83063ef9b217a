"""Default settings in properties/, and the search path for files that a user names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.yaml_files import load_yaml

# In an installed package properties/ is inside it; in a checkout it is beside it.
_CANDIDATES = (Path(__file__).parents[1] / "properties", Path(__file__).parents[2] / "properties")
PROPERTIES = next((folder for folder in _CANDIDATES if folder.is_dir()), _CANDIDATES[0])


def find_file(name: str | Path, what: str) -> Path:
    """Path of a file in the current folder or, if it is not there, in properties/.

    Parameters
    ----------
    name : path-like
        Path relative to either folder, or an absolute path.
    what : str
        What the file is for; begins the error message.

    Raises
    ------
    AdaRecError
        If the file is in neither folder.
    """
    for path in (Path(name), PROPERTIES / name):
        if path.is_file():
            return path
    raise AdaRecError(f"{what}: no file {str(name)!r}, looked in {Path.cwd()} and {PROPERTIES}")


@cache
def _model_defaults(name: str) -> dict[str, Any]:
    """Content of properties/model/<name>.yaml, read once."""
    return load_yaml(PROPERTIES / "model" / f"{name}.yaml")


def model_defaults(name: str) -> dict[str, Any]:
    """Default settings of a model of this package: a new copy of properties/model/<name>.yaml."""
    return dict(_model_defaults(name))


def backbone_defaults(backbone: str) -> dict[str, Any]:
    """Default settings of a backbone that differ from properties/model/AdaRecTeacher.yaml; empty if none do."""
    path = PROPERTIES / "backbone" / f"{backbone}.yaml"
    return load_yaml(path) if path.is_file() else {}


def run_defaults() -> dict[str, Any]:
    """Default settings of a run, from properties/adarec.yaml."""
    return load_yaml(PROPERTIES / "adarec.yaml")
