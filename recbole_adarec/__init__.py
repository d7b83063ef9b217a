"""AdaRec for RecBole: distil a large sequential recommender into a small one whose architecture is searched.

>>> from recbole_adarec import run_adarec, load_student
>>> report = run_adarec(dataset="ml-100k", run_dir="saved/demo")
>>> student = load_student("saved/demo")
>>> student.recommend(["50", "172", "181"], k=10)
"""

from importlib.util import find_spec

if find_spec("recbole") is None:
    raise ImportError("recbole is missing; on Python 3.12 and above: pip install --no-deps recbole==1.2.1")

from recbole_adarec.deployment.recommender import Recommender, load_student, load_teacher
from recbole_adarec.distillation.layer_mapping import layer_mapping
from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.registry import register
from recbole_adarec.model.layers import CausalConv
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.search_space.operations import operation
from recbole_adarec.model.teachers.adapters import TeacherAdapter, teacher_adapter
from recbole_adarec.plugins import load_plugins
from recbole_adarec.quick_start import run_adarec
from recbole_adarec.version import __version__

__all__ = [
    "AdaRecError", "Architecture", "CausalConv", "Recommender", "TeacherAdapter", "layer_mapping", "load_plugins",
    "load_student", "load_teacher", "operation", "teacher_adapter", "__version__", "register", "run_adarec",
]  # fmt: skip

register()
