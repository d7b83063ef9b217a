"""Plugins: the README's example of operation, adapter and layer mapping, and errors in plugin files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recbole_adarec.plugins as plugins
from recbole_adarec import AdaRecError, load_plugins, load_student, run_adarec
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.distillation.layer_mapping import MAPPINGS
from recbole_adarec.model.search_space.cost import operation_cost
from recbole_adarec.model.search_space.operations import OPERATIONS, check_operations
from recbole_adarec.model.teachers.adapters import TEACHER_ADAPTERS
from recbole_adarec.model.teachers.base import TEACHERS
from recbole_adarec.storage.yaml_files import load_yaml
from recbole_adarec.studies.arms import Arm, ArmStudy
from tests.helpers import WITH_CHOICE

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True)
def restored_registries():
    tables = (OPERATIONS, MAPPINGS, TEACHER_ADAPTERS, TEACHERS, plugins._loaded)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture
def plugin_file(tmp_path):
    """The file in the README's section on extending."""
    section = README.read_text(encoding="utf-8").partition("## Extend")[2]
    code = re.search(r"```python\n(# mine\.py\n.*?)```", section, re.DOTALL)
    (tmp_path / "mine.py").write_text(code[1])
    return tmp_path / "mine.py"


VALUES = {
    **WITH_CHOICE, "operations": ["conv_7", "skip", "none"], "layer_mapping": "middle", "teacher": "GCSAN",
    "cost_budget": 0.9,
    "teacher_epochs": 1, "teacher_inner_size": 16, "search_epochs": 2, "student_epochs": 1, "candidates": 1,
    "candidate_sizes": None,
}  # fmt: skip


def test_the_plugin_file_of_the_readme_works_in_a_run(plugin_file, tiny, tmp_path):
    """Operation, adapter and mapping in one run."""
    values = VALUES | {"data_path": str(tiny), "plugins": "mine.py"}
    report = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    assert OPERATIONS["conv_7"].parameters(8) == 7 * 8 * 8 == operation_cost("conv_7", 8, "macs")
    assert report["models"][0]["kind"] == "GCSAN (RecBole)" and "2 layers" in report["teaching"]
    flow = torch.tensor(report["distillation"]["flow"])
    assert flow.shape[1] == 2 and flow[:, 1].sum() == pytest.approx(1) and flow[:, 0].sum() == 0
    assert set(report["architecture"]["operations"]) <= {"conv_7", "skip", "none"}
    assert load_yaml(tmp_path / "run" / "config.yaml")["plugins"] == [str(plugin_file)]


def test_a_model_file_names_its_plugin_but_does_not_run_it(plugin_file, tiny, tmp_path):
    load_plugins(plugin_file)
    architecture = {"format": "recbole-adarec-architecture/1", "hidden_size": 8, "cells": [[["conv_7"]]]}
    values = WITH_CHOICE | {
        "data_path": str(tiny),
        "plugins": str(plugin_file),
        "architecture": architecture,
        "block_num": 1,
    }
    values |= {"distilled_layers": 1, "teacher_epochs": 1, "student_epochs": 1}
    run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    expected = load_student(tmp_path / "run").scores([["3", "4"]])
    code = (
        "import sys, torch, recbole_adarec as r\n"
        "try:\n    r.load_student(sys.argv[1])\n"
        "except r.AdaRecError as error:\n    print(error)\n"
        "r.load_plugins(sys.argv[2])\n"
        "torch.save(r.load_student(sys.argv[1]).scores([['3', '4']]), 'scores.pt')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run"), str(plugin_file)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "unknown operation 'conv_7'" in out and f"load_plugins(['{plugin_file}'])" in out and out.count("\n") == 1
    torch.testing.assert_close(torch.load("scores.pt", weights_only=True), expected)


def test_workers_load_plugins_too(plugin_file, tiny, tmp_path):
    """Two arms in two new processes."""
    architecture = {"format": "recbole-adarec-architecture/1", "hidden_size": 8, "cells": [[["conv_7"]]]}
    small = {"data_path": str(tiny), "block_num": 1, "distilled_layers": 1, "teacher_epochs": 1, "student_epochs": 1}
    values = resolve_user_config(
        "tiny", [], WITH_CHOICE | small | {"plugins": str(plugin_file), "architecture": architecture, "threads": 1}
    )
    results = ArmStudy(values, [2020], tmp_path / "runs", workers=2).run([Arm("a", {}), Arm("b", {"gamma": 0.0})])
    assert [result.architectures[0].count() for result in results.values()] == [{"conv_7": 1}] * 2


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("x = 1\ny = 1 +\n", 2, "SyntaxError"),
        ("\n\nimport no_such_module\n", 3, "no_such_module"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        (
            "from recbole_adarec import operation\n\n\n@operation('skip', macs=int)\ndef mine(size):\n    pass\n",
            4, "'skip' is one of ours",
        ),
        ("from recbole_adarec import teacher_adapter\n@teacher_adapter('X')\nclass X:\n    pass\n", 2, "no subclass"),
        (
            "from recbole_adarec.model.teachers.base import AdaRecTeacher, teacher\n\n\n"
            "@teacher('SASRec')\nclass Mine(AdaRecTeacher):\n    pass\n",
            4, "'SASRec' is one of ours",
        ),
    ],
)  # fmt: skip
def test_an_error_in_a_plugin_names_file_and_line(tmp_path, code, line, words):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(AdaRecError, match=rf"plugins: {tmp_path}/bad\.py, line {line}: .*{words}") as error:
        resolve_user_config(None, [], {"plugins": "bad.py"})
    assert "\n" not in str(error.value)


def test_a_missing_plugin_is_refused(tmp_path):
    with pytest.raises(AdaRecError, match=r"plugins: no file 'nowhere\.py', looked in"):
        resolve_user_config(None, [], {"plugins": ["nowhere.py"]})


def test_plugins_are_loaded_once_and_before_values_are_checked(plugin_file):
    (Path("values.yaml")).write_text("operations: [conv_7]\n")
    values = resolve_user_config(None, ["values.yaml"], {"plugins": str(plugin_file)})
    assert values["operations"] == ["conv_7"]
    first = OPERATIONS["conv_7"]
    load_plugins([plugin_file, plugin_file])
    assert OPERATIONS["conv_7"] is first


def test_an_operation_of_the_user_that_is_not_causal_is_refused(tmp_path):
    (tmp_path / "future.py").write_text(
        "import torch\nfrom recbole_adarec import operation\n\n"
        "@operation('both_sides', macs=lambda size: 0)\nclass Both(torch.nn.Module):\n"
        "    def __init__(self, size):\n        super().__init__()\n"
        "    def forward(self, x):\n        return x + x.flip(1)\n"
    )
    load_plugins("future.py")
    with pytest.raises(AdaRecError, match="'both_sides' is not causal"):
        check_operations(["both_sides"])


def test_a_mapping_that_gives_no_layers_is_refused(plugin_file):
    load_plugins(plugin_file)
    assert MAPPINGS["middle"](4, 8, None).flow[:, 4].sum() == pytest.approx(1)
    from recbole_adarec import layer_mapping

    layer_mapping("wrong")(lambda s, t: [t] * s)
    with pytest.raises(AdaRecError, match=r"'wrong' gives \[8, 8\] .* expected 2 numbers from 0 to 7"):
        MAPPINGS["wrong"](2, 8, None)
