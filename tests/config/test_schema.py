"""The schema: its rows agree with the registries, with the files made from it, and with RecBole's source."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_adarec.config import adarec_keys, recbole_keys
from recbole_adarec.config.documents import FILES, configuration_page, properties_text, yaml_text
from recbole_adarec.config.key import Key
from recbole_adarec.config.recbole_models import RECBOLE, recbole_model_defaults, recbole_model_keys, sequential_models
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.schema import KEYS, MODELS, PREFIXES, SECTIONS, check_values, nearest_key, split_prefix
from recbole_adarec.distillation.layer_mapping import DISTANCES, MAPPINGS
from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.full_softmax import ITEM_LOSSES
from recbole_adarec.model.item_table.base import ITEM_OUTPUTS, ITEM_TABLES
from recbole_adarec.model.residual_blocks import LAYER_SHARING
from recbole_adarec.model.search_space.architecture import CELL_FORMS
from recbole_adarec.model.search_space.cost import COSTS
from recbole_adarec.model.search_space.operations import OPERATIONS
from recbole_adarec.model.teachers.base import backbones
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import Loader, load_yaml

DOCS = PROPERTIES.parent / "docs"


class Reversed(nn.Module):
    def forward(self, x):
        return x.flip(1)


# ---------------------------------------------------------------------- the rows


def test_each_key_has_one_row():
    names = [key.name for section in SECTIONS for key in section.keys]
    assert len(names) == len(set(names)) == len(KEYS)


def test_no_key_looks_like_another_key_with_a_prefix():
    for name in KEYS:
        for prefix in PREFIXES:
            assert name.removeprefix(f"{prefix}_") == name or name.removeprefix(f"{prefix}_") not in KEYS, name


def test_every_row_says_what_it_means():
    for key in KEYS.values():
        assert key.help.endswith(".") and len(key.help) < 200, key.name


def test_every_default_is_a_value_that_its_key_can_have():
    for key in KEYS.values():
        for file, default in key.defaults.items():
            assert file in FILES
            key.check(default, key.name)


@pytest.mark.parametrize(
    ("names", "registered"),
    [
        (adarec_keys.OPERATIONS, OPERATIONS),
        (adarec_keys.CELL_FORMS, CELL_FORMS),
        (adarec_keys.LAYER_MAPPINGS, MAPPINGS),
        (adarec_keys.LAYER_DISTANCES, DISTANCES),
        (adarec_keys.COSTS, COSTS),
        (adarec_keys.ITEM_LOSSES, ITEM_LOSSES),
        (adarec_keys.ITEM_TABLES, ITEM_TABLES),
        (adarec_keys.ITEM_OUTPUTS, ITEM_OUTPUTS),
        (adarec_keys.LAYER_SHARING, LAYER_SHARING),
        (adarec_keys.BACKBONES, backbones()),
    ],
    ids=lambda value: None,
)
def test_the_names_of_the_schema_are_those_of_the_registries(names, registered):
    assert tuple(names) == tuple(registered)


def test_names_that_a_plugin_registered_are_admitted(monkeypatch):
    monkeypatch.setitem(MAPPINGS, "middle", MAPPINGS["left"])
    monkeypatch.setitem(OPERATIONS, "mine", OPERATIONS["skip"])
    check_values({"layer_mapping": "middle", "operations": ["mine", "skip"]}, "here")
    with pytest.raises(AdaRecError, match=r"unknown operation 'yours'; known are conv_3.*, mine; one of your own"):
        check_values({"operations": ["yours"]}, "here")


def test_an_operation_of_a_plugin_that_sees_later_items_is_refused(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "reversed", OPERATIONS["skip"]._replace(build=lambda size: Reversed()))
    with pytest.raises(AdaRecError, match="operation 'reversed' is not causal"):
        check_values({"operations": ["reversed"]}, "here")


# ---------------------------------------------------------------------- the check of values


def _number_keys() -> list[Key]:
    return [key for key in KEYS.values() if key.types in ((int,), (float,))]


@pytest.mark.parametrize("key", _number_keys(), ids=lambda key: key.name)
@settings(max_examples=20)
@given(data=st.data())
def test_numbers_in_the_range_are_accepted_and_others_refused(key, data):
    numbers = st.integers(-1000, 1000) if key.types == (int,) else st.floats(-1000, 1000)
    value = data.draw(numbers)
    inside = (key.low is None or value >= key.low) and (key.high is None or value <= key.high)
    if inside:
        check_values({key.name: value}, "here")
    else:
        with pytest.raises(AdaRecError, match=f"{key.name} in here is .*, expected (between|at least|at most)"):
            check_values({key.name: value}, "here")


@pytest.mark.parametrize("key", [key for key in _number_keys() if key.types == (float,)], ids=lambda key: key.name)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_refused(key, value):
    with pytest.raises(AdaRecError, match=f"{key.name} in here is"):
        check_values({key.name: value}, "here")


@given(st.sampled_from(sorted(KEYS)), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
def test_a_refusal_is_one_line_that_names_the_key(name, value):
    try:
        check_values({name: value}, "here")
    except AdaRecError as error:
        assert str(error).startswith(f"{name} in here") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share_cells": 1}, "is 1, expected True or False"),
        ({"cells": True}, "is True, expected a whole number"),
        ({"cells": 2.0}, "is 2.0, expected a whole number"),
        ({"cells": None}, "is None, expected a whole number"),
        ({"operations": []}, "is empty, expected at least one operation"),
        ({"operations": [3]}, "expected a list of texts"),
        ({"candidate_sizes": [32, 0]}, "expected a list of whole numbers of at least 1"),
        ({"item_widths": [8, 2.5]}, "expected a list of whole numbers of at least 1"),
        ({"item_codes": [2, 0]}, "expected a whole number or a list of whole numbers of at least 1"),
        ({"teacher_item_table": "adaptive"}, "a teacher's table is full"),
        ({"device": "cpu"}, "RecBole computes it from other keys; leave it out"),
        ({7: 7}, "key 7 in here is no text"),
    ],
    ids=str,
)
def test_refused(values, words):
    with pytest.raises(AdaRecError, match=re.escape(words)):
        check_values(values, "here")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("epoch", "epochs"), ("teacher_epoch", "teacher_epochs"), ("student_gama", "student_gamma"),
        ("layer_maping", "layer_mapping"), ("search_candidate", "search_candidates"), ("learning_rat", "learning_rate"),
        ("baseline_epoch", "baseline_epochs"), ("cprec_epoch", "cprec_epochs"), ("gamma_", "gamma"),
        ("teacher_eval_steps", "teacher_eval_step"), ("ITEM_ID", "ITEM_ID_FIELD"),
    ],
)  # fmt: skip
def test_the_nearest_key_knows_the_prefixes(wrong, right):
    assert nearest_key(wrong) == right


@given(st.sampled_from(PREFIXES), st.sampled_from(sorted(KEYS)))
def test_a_prefix_is_split_off_and_keys_are_left_whole(prefix, name):
    assert split_prefix(name) == (None, name)
    if f"{prefix}_{name}" not in KEYS:
        assert split_prefix(f"{prefix}_{name}") == (prefix, name)


# ---------------------------------------------------------------------- what is made from it


@pytest.mark.parametrize("file", FILES)
def test_files_of_defaults_are_those_that_the_schema_gives(file):
    path = PROPERTIES / FILES[file]
    assert path.read_text(encoding="utf-8") == properties_text(file), "run python -m recbole_adarec.config.documents"
    assert load_yaml(path) == {k.name: k.defaults[file] for k in KEYS.values() if file in k.defaults}


@pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not installed")
def test_the_page_of_all_keys_is_the_one_that_the_schema_gives():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert text == configuration_page(), "run python -m recbole_adarec.config.documents"
    assert all(f"| `{name}` |" in text for name in KEYS)
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", table[0]))
        for table in (part.splitlines() for part in text.split("\n\n") if part.startswith("| key"))
        for line in table
    )


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from(["NDCG@10", "\t", " ", "[0,inf)", "1", "True", "~", "", "a: b"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    )
)
def test_values_in_properties_are_read_back(value):
    assert yaml.load(yaml_text(value), Loader) == value


@pytest.mark.parametrize("path", sorted(PROPERTIES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_files_of_values_hold_known_keys(path):
    if path.parent.name in ("paper", "backbone", "model"):
        check_values(load_yaml(path), path.name)


# ---------------------------------------------------------------------- RecBole


def _reads(path: Path) -> set[str]:
    """Keys that a file of RecBole reads of its configuration."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        key: Any = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_config(node.value):
            key = node.slice
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            key = node.left if _is_config(node.comparators[0]) else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key = node.args[0] if node.args and _is_config(node.func.value) else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
        elif isinstance(key, ast.JoinedStr) and isinstance(key.values[0], ast.Constant):  # f"alias_of_{name}"
            found |= {f"{key.values[0].value}{name}_id" for name in ("user", "item", "entity", "relation")}
    return found


def _is_config(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("config", "final_config_dict", "external_config_dict")


def _files_of_recbole() -> list[Path]:
    """RecBole's source but for its models, of which those that are not sequential cannot be trained here."""
    return [path for path in RECBOLE.rglob("*.py") if not path.parent.name.endswith("_recommender")]


def test_every_key_that_recbole_reads_is_admitted():
    read = set().union(*map(_reads, _files_of_recbole())) - recbole_keys.COMPUTED
    assert {"learning_rate", "alias_of_user_id", "tail_ratio", "eta", "numerical_features", "neg_sampling"} <= read
    assert read - KEYS.keys() == set()


def test_every_key_in_recboles_argument_list_is_admitted():
    spec = importlib.util.spec_from_file_location("argument_list", RECBOLE / "utils" / "argument_list.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lists = [getattr(module, f"{group}_arguments") for group in ("general", "training", "evaluation", "dataset")]
    assert set().union(*lists) - KEYS.keys() == set()


@pytest.mark.parametrize("name", sequential_models())
def test_every_key_that_a_sequential_model_of_recbole_reads_is_admitted_with_it(name):
    read = _reads(RECBOLE / "model" / "sequential_recommender" / f"{name.lower()}.py") - recbole_keys.COMPUTED
    assert read - KEYS.keys() - recbole_model_keys(name).keys() == set()
    resolve_user_config(None, [], {"model": name, **recbole_model_defaults(name)})
    own = {f"baseline_{key}": value for key, value in recbole_model_defaults(name).items()}
    resolve_user_config(None, [], {"baselines": [name], **own})
    if name not in ("SASRec", "BERT4Rec"):
        own = {f"teacher_{key}": value for key, value in recbole_model_defaults(name).items()}
        resolve_user_config(None, [], {"teacher": name, **own})


@pytest.mark.parametrize(
    "name",
    ["overall.yaml", "dataset/sample.yaml", "dataset/ml-100k.yaml"]
    + [
        f"quick_start_config/{path.name}" for path in sorted((RECBOLE / "properties/quick_start_config").glob("*.yaml"))
    ],
)
def test_every_default_of_recbole_is_admitted(name):
    check_values(load_yaml(RECBOLE / "properties" / name), name)


@pytest.mark.parametrize(
    "values",
    [
        {"topk": 10}, {"topk": [5, 10]}, {"metrics": "NDCG"}, {"metrics": ["NDCG", "Hit"]},
        {"gpu_id": "0"}, {"gpu_id": 0}, {"gpu_id": [0, 1]}, {"gpu_id": "0,1"}, {"gpu_id": ""},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "mode": "uni100"}},
        {"eval_args": {"split": {"LS": "valid_only"}, "mode": {"valid": "uni100", "test": "full"}, "group_by": None}},
        {"additional_feat_suffix": "ent"}, {"additional_feat_suffix": ["ent", "kg"]}, {"additional_feat_suffix": None},
        {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}, {"train_neg_sample_args": None},
        {"neg_sampling": None}, {"neg_sampling": {"uniform": 1}}, {"training_neg_sample_num": 1},
        {"user_inter_num_interval": "[5,inf)"}, {"user_inter_num_interval": [5, 10]}, {"user_inter_num_interval": None},
        {"entity_kg_num_interval": None}, {"relation_kg_num_interval": "[0,5];[10,inf)"},
        {"alias_of_user_id": ["friend"]}, {"alias_of_item_id": None}, {"normalize_field": ["age"]},
        {"normalize_all": None}, {"val_interval": {"rating": "[3,inf)", "class": ["a"]}},
        {"load_col": {"inter": ["user_id"], "item": "*"}}, {"load_col": None}, {"unload_col": {"inter": ["rating"]}},
        {"clip_grad_norm": {"max_norm": 5}}, {"transform": "crop_itemseq", "eta": 0.6}, {"numerical_features": ["age"]},
        {"discretization": {"age": {"method": "ED", "bucket": 5}}}, {"threshold": {"rating": 4}},
        {"rm_dup_inter": "first"},
        {"seq_len": {"genre": 3}}, {"preload_weight": {"ent_id": "ent_emb"}}, {"benchmark_filename": ["a", "b", "c"]},
        {"tail_ratio": 0.1}, {"tail_ratio": 100}, {"worker": 2}, {"state": None}, {"encoding": "utf-8"},
        {"TIME_FIELD": None}, {"eval_step": -1}, {"port": "5678"}, {"world_size": -1}, {"reg_weight": [0.1, 0.01]},
    ],
    ids=str,
)  # fmt: skip
def test_every_form_of_value_that_recbole_takes_is_admitted(values):
    check_values(values, "here")


def test_the_models_with_defaults_have_files():
    assert {f"model/{model}.yaml" for model in MODELS.values()} <= set(FILES.values())
