"""RecBole finds our models by name and runs them its own way."""

from __future__ import annotations

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Collector
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec.data.dataset import SequenceDataset
from recbole_adarec.interop.registry import MODELS
from recbole_adarec.storage.properties import model_defaults
from recbole_adarec.trainer.collector import GatheringCollector

SMALL = {"cost_budget": None, "epochs": 2, "hidden_size": 8, "block_num": 1, "distilled_layers": 2, "eval_args": {
    "split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full",
}}  # fmt: skip


def stock_config(model, tiny, **values):
    """RecBole's own `Config`, as its quick start makes it."""
    values = {**SMALL, "data_path": str(tiny), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, **values}
    return Config(model=model, dataset="tiny", config_dict=values)


@pytest.mark.parametrize("name", list(MODELS))
def test_found_trained_evaluated_and_resumed_as_recbole_does(name, tiny):
    config = stock_config(name, tiny)
    assert config["learning_rate"] == model_defaults(name)["learning_rate"]
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    assert isinstance(dataset, SequenceDataset)
    train, valid, test = data_preparation(config, dataset)
    model = get_model(name)(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    assert type(trainer).__name__ == f"{name}Trainer"
    score, _ = trainer.fit(train, valid, show_progress=False)
    result = trainer.evaluate(test, load_best_model=True)
    assert 0 <= score <= 1 and set(result) >= {"recall@10", "ndcg@10"}

    other = get_trainer(config["MODEL_TYPE"], name)(config, get_model(name)(config, train._dataset))
    other.resume_checkpoint(trainer.saved_model_file)
    assert other.evaluate(test, load_best_model=False) == result
    assert other.start_epoch >= 1 and len(other.training_log) == other.start_epoch


def test_search_state_survives_a_resume(tiny):
    config = stock_config("AdaRecSupernet", tiny, alpha_warmup=0)
    train, _, _ = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], "AdaRecSupernet")(
        config, get_model("AdaRecSupernet")(config, train._dataset)
    )
    trainer.fit(train, verbose=False)
    model = get_model("AdaRecSupernet")(config, train._dataset)
    other = get_trainer(config["MODEL_TYPE"], "AdaRecSupernet")(config, model)
    other.resume_checkpoint(trainer.saved_model_file)
    assert torch.equal(model.alpha, trainer.model.alpha) and other.temperature == trainer.temperature < 1
    assert len(other.alpha_optimizer.state_dict()["state"]) == 1


def test_recboles_quick_start_runs_a_student(tiny):
    quick_start = pytest.importorskip("recbole.quick_start")
    values = {**SMALL, "data_path": str(tiny), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    result = quick_start.run_recbole(
        model="AdaRecStudent", dataset="tiny", config_dict={**values, "show_progress": False}
    )
    assert set(result["test_result"]) >= {"ndcg@10"}


def test_what_is_collected_for_metrics_is_what_recbole_collects(tiny):
    """Rows with several items to be found, and with none, among them."""
    config = stock_config("AdaRecStudent", tiny, metrics=["Recall", "GAUC", "ItemCoverage"], topk=[3, 5])
    collectors = [Collector(config), GatheringCollector(config)]
    generator = torch.Generator().manual_seed(0)
    for rows in (6, 4):
        scores = torch.randn(rows, 20, generator=generator)
        wanted = torch.rand(rows, 20, generator=generator) < 0.15
        wanted[0] = False
        row, item = wanted.nonzero(as_tuple=True)
        assert row.bincount().max() > 1
        for collector in collectors:
            collector.eval_batch_collect(scores.clone(), None, row, item)
    theirs, ours = (collector.get_data_struct()._data_dict for collector in collectors)
    assert {"rec.topk", "rec.items", "rec.meanrank"} <= theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype and torch.equal(ours[name], expected), name
