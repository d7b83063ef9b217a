"""RecBole's own name look-ups find our models, trainers, datasets and default settings.

RecBole imports ``recbole.model.sequential_recommender.<name>`` for a model, takes ``<Name>Trainer`` from
``recbole.trainer``, ``<Name>Dataset`` from ``recbole.data.dataset`` and the defaults from a folder of its own. Each of
the four gets an entry for every model named here. Neither RecBole nor torch is imported for it: an entry imports what
it stands for when RecBole asks for it.
"""

from __future__ import annotations

import sys
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from recbole_adarec.interop.import_hooks import after_import

_DATASET = "recbole_adarec.data.dataset:SequenceDataset"


class Registration(NamedTuple):
    """Where a model and its trainer are, as ``module:class``."""

    model: str
    trainer: str


MODELS = {
    "AdaRecTeacher": Registration(
        "recbole_adarec.model.teachers.base:AdaRecTeacher", "recbole_adarec.trainer.teacher:AdaRecTeacherTrainer"
    ),
    "AdaRecSupernet": Registration(
        "recbole_adarec.model.supernet:AdaRecSupernet", "recbole_adarec.trainer.search:AdaRecSupernetTrainer"
    ),
    "AdaRecStudent": Registration(
        "recbole_adarec.model.student:AdaRecStudent", "recbole_adarec.trainer.student:AdaRecStudentTrainer"
    ),
    "CpRec": Registration("recbole_adarec.model.cprec:CpRec", "recbole_adarec.trainer.teacher:CpRecTrainer"),
}


def load(path: str) -> Any:
    """The object that ``module:name`` names; imports the module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def register() -> None:
    """Make ``recbole.utils.get_model``, ``get_trainer``, ``recbole.data.create_dataset`` and ``Config`` know our names.

    Called when the package is imported; calling it again changes nothing. What these functions return for RecBole's own
    names stays the same.
    """
    for name, registration in MODELS.items():
        module = f"recbole.model.sequential_recommender.{name.lower()}"
        if module not in sys.modules:
            sys.modules[module] = _LazyModule(module, registration.model.partition(":")[0])
    _complete_recbole()


@cache
def _complete_recbole() -> None:
    trainers = {f"{name}Trainer": registration.trainer for name, registration in MODELS.items()}
    datasets = {f"{name}Dataset": _DATASET for name in MODELS}
    after_import("recbole.trainer", lambda module: _add_lazy_names(module, trainers))
    after_import("recbole.data.dataset", lambda module: _add_lazy_names(module, datasets))
    after_import("recbole.config.configurator", _complete_config)


class _LazyModule(ModuleType):
    """Stands in ``sys.modules`` for one of our modules, which is imported when an attribute is read."""

    def __init__(self, name: str, source: str) -> None:
        super().__init__(name, f"`{source}` under the name by which RecBole looks for models.")
        self.__spec__ = ModuleSpec(name, None, origin=source)

    def __getattr__(self, name: str) -> Any:
        # inspect and pickle read the special attributes of every module: that is no reason to import one.
        if name.startswith("__") or self.__spec__ is None or self.__spec__.origin is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(self.__spec__.origin), name)


def _add_lazy_names(module: ModuleType, names: dict[str, str]) -> None:
    """Give a module attributes that are imported when they are read (PEP 562)."""
    before = vars(module).get("__getattr__")

    def __getattr__(name: str) -> Any:
        if name in names:
            return load(names[name])
        if before is not None:
            return before(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    vars(module)["__getattr__"] = __getattr__


def _complete_config(module: ModuleType) -> None:
    """Let ``Config`` know our models' defaults, and numpy 2 the names by which it makes older ones."""
    import numpy as np

    for name, scalar in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if not hasattr(np, name):  # numpy 2
            setattr(np, name, scalar)
    config = module.Config
    config._load_internal_config_dict = _with_our_defaults(config._load_internal_config_dict)


def _with_our_defaults(original: Any) -> Any:
    """RecBole's method, followed by the defaults of our models where ``model`` is one of them."""

    @wraps(original)
    def load_defaults(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if model in MODELS:
            from recbole_adarec.config.stages import internal_defaults

            self.internal_config_dict.update(internal_defaults(model, self.external_config_dict))

    return load_defaults
