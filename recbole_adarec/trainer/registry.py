"""Trainers by the name of their model: those of this package first, RecBole's as the fallback."""

from __future__ import annotations

from typing import Any

import recbole.utils

from recbole_adarec.trainer.search import AdaRecSupernetTrainer
from recbole_adarec.trainer.student import AdaRecStudentTrainer
from recbole_adarec.trainer.teacher import AdaRecTeacherTrainer, CpRecTrainer

TRAINERS: dict[str, type[Any]] = {
    "AdaRecTeacher": AdaRecTeacherTrainer,
    "AdaRecSupernet": AdaRecSupernetTrainer,
    "AdaRecStudent": AdaRecStudentTrainer,
    "CpRec": CpRecTrainer,
}


def get_trainer(config: Any) -> type[Any]:
    """The trainer class for the model of a configuration.

    Parameters
    ----------
    config : recbole.config.Config
        ``model``, ``MODEL_TYPE``.
    """
    name = config["model"]
    return TRAINERS[name] if name in TRAINERS else recbole.utils.get_trainer(config["MODEL_TYPE"], name)
