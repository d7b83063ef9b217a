"""AdaRec for RecBole: distil a large sequential recommender into a small one whose architecture is searched.

>>> from recbole_adarec import run_adarec, load_student
>>> report = run_adarec(dataset="ml-100k", run_dir="saved/demo")
>>> student = load_student("saved/demo")
>>> student.recommend(["50", "172", "181"], k=10)

Public names are imported when they are first read. Importing the package changes no behaviour of RecBole's own classes
(docs/recbole_interop.md).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("recbole") is None:
    raise ImportError("recbole is missing; on Python 3.12 and above: pip install --no-deps recbole==1.2.1")

from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.registry import register
from recbole_adarec.version import __version__

if TYPE_CHECKING:
    from recbole_adarec.deployment.recommender import Recommender, load_student, load_teacher
    from recbole_adarec.distillation.layer_mapping import layer_mapping
    from recbole_adarec.interop.patches import patch_recbole, recbole_patches, unpatch_recbole
    from recbole_adarec.model.layers import CausalConv
    from recbole_adarec.model.search_space.architecture import Architecture
    from recbole_adarec.model.search_space.operations import operation
    from recbole_adarec.model.teachers.adapters import TeacherAdapter, teacher_adapter
    from recbole_adarec.plugins import load_plugins
    from recbole_adarec.quick_start import run_adarec

__all__ = [
    "AdaRecError", "Architecture", "CausalConv", "Recommender", "TeacherAdapter", "__version__", "layer_mapping",
    "load_plugins", "load_student", "load_teacher", "operation", "patch_recbole", "recbole_patches", "register",
    "run_adarec", "teacher_adapter", "unpatch_recbole",
]  # fmt: skip

_LAZY = {
    "Architecture": "recbole_adarec.model.search_space.architecture",
    "CausalConv": "recbole_adarec.model.layers",
    "Recommender": "recbole_adarec.deployment.recommender",
    "TeacherAdapter": "recbole_adarec.model.teachers.adapters",
    "layer_mapping": "recbole_adarec.distillation.layer_mapping",
    "load_plugins": "recbole_adarec.plugins",
    "load_student": "recbole_adarec.deployment.recommender",
    "load_teacher": "recbole_adarec.deployment.recommender",
    "operation": "recbole_adarec.model.search_space.operations",
    "patch_recbole": "recbole_adarec.interop.patches",
    "recbole_patches": "recbole_adarec.interop.patches",
    "run_adarec": "recbole_adarec.quick_start",
    "teacher_adapter": "recbole_adarec.model.teachers.adapters",
    "unpatch_recbole": "recbole_adarec.interop.patches",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first read (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
