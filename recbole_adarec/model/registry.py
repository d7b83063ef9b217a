"""Look-up of model classes by name: those of this package first, then RecBole's."""

from __future__ import annotations

from typing import Any

import recbole.utils

from recbole_adarec.model.cprec import CpRec
from recbole_adarec.model.student import AdaRecStudent
from recbole_adarec.model.supernet import AdaRecSupernet
from recbole_adarec.model.teachers.base import AdaRecTeacher

MODELS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (AdaRecTeacher, AdaRecSupernet, AdaRecStudent, CpRec)
}  # fmt: skip


def get_model(name: str) -> type[Any]:
    """Model class of a name.

    For a name of this package RecBole's models, which take seconds to import, are not imported.

    Raises
    ------
    ValueError
        If RecBole has no model of that name either (raised by ``recbole.utils.get_model``).
    """
    return MODELS[name] if name in MODELS else recbole.utils.get_model(name)
