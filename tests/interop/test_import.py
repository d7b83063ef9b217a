"""Importing the package imports neither torch nor RecBole, and changes no behaviour of RecBole's own classes."""

from __future__ import annotations

import inspect

import pytest

import recbole_adarec
from recbole_adarec.interop import registry

STOCK = """
def stock():
    import numpy, torch
    from recbole.config import Config
    from recbole.data.dataset import Dataset, SequentialDataset
    from recbole.trainer import PretrainTrainer, S3RecTrainer, Trainer
    from recbole.utils import get_model, get_trainer, get_flops
    from recbole.data import create_dataset
    owners = [Dataset, SequentialDataset, PretrainTrainer, S3RecTrainer, Trainer]
    found = {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()}
    found |= {("Config", k): v for k, v in vars(Config).items() if k != "_load_internal_config_dict"}
    found |= {("torch", name): getattr(torch, name) for name in ("load", "save")}
    found |= {("numpy", name): value for name, value in vars(numpy).items() if not name.startswith("__")}
    found |= {"utils": (get_model, get_trainer, get_flops, create_dataset)}
    return found | {"anomaly": torch.is_anomaly_enabled(), "safe": len(torch.serialization.get_safe_globals())}

def same(before, after):
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    changed = [key for key, value in before.items() if after[key] is not value and key != "utils"]
    assert not changed and before["utils"] == after["utils"], changed
"""


def test_neither_torch_nor_numpy_nor_recbole_is_imported(python):
    code = (
        "import sys, recbole_adarec\n"
        "heavy = {'torch', 'numpy', 'pandas', 'yaml', 'recbole', 'recbole.utils', 'recbole.trainer', 'recbole.data'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert recbole_adarec.AdaRecError and 'run_adarec' in dir(recbole_adarec)\n"
        "assert not heavy & set(sys.modules)"
    )
    python(code)


def test_every_public_name_is_there():
    assert set(recbole_adarec._LAZY) <= set(recbole_adarec.__all__) <= set(dir(recbole_adarec))
    for name in recbole_adarec.__all__:
        assert getattr(recbole_adarec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'run_adarek'"):
        _ = recbole_adarec.run_adarek


def test_types_and_lazy_names_agree():
    """What type checkers see is what is imported."""
    source = inspect.getsource(recbole_adarec)
    for name, module in recbole_adarec._LAZY.items():
        lines = [line for line in source.splitlines() if line.strip().startswith(f"from {module} import ")]
        assert any(name in line.partition(" import ")[2].split(", ") for line in lines), name


def test_every_registered_path_exists():
    for name, registration in registry.MODELS.items():
        assert registry.load(registration.model).__name__ == name
        assert registry.load(registration.trainer).__name__ == f"{name}Trainer"


@pytest.mark.parametrize("anomaly", [True, False])
def test_recbole_that_was_imported_before_stays_as_it_was(python, anomaly):
    python(
        f"{STOCK}\nimport torch; torch.autograd.set_detect_anomaly({anomaly})\nbefore = stock()\n"
        "import recbole_adarec; recbole_adarec.register()\nsame(before, stock())"
    )


def test_recbole_that_is_imported_afterwards_is_the_stock_one(python):
    """The functions are compared by the file and the line where they are defined."""
    code = (
        f"import sys\n{STOCK}\n"
        "if 'x' in sys.argv[1:]: import recbole_adarec\n"
        "for key, value in stock().items():\n"
        "    if hasattr(value, '__code__') and key[0] != 'numpy':\n"
        "        print(key, value.__code__.co_filename, value.__code__.co_firstlineno)\n"
        "    elif key in ('anomaly', 'safe'): print(key, value)\n"
    )
    bare, ours = python(code), python(code.replace("if 'x' in sys.argv[1:]: ", ""))
    assert bare == ours and "_save_checkpoint" in ours and "recbole_adarec" not in ours


def test_importing_recboles_models_switches_anomaly_detection_on_as_without_us(python):
    code = "import recbole_adarec, torch, recbole.model.sequential_recommender; print(torch.is_anomaly_enabled())"
    assert python(code) == "True\n"


def test_what_python_keeps_of_a_module_is_as_usual(python):
    """Completed after its import, a module has Python's own loader; the finder is gone when nothing waits."""
    python(
        "import sys, recbole_adarec\nfrom recbole_adarec.interop.import_hooks import _finder\n"
        "assert _finder in sys.meta_path\n"
        "import recbole.trainer, recbole.config, recbole.data.dataset, inspect\n"
        "assert _finder not in sys.meta_path\n"
        "loader = recbole.trainer.__spec__.loader\n"
        "assert type(loader).__name__ == 'SourceFileLoader' and 'exec_module' not in vars(loader)\n"
        "assert 'HyperTuning' in inspect.getsource(recbole.trainer)"
    )


def test_our_names_do_not_import_recboles_sequential_models(python):
    python(
        "import sys, recbole_adarec, torch\nfrom recbole.utils import get_model, get_trainer, ModelType\n"
        "assert get_model('AdaRecStudent').__name__ == 'AdaRecStudent'\n"
        "assert get_trainer(ModelType.SEQUENTIAL, 'CpRec').__name__ == 'CpRecTrainer'\n"
        "assert get_trainer(ModelType.SEQUENTIAL, 'SASRec').__name__ == 'Trainer'\n"
        "assert 'recbole.model.sequential_recommender.sine' not in sys.modules and not torch.is_anomaly_enabled()\n"
        "lazy = sys.modules['recbole.model.sequential_recommender.adarecteacher']\n"
        "assert lazy.AdaRecTeacher.__name__ == 'AdaRecTeacher' and not hasattr(lazy, 'Nothing')"
    )


def test_numpy_2_gets_the_names_that_recbole_reads_and_no_other(python):
    """On numpy 1, which has them, this numpy is as before; on one that lacks them they are added."""
    python(
        "import numpy, torch, pandas, sklearn.metrics\n"
        "for name in ('float_', 'complex_', 'unicode_'): vars(numpy).pop(name, None)\n"
        "before = dict(vars(numpy))\nimport recbole_adarec, recbole.config\n"
        "added = vars(numpy).keys() - before.keys()\n"
        "assert {'float_', 'complex_', 'unicode_'} <= added, added\n"
        "assert numpy.float_ is numpy.float64 and numpy.unicode_ is numpy.str_"
    )


def test_registering_twice_changes_nothing():
    from recbole.config import Config
    from recbole.trainer import Trainer
    from recbole.utils import get_model

    before = Config._load_internal_config_dict
    recbole_adarec.register()
    assert Config._load_internal_config_dict is before
    assert list(inspect.signature(before).parameters) == ["self", "model", "model_class", "dataset"]
    assert "verbose" in inspect.signature(Trainer._save_checkpoint).parameters
    assert get_model("SASRec").__module__ == "recbole.model.sequential_recommender.sasrec"
