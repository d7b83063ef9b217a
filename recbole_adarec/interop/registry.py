"""RecBole's own name look-ups find our models, trainers, datasets and their default settings.

RecBole imports ``recbole.model.sequential_recommender.<name>`` for a model, takes ``<Name>Trainer`` from
``recbole.trainer``, ``<Name>Dataset`` from ``recbole.data.dataset`` and the defaults from a folder of its own; each of
the four is given an entry for every model named here.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

import recbole.data.dataset
import recbole.trainer
from recbole.config import Config

from recbole_adarec.data.dataset import SequenceDataset
from recbole_adarec.interop import patches
from recbole_adarec.model import cprec, student, supernet
from recbole_adarec.model.teachers import backbones
from recbole_adarec.storage.properties import backbone_defaults, model_defaults
from recbole_adarec.trainer.search import AdaRecSupernetTrainer
from recbole_adarec.trainer.student import AdaRecStudentTrainer
from recbole_adarec.trainer.teacher import AdaRecTeacherTrainer, CpRecTrainer

MODELS = {
    "AdaRecTeacher": (backbones, AdaRecTeacherTrainer),
    "AdaRecSupernet": (supernet, AdaRecSupernetTrainer),
    "AdaRecStudent": (student, AdaRecStudentTrainer),
    "CpRec": (cprec, CpRecTrainer),
}


def register() -> None:
    """Make ``recbole.utils.get_model``, ``get_trainer``, ``recbole.data.create_dataset`` and ``Config`` know our names.

    Called when the package is imported; calling it again changes nothing.
    """
    patches.apply()
    for name, (module, trainer) in MODELS.items():
        sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"] = module
        setattr(recbole.trainer, f"{name}Trainer", trainer)
        setattr(recbole.data.dataset, f"{name}Dataset", SequenceDataset)
    if not hasattr(Config._load_internal_config_dict, "__wrapped__"):
        Config._load_internal_config_dict = _with_our_defaults(Config._load_internal_config_dict)


def _with_our_defaults(original: Any) -> Any:
    @wraps(original)
    def load(self: Config, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if model in MODELS:
            defaults = model_defaults(model)
            if "backbone" in defaults:
                defaults |= backbone_defaults(self.external_config_dict.get("backbone", defaults["backbone"]))
            self.internal_config_dict.update(defaults)

    return load
