"""The candidates for the teacher: what ``backbone`` names where it names more than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_adarec.config.adarec_keys import AUTO
from recbole_adarec.config.recbole_models import check_sequential, is_checkpoint
from recbole_adarec.config.schema import KEYS, OF_RECBOLE_TEACHERS, check_values
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import load_yaml


def teacher_candidates(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates that ``backbone`` names, each with its own values; empty where it names one backbone.

    A candidate has a ``backbone``, or a ``teacher``: a model of RecBole, by its name or its checkpoint.

    Parameters
    ----------
    given : dict
        The values that the user gave. Those of the teacher win over those of ``auto``, not over those in a list.

    Raises
    ------
    AdaRecError
        If a candidate in the list has neither, an unknown key, or a wrong value.
    """
    named = given.get("backbone")
    if named == AUTO:
        candidates = load_yaml(PROPERTIES / "backbone/auto.yaml")["backbone"]
        own = {key.removeprefix("teacher_") if key not in KEYS else key for key in given} - {"backbone"}
        return [{key: value for key, value in row.items() if key not in own} for row in candidates]
    if not isinstance(named, list):
        return []
    candidates = [{"backbone": row} if isinstance(row, str) else row for row in named]
    for number, row in enumerate(candidates, 1):
        where = f"candidate {number} of backbone"
        if not isinstance(row.get("teacher", row.get("backbone")), str) or row.get("backbone") == AUTO:
            raise AdaRecError(
                f"{where} is {row!r}; give each its own backbone, as in {{backbone: SASRec, n_layers: 2}}, or a model "
                "of RecBole, as in {teacher: saved/SASRec.pth}"
            )
        check_values(row, where)
        if "teacher" in row and (others := set(row) - {"teacher", *OF_RECBOLE_TEACHERS}):
            raise AdaRecError(
                f"{where}: a model of RecBole takes {' and '.join(OF_RECBOLE_TEACHERS)} here, not {min(others)}"
            )
        if "teacher" in row and not is_checkpoint(row["teacher"]):
            check_sequential(row["teacher"], where)
    return candidates


def candidate_names(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each candidate: its backbone or its file, with a number where several have the same."""
    names = [Path(row["teacher"]).stem if "teacher" in row else str(row["backbone"]) for row in candidates]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]
