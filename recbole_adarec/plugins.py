"""Plugins: Python files of the user that register operations, backbones, teacher adapters and layer mappings."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.properties import find_file

_loaded: dict[Path, ModuleType] = {}


def load_plugins(files: str | Path | Sequence[str | Path] | None) -> list[str]:
    """Run plugin files, each once per process, so that the names they register can be used.

    Parameters
    ----------
    files : path-like, sequence of path-like, or None
        Each is looked for in the current folder, then in properties/.

    Returns
    -------
    list of str
        Absolute paths of the files.

    Raises
    ------
    AdaRecError
        If a file is missing or raises an error; the message names the file and the line.
    """
    names = [files] if isinstance(files, (str, Path)) else files or []
    paths = [find_file(str(name), "plugins").resolve() for name in names]
    for path in paths:
        if path not in _loaded:
            _loaded[path] = _run(path)
    return [str(path) for path in paths]


def _run(path: Path) -> ModuleType:
    """Import a file as a module with a unique name."""
    name = f"recbole_adarec_plugin_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AdaRecError(f"plugins: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as Python's import does
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError) and error.lineno is not None:
            line: int | None = error.lineno
        else:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(path)]
            line = lines[-1] if lines else None
        kind = "" if isinstance(error, AdaRecError) else f"{type(error).__name__}: "
        where = f"{path}, line {line}" if line else str(path)
        raise AdaRecError(f"plugins: {where}: {kind}{' '.join(str(error).split())}") from error
    return module
