"""Large catalogs and mixed precision: the softmax over items is bounded, sampled, sparse, and still learns."""

from __future__ import annotations

import logging

import pytest
import torch
from recbole.utils import get_model, get_trainer

from recbole_adarec import AdaRecError, run_adarec
from recbole_adarec.data.loading import load_data
from recbole_adarec.losses.full_softmax import SoftmaxLoss
from recbole_adarec.storage.files import load_checkpoint
from recbole_adarec.trainer.optimizer import clip_gradients
from tests.helpers import make_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("items", "item_loss", "expected"),
    [
        (100, "auto", "full"), (1_683, "auto", "chunked"), (10_001, "auto", "chunked"), (10_002, "auto", "sampled"),
        (1_683, "full", "full"), (100, "chunked", "chunked"), (100, "sampled", "sampled"),
        (10**6, "chunked", "chunked"),
    ],
)  # fmt: skip
def test_the_mode_of_the_loss_follows_the_catalog_unless_it_is_configured(items, item_loss, expected, caplog):
    with caplog.at_level(logging.INFO):
        loss = SoftmaxLoss(make_config("teacher", item_loss=item_loss), items, CPU)
    assert loss.mode == expected and f"{expected} for {items - 1} items" in caplog.text
    if expected == "chunked":
        assert loss.rows * items * 4 <= max(2**20, 64 * items * 4), "a chunk fits the cache, or is 64 positions"


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(AdaRecError, match="item_loss.*'sample'.*sampled"):
        make_config("teacher", item_loss="sample")


def test_evaluation_takes_fewer_rows_where_their_scores_are_too_large(tiny):
    values = {"data_path": str(tiny), "eval_batch_size": 512}
    assert load_data(make_config("teacher", "tiny", **values)).valid.config["eval_batch_size"] == 512
    bounded = load_data(make_config("teacher", "tiny", eval_scores_mb=1, eval_batch_size=10**5, data_path=str(tiny)))
    rows, items = bounded.valid.config["eval_batch_size"], bounded.dataset.item_num
    assert rows >= 1 and 2 * 4 * rows * items <= 10**6 < 2 * 4 * (rows + 1) * items


def trainer_of(stage, tiny, **values):
    values = {"hidden_size": 16, "item_loss": "sampled", "cost_budget": None, **values}
    config = make_config(stage, "tiny", data_path=str(tiny), **values)
    data = load_data(config)
    model = get_model(config["model"])(config, data.train._dataset)
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model), data


def test_a_sampled_step_touches_only_the_rows_of_its_batch(tiny):
    """What a step costs does not grow with the catalog: neither its gradient nor its update do."""
    trainer, data = trainer_of("teacher", tiny, sampled_items=2, train_batch_size=4, train_neg_sample_args=None)
    trainer.item_loss.prepare(torch.ones(trainer.model.n_items))
    batch = next(trainer.batches(data.train, torch.tensor([0])))
    table = trainer.model.item_table.embedding.weight
    before = table.detach().clone()
    trainer._step(batch)
    assert table.grad.is_sparse
    changed = (table != before).any(1).nonzero().flatten()
    seen = set(batch.interaction["item_id_list"].flatten().tolist())
    seen |= set(batch.interaction["target_item_id_list"].flatten().tolist())
    assert len(changed) > 0 and len(set(changed.tolist()) - seen) <= 2 and 0 not in changed


@pytest.mark.parametrize("stage", ["teacher", "search", "student"])
@pytest.mark.parametrize("item_loss", ["full", "sampled"])
@pytest.mark.parametrize(("asked", "batch", "rate"), [(2.5, 4, 2.5), (None, 4, "root"), (None, 500, 1), (None, 1, 4)])
def test_the_item_table_learns_at_its_own_rate(tiny, stage, item_loss, asked, batch, rate):
    trainer, _ = trainer_of(stage, tiny, item_loss=item_loss, item_table_rate=asked, train_batch_size=batch)
    trainer._set_learning_rate(0.3)
    table = trainer.model.item_table.embedding.weight
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    of_table, others = rates.pop(id(table)), set(rates.values())
    expected = (trainer.model.n_items / batch) ** 0.5 if rate == "root" else rate
    assert len(others) == 1 and of_table == pytest.approx(expected * others.pop())


def test_a_whole_sampled_run_learns_and_reports(tiny, tmp_path):
    report = run_adarec(
        "tiny",
        config_dict={
            "data_path": str(tiny), "item_loss": "sampled", "sampled_items": 10, "teacher_epochs": 20,
            "search_epochs": 3, "student_epochs": 15, "hidden_size": 16, "block_num": 2, "distilled_layers": 2,
            "train_batch_size": 100, "latency_repeats": 2, "show_progress": False, "cost_budget": None,
            "candidate_sizes": None,
            "candidate_epochs": 8,  # two of five batches each would choose by luck
        },
        run_dir=tmp_path / "run",
    )  # fmt: skip
    for model in report["models"]:
        assert model["test"]["ndcg@10"] > 0.7, "nine of ten next items follow from the last one"
    assert "item_loss sampled: sampled" in (tmp_path / "run" / "log.txt").read_text()


def test_sparse_gradients_survive_a_checkpoint(tiny, tmp_path):
    trainer, data = trainer_of("search", tiny, epochs=2, sampled_items=8, alpha_warmup=0)
    trainer.saved_model_file = str(tmp_path / "c.pth")
    trainer.fit(data.train, verbose=False)
    other, _ = trainer_of("search", tiny, epochs=2, sampled_items=8, alpha_warmup=0)
    other.resume_checkpoint(tmp_path / "c.pth")
    states = [t.optimizer.state_dict() for t in (trainer, other)]
    assert states[0].keys() == states[1].keys() == {"0", "1"}
    for key in states[0]["1"]["state"][0]:
        torch.testing.assert_close(states[0]["1"]["state"][0][key], states[1]["1"]["state"][0][key])


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_torchs_for_dense_gradients_and_the_same_for_sparse_ones(max_norm):
    rows, values = torch.tensor([[1, 3, 1]]), torch.randn(3, 4)
    sparse = torch.sparse_coo_tensor(rows, values, (5, 4))
    expected = [torch.zeros(5, 4, requires_grad=True), torch.zeros(7, requires_grad=True)]
    found = [torch.zeros(5, 4, requires_grad=True), torch.zeros(7, requires_grad=True)]
    expected[0].grad, expected[1].grad = sparse.to_dense(), torch.arange(7.0)
    found[0].grad, found[1].grad = sparse, torch.arange(7.0)
    torch.nn.utils.clip_grad_norm_(expected, max_norm)
    clip_gradients(found, max_norm)
    torch.testing.assert_close(found[0].grad.to_dense(), expected[0].grad)
    torch.testing.assert_close(found[1].grad, expected[1].grad)


def test_mixed_precision_trains_to_nearly_the_same_losses(tiny, tmp_path):
    values = {
        "data_path": str(tiny), "teacher_epochs": 3, "search_epochs": 2, "student_epochs": 2, "hidden_size": 16,
        "block_num": 1, "distilled_layers": 2, "train_batch_size": 100, "latency_repeats": 2, "show_progress": False,
        "cost_budget": None, "candidate_sizes": None, "backbone": "NextItNet",
        "alpha_warmup": 0, "dropout_prob": 0.0, "stored_weights": "float32",
    }  # fmt: skip
    for amp in (False, True):
        run_adarec("tiny", config_dict=values | {"enable_amp": amp}, run_dir=tmp_path / str(amp))
    for stage in ("teacher", "search", "student"):
        plain, mixed = (load_checkpoint(tmp_path / str(amp) / f"{stage}.pth") for amp in (False, True))
        assert mixed["history"][-1]["loss"] == pytest.approx(plain["history"][-1]["loss"], rel=0.05)
        assert mixed["history"] != plain["history"], "half precision was used"
        assert all(t.dtype != torch.bfloat16 for t in mixed["state_dict"].values())
