"""Every sequential model of RecBole trains, saves and loads under the patch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec import run_adarec
from recbole_adarec.cli import main
from recbole_adarec.interop.patches import recbole_patches

WITH_ENTITIES = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "ent": ["ent_id", "ent_emb"],
        "rel": ["rel_id", "rel_emb"],
        "link": ["item_id", "entity_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
    },
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_item_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "kg_embedding_size": 8,
    # RecBole has no defaults of these for models with entities.
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}
CANDIDATES = {"reranker_CAN_NUM": 5}  # of 20 items; RecBole's default is for large catalogs
# What a model needs besides: item features are loaded for all.
MODELS: dict[str, dict[str, object]] = {
    "BERT4Rec": {}, "CORE": {}, "Caser": {}, "DIEN": {}, "DIN": {}, "FDSA": {}, "FEARec": {}, "FOSSIL": {}, "FPMC": {},
    "GCSAN": {}, "GRU4Rec": {}, "GRU4RecCPR": CANDIDATES, "GRU4RecF": {}, "GRU4RecKG": WITH_ENTITIES, "HGN": {},
    "HRM": {}, "KSR": WITH_ENTITIES, "LightSANs": {}, "NARM": {}, "NPE": {}, "NextItNet": {}, "RepeatNet": {},
    "S3Rec": {"pretrain_epochs": 1, "save_step": 1}, "SASRec": {}, "SASRecCPR": CANDIDATES, "SASRecF": {}, "SHAN": {},
    "SINE": {}, "SRGNN": {}, "STAMP": {}, "TransRec": {},
}  # fmt: skip


def small_config(recbole_config, name, **values):
    config = recbole_config(name, **values, train_neg_sample_args=None)
    # Models that are not trained by cross entropy take RecBole's sampled negatives.
    return config if config["loss_type"] == "CE" else recbole_config(name, **values)


@torch.no_grad()
def scores(model, rows):
    try:
        return model.eval().full_sort_predict(rows)
    except NotImplementedError:  # DIN and DIEN score given items
        return model.eval().predict(rows)


def test_all_of_them_are_here():
    with recbole_patches():
        import recbole.model.sequential_recommender as package
    assert {name for name, value in vars(package).items() if isinstance(value, type)} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_trains_saves_and_loads(name, recbole_config, tmp_path):
    with recbole_patches():
        config = small_config(recbole_config, name, **MODELS[name])
        init_seed(config["seed"], True)
        train, valid, test = data_preparation(config, create_dataset(config))
        model = get_model(name)(config, train._dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid, verbose=False)
        result = trainer.evaluate(test, load_best_model=True)
        assert 0 <= result[config["valid_metric"].lower()] <= 1

        # As RecBole's load_data_and_model does it.
        checkpoint = torch.load(trainer.saved_model_file)
        stored = checkpoint["config"]
        _, _, again = data_preparation(stored, create_dataset(stored))
        loaded = get_model(stored["model"])(stored, again._dataset)
        loaded.load_state_dict(checkpoint["state_dict"])
        loaded.load_other_parameter(checkpoint.get("other_parameter"))
        rows = next(iter(test))[0]
        assert torch.equal(scores(loaded, rows), scores(model, rows))


def test_s3rec_is_finetuned_from_its_pretraining(recbole_config, tmp_path):
    with recbole_patches():
        config = recbole_config("S3Rec", train_neg_sample_args=None, **MODELS["S3Rec"])
        train, _, _ = data_preparation(config, create_dataset(config))
        trainer = get_trainer(config["MODEL_TYPE"], "S3Rec")(config, get_model("S3Rec")(config, train._dataset))
        trainer.fit(train, verbose=False)
        pretrained = trainer.saved_model_file
        values = {"train_stage": "finetune", "pre_model_path": pretrained}
        config = recbole_config("S3Rec", train_neg_sample_args=None, **values)
        train, valid, test = data_preparation(config, create_dataset(config))
        model = get_model("S3Rec")(config, train._dataset)
        assert torch.equal(model.aap_norm.weight, trainer.model.aap_norm.weight)
        trainer = get_trainer(config["MODEL_TYPE"], "S3Rec")(config, model)
        trainer.fit(train, valid, verbose=False)
        assert trainer.evaluate(test)["recall@10"] > 0


SMALL = ["--epochs=1", "--hidden_size=8", "--show_progress=False", "--latency_repeats=2", "--MAX_ITEM_LIST_LENGTH=8"]


@pytest.mark.parametrize("name", ["SASRecF", "GRU4RecF", "FDSA", "S3Rec"])
def test_the_command_line_loads_the_item_features_of_a_model(name, shop, capsys):
    own = ["--pretrain_epochs=1", "--save_step=1"] if name == "S3Rec" else []
    arguments = [f"--model={name}", "--dataset=shop", f"--data_path={shop}", "--run_dir=run", *SMALL, *own]
    assert main(arguments) == 0, capsys.readouterr().err
    report = json.loads(Path("run/report.json").read_text())
    assert report["models"][0]["name"] == name and report["models"][0]["test"]["recall@10"] > 0


def test_an_item_feature_that_is_not_there_is_named(shop, capsys):
    arguments = ["--model=SASRecF", "--dataset=shop", f"--data_path={shop}", "--selected_features=[colour]", *SMALL]
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert "'colour'" in line and "item_id, release_year, class" in line and line.count("\n") == 1


def test_anomaly_detection_is_off_in_our_runs_and_afterwards_as_the_user_had_it(shop, monkeypatch):
    from recbole.trainer import Trainer

    during = []
    original = Trainer._train_epoch
    monkeypatch.setattr(
        Trainer, "_train_epoch", lambda *a, **k: during.append(torch.is_anomaly_enabled()) or original(*a, **k)
    )
    torch.autograd.set_detect_anomaly(True)
    values = {"data_path": str(shop), "epochs": 1, "hidden_size": 8, "show_progress": False, "latency_repeats": 2}
    run_adarec("shop", config_dict=values, model="SINE", run_dir="run")
    assert during == [False] and torch.is_anomaly_enabled()
