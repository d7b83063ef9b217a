"""The default settings in properties/."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.yaml_files import load_yaml

_PACKAGE = Path(__file__).parent.parent
# Installed beside the package's modules; in a checkout beside the package.
_CANDIDATES = (_PACKAGE / "properties", _PACKAGE.parent / "properties")
PROPERTIES = next((folder for folder in _CANDIDATES if folder.is_dir()), _CANDIDATES[0])


def find_file(name: str | Path, what: str) -> Path:
    """The path of a file, looked for in the current folder, then in properties/.

    Raises
    ------
    AdaRecError
        If it is in neither; the message names both folders.
    """
    for path in (Path(name), PROPERTIES / name):
        if path.is_file():
            return path
    raise AdaRecError(f"{what}: no file {str(name)!r}, looked in {Path.cwd()} and {PROPERTIES}")


@cache
def _defaults(name: str) -> dict[str, Any]:
    return load_yaml(PROPERTIES / name)


def model_defaults(name: str) -> dict[str, Any]:
    """The default settings of one of our models, a fresh copy of properties/model/<name>.yaml."""
    return deepcopy(_defaults(f"model/{name}.yaml"))


def backbone_defaults(backbone: str) -> dict[str, Any]:
    """Where a teacher's backbone differs from properties/model/AdaRecTeacher.yaml; empty if nowhere."""
    name = f"backbone/{backbone}.yaml"
    return deepcopy(_defaults(name)) if (PROPERTIES / name).is_file() else {}


def run_defaults() -> dict[str, Any]:
    """The default settings of a run, a fresh copy of properties/adarec.yaml."""
    return deepcopy(_defaults("adarec.yaml"))
