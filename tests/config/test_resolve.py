"""What a user gave becomes the values of a run, and these the configurations of its stages."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.model.sequential_recommender.sasrec import SASRec

from recbole_adarec.config.recbole_models import check_sequential, is_checkpoint, sequential_models
from recbole_adarec.config.resolve import full_config, resolve_user_config
from recbole_adarec.config.schema import MODELS, STAGES
from recbole_adarec.config.stages import AdaRecConfig, stage_config, stage_values
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.properties import PROPERTIES, model_defaults, run_defaults
from recbole_adarec.storage.yaml_files import load_yaml


def refused(**values):
    with pytest.raises(AdaRecError) as error:
        resolve_user_config(None, [], values)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_order_of_values():
    Path("mine.yaml").write_text("learning_rate: 0.5\nteacher_epochs: 3\nseed: 1\n")
    values = resolve_user_config("ml-100k", ["adarec.yaml", "mine.yaml"], {"seed": 2})
    teacher, student = stage_config(values, "teacher"), stage_config(values, "student")
    assert teacher["learning_rate"] == student["learning_rate"] == 0.5
    assert teacher["epochs"] == 3 and student["epochs"] == load_yaml(PROPERTIES / "model/AdaRecStudent.yaml")["epochs"]
    assert teacher["seed"] == 2


def test_config_files_alone_change_nothing():
    assert resolve_user_config(None, ["adarec.yaml"], {}) == resolve_user_config(None, [], {})


def test_defaults_cannot_be_changed_by_their_users():
    run_defaults()["metrics"].append("x")
    model_defaults("AdaRecSupernet")["operations"].clear()
    resolve_user_config(None, [], {})["eval_args"].clear()
    assert "x" not in run_defaults()["metrics"] and run_defaults()["eval_args"]
    assert model_defaults("AdaRecSupernet")["operations"]


@pytest.mark.parametrize("name", sorted(p.name for p in (PROPERTIES / "paper").glob("*.yaml")))
def test_paper_sizes_are_one_file_away(name):
    values = resolve_user_config(None, [f"paper/{name}"], {})
    assert stage_config(values, "teacher")["hidden_size"] in (128, 256)
    assert stage_config(values, "search")["hidden_size"] == 64


def test_a_wrong_value_in_a_file_is_refused_with_the_files_name():
    Path("mine.yaml").write_text("student_gamma: 2\n")
    with pytest.raises(AdaRecError, match=r"student_gamma in mine\.yaml is 2, expected between 0 and 1"):
        resolve_user_config(None, ["mine.yaml"], {})
    with pytest.raises(AdaRecError, match=r"config_files: no file 'nowhere\.yaml', looked in"):
        resolve_user_config(None, ["nowhere.yaml"], {})


def test_columns_are_those_that_the_fields_name():
    values = resolve_user_config("mine", [], {"USER_ID_FIELD": "who", "TIME_FIELD": "when"})
    assert values["load_col"] == {"inter": ["who", "item_id", "when"]}
    assert "load_col" not in resolve_user_config("ml-100k", [], {})
    assert resolve_user_config("mine", [], {"load_col": None})["load_col"] is None


def test_recboles_word_for_the_hidden_size():
    assert resolve_user_config(None, [], {"embedding_size": 48})["hidden_size"] == 48
    assert "two words for the same thing" in refused(embedding_size=48, hidden_size=32)
    assert resolve_user_config(None, [], {"model": "GRU4Rec", "embedding_size": 48})["embedding_size"] == 48


# ---------------------------------------------------------------------- prefixes


@given(st.sampled_from([*MODELS, "baseline"]), st.integers(0, 50), st.integers(0, 50))
def test_a_prefix_wins_for_its_stage_alone(stage, common, own):
    values = {"epochs": common, f"{stage}_epochs": own, "teacher_path": "t.pth"}
    for name in (*MODELS, "baseline"):
        assert stage_values(values, name) == {"epochs": own if name == stage else common, "teacher_path": "t.pth"}


# ---------------------------------------------------------------------- RecBole's models


def test_the_names_of_recboles_sequential_models():
    assert {"SASRec", "GRU4Rec", "S3Rec", "LightSANs", "TransRec"} <= set(sequential_models())
    assert not {"BPR", "TransNet", "DynamicRNN"} & set(sequential_models())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"baselines": ["SASRecc"]}, "baselines: RecBole has no model 'SASRecc'; the nearest is 'SASRec'"),
        ({"baselines": ["sasrec"]}, "baselines: RecBole has no model 'sasrec'; the nearest is 'SASRec'"),
        ({"model": "BPR"}, "model: BPR is no sequential model"),
        ({"teacher": "NeuMF"}, "teacher: NeuMF is no sequential model"),
        ({"teacher": "gru"}, "teacher: RecBole has no model 'gru'"),
        ({"baselines": "SASRec"}, "baselines in config_dict is 'SASRec', expected a list of texts"),
        ({"num_layers": 2}, "unknown key 'num_layers'"),
        ({"teacher_num_layers": 2}, "unknown key 'teacher_num_layers'"),
        ({"teacher": "SASRec", "teacher_num_layers": 2}, "unknown key 'teacher_num_layers'"),
        ({"baseline_epoch": 2}, "the nearest known key is 'baseline_epochs'"),
        ({"model": "GRU4Rec", "hidden_size": "wide"}, "hidden_size in config_dict is 'wide'"),
        ({"plugins": 3}, "plugins in config_dict is 3, expected text or a list of texts"),
    ],
    ids=str,
)
def test_wrong_names_and_keys_of_models_are_refused(values, words):
    assert words in refused(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"baselines": ["GRU4Rec", "CpRec"], "num_layers": 2, "baseline_dropout_prob": 0},
        {"teacher": "GRU4Rec", "teacher_num_layers": 2, "num_layers": 1},
        {"teacher": "KSR", "teacher_gamma": 10.0},
        {"model": "KSR", "gamma": 10.0},
        {"model": "CORE", "sess_dropout": 0.1, "baseline_temperature": 0.1},
        {"model": "S3Rec", "train_stage": "finetune", "pre_model_path": "S3Rec.pth"},
        {"baseline_sess_dropout": 0.1},
        {"model": "AdaRecStudent"},
    ],
    ids=str,
)
def test_keys_of_named_models_are_known(values):
    resolve_user_config(None, [], values)


def test_the_student_as_the_model_is_the_whole_run():
    assert resolve_user_config(None, [], {"model": "AdaRecStudent"}) == resolve_user_config(None, [], {})


def test_a_model_that_was_registered_is_admitted(monkeypatch):
    module = ModuleType("recbole.model.sequential_recommender.mine")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.Mine = type("Mine", (SASRec,), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    check_sequential("Mine", "baselines")
    resolve_user_config(None, [], {"baselines": ["Mine"], "baseline_my_own_key": 3})


@pytest.mark.parametrize("name", ["SASRec.pth", "saved/x", "a.pt"])
def test_a_file_as_the_teacher_is_a_checkpoint(name):
    assert is_checkpoint(name) and not is_checkpoint("SASRec") and not is_checkpoint(None)


# ---------------------------------------------------------------------- the whole configuration


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dataset": "beauty", "user_inter_num_interval": "[5,inf)", "val_interval": {"rating": "[3,inf)"}},
        {"baselines": ["SASRec"], "baseline_hidden_size": 32, "teacher_epochs": 3, "gpu_id": [0]},
        {"teacher": "GRU4Rec", "teacher_num_layers": 2},
        {"teacher": "BERT4Rec"},
        {"model": "FPMC"},
        {"model": "S3Rec", "train_stage": "finetune"},
        {"backbone": "BERT4Rec", "item_table": "adaptive", "topk": 5, "metrics": "NDCG", "valid_metric": "NDCG@5"},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": {"valid": "full"}}},
    ],
    ids=str,
)
def test_a_stored_configuration_is_read_back_and_gives_the_same_run(values):
    whole = full_config(resolve_user_config(None, [], values))
    Path("config.yaml").write_text(yaml.safe_dump(whole))
    again = resolve_user_config(None, ["config.yaml"], {})
    assert again == whole
    assert full_config(again) == whole


def test_every_stage_has_recboles_configuration_of_its_own_model():
    values = resolve_user_config(None, [], {"backbone": "SASRec", "student_gamma": 0.3})
    for stage, model in STAGES.items():
        config = stage_config(values, stage)
        assert isinstance(config, AdaRecConfig) and config["model"] == model
        assert config["epochs"] == model_defaults(model)["epochs"]
    assert stage_config(values, "student")["gamma"] == 0.3 and stage_config(values, "search")["gamma"] == 0.8
    assert stage_config(values, "teacher")["dropout_prob"] == 0.3, "the backbone has a default of its own"


def test_recboles_refusals_are_one_line():
    values = resolve_user_config(None, [], {"metrics": ["Recal"]})
    with pytest.raises(AdaRecError, match="configuration of AdaRecTeacher: There is no metric named 'Recal'"):
        stage_config(values, "teacher")


@pytest.mark.parametrize(("given", "seen"), [("1", "1"), ([0, 1], "0,1"), (2, "2")])
def test_gpus_are_named_as_the_environment_names_them(monkeypatch, given, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert stage_config(resolve_user_config(None, [], {"gpu_id": given}), "teacher")["gpu_id"] == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_the_callers_arguments_are_not_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook", "--epochs=77", "--not_a_key=1"])
    assert stage_config(resolve_user_config(None, [], {}), "teacher")["epochs"] != 77


def test_numpy_has_the_names_that_recbole_uses(monkeypatch):
    for name in ("float", "long"):
        monkeypatch.delattr(np, name, raising=False)
    stage_config(resolve_user_config(None, [], {}), "teacher")
    assert np.float is np.float64 and np.long is np.int_
