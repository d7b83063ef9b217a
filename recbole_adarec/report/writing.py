"""Writes results: JSON for programs, and documents beside it for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_adarec.storage.files import plain, write_text


def json_text(result: Any) -> str:
    """A result as the text of a JSON file; numpy's numbers become Python's.

    Raises
    ------
    TypeError
        If the result holds a tensor of one dimension or more.
    """
    return json.dumps(plain(result), indent=1) + "\n"


def write_result(folder: Path, name: str, result: Any, documents: Mapping[str, str] | None = None) -> None:
    """Write a result as ``<name>.json``, and its documents beside that file.

    Parameters
    ----------
    folder : Path
        The folder; made if it is missing.
    name : str
        The file name without its ending.
    result : mapping
        Content of the JSON file.
    documents : mapping of str to str, optional
        Text of each document by the ending of its file, such as ``md`` or ``html``.

    Raises
    ------
    AdaRecError
        If a file cannot be written.
    """
    write_text(folder / f"{name}.json", json_text(result))
    for ending, text in (documents or {}).items():
        write_text(folder / f"{name}.{ending}", text)
