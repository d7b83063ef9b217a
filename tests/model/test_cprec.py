"""CpRec: layers are shared, it trains with RecBole's own functions, and its file alone rebuilds it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer

from recbole_adarec import AdaRecError, load_student, run_adarec
from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.model.residual_blocks import LAYER_SHARING
from recbole_adarec.model.stored import load_model
from recbole_adarec.storage.files import load_checkpoint
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.trainer.base import Batch
from recbole_adarec.trainer.fitting import fit_and_evaluate
from tests.helpers import OLD_DEFAULTS, make_config

SMALL = {
    "backbone": "NextItNet", "hidden_size": 16, "block_num": 2, "distilled_layers": 2,
    "train_batch_size": 100, "dropout_prob": 0.1,
    "item_blocks": 3, "item_width_factor": 2.0, "show_progress": False, "latency_repeats": 2, "threads": 1,
}  # fmt: skip


def build(data, stage="cprec", **values):
    config = make_config(stage, **values)
    return config, get_model(config["model"])(config, data.train._dataset)


def randomize(model):
    """Add noise to all weights: gates that start closed would hide the layers behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("sharing", LAYER_SHARING)
@pytest.mark.parametrize("stage", ["cprec", "teacher"])
def test_convolutions_are_shared_and_layer_norms_are_not(ml100k, sharing, stage):
    _, model = build(ml100k, stage, layer_sharing=sharing, item_width_factor=2.0)
    blocks, parameters = 16, 3 * 64 * 64 + 64
    convolutions = {"none": 32, "cross_layer": 1, "cross_block": 2, "adjacent_layer": 16, "adjacent_block": 16}[sharing]
    assert count_parameters(model)["layers"] == convolutions * parameters + blocks * (4 * 64 + 1)
    linears = [(block.conv1.linear, block.conv2.linear) for block in model.blocks]
    assert len({id(linear) for pair in linears for linear in pair}) == convolutions
    assert (linears[0][0] is linears[0][1]) == (sharing in ("cross_layer", "adjacent_layer"))
    assert (linears[0] == linears[1]) == (sharing in ("cross_layer", "cross_block", "adjacent_block"))
    assert [block.conv2.dilation for block in model.blocks[:2]] == [2, 8]


@pytest.mark.parametrize("values", [{}, {"item_output": "untied"}, {"item_table": "full"}])
def test_a_model_is_rebuilt_from_its_file_alone(ml100k, tmp_path, values):
    config, model = build(ml100k, **values)
    randomize(model)
    save_model(tmp_path / "cprec.pth", model, config, item_tokens=[str(i) for i in range(model.n_items)])
    again = load_model(tmp_path / "cprec.pth", expected="CpRec")
    sequence, lengths = torch.tensor([[5, 6, 7, 0], [9, 0, 0, 0]]), torch.tensor([3, 1])
    states = model(sequence, lengths)
    torch.testing.assert_close(again(sequence, lengths), states)
    assert torch.equal(again.item_table.scores(states), model.item_table.scores(states))
    student = load_student(tmp_path / "cprec.pth")
    scores = student.scores([["5", "6", "7"]])[0]
    for (token, score), best in zip(student.recommend(["5", "6", "7"], k=9), scores.topk(9).values, strict=True):
        assert score == pytest.approx(float(scores[int(token)]), abs=1e-5) == pytest.approx(float(best), abs=1e-5)


@pytest.mark.parametrize("sharing", ["cross_block", "cross_layer"])
@pytest.mark.parametrize("budget", [0.25, 0.125, 0.0625])
def test_a_model_spends_its_budget_and_no_more(ml100k, budget, sharing):
    """The budget is a share of a NextItNet with a full table and without sharing."""
    _, nextitnet = build(ml100k, "teacher")
    _, model = build(ml100k, total_budget=budget, layer_sharing=sharing)
    model.item_table.quantize()
    share = count_parameters(model)["total"] / count_parameters(nextitnet)["total"]
    full = set(model.item_table.cut.widths) == {model.hidden_size}
    assert share <= budget and (share > 0.98 * budget or full)


@pytest.mark.parametrize(("at", "dropout"), [(0.0, 0.3), (1e9, 0.0), (2.0, 0.3 * 136_528 / 97_171 / 2), (0.5, 0.3)])
def test_dropout_is_scaled_by_parameters_for_each_target(ml100k, at, dropout):
    _, model = build(ml100k, dropout_prob=0.3, full_dropout_at=at, total_budget=0.125)
    assert model.dropout.p == pytest.approx(dropout, abs=1e-5)


def test_no_output_depends_on_later_items(ml100k):
    _, model = build(ml100k)
    randomize(model)
    sequence = torch.randint(1, model.n_items, (3, 12))
    later = sequence.clone()
    later[:, 7:] = 1
    torch.testing.assert_close(model.encode(sequence).output[:, :7], model.encode(later).output[:, :7])


def test_files_hold_shared_weights_once(ml100k, tmp_path):
    size = {}
    for sharing in ("none", "cross_block"):
        config, model = build(ml100k, layer_sharing=sharing, item_width_factor=2.0)
        save_model(tmp_path / sharing, model, config)
        size[sharing] = (tmp_path / sharing).stat().st_size - 4 * count_parameters(model)["total"]
    assert abs(size["none"] - size["cross_block"]) < 50_000  # stored twice, shared weights would take a megabyte more


def test_recboles_own_functions_train_a_cprec_that_learns(tiny):
    values = {**SMALL, "data_path": str(tiny), "epochs": 20}
    config = stage_config(resolve_user_config("tiny", [], values), "cprec")
    train, valid, test = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], "CpRec")(config, get_model("CpRec")(config, train._dataset))
    assert type(trainer).__name__ == "CpRecTrainer" and trainer.item_loss.mode == "adaptive"
    batch, model = train._dataset[torch.arange(5)], trainer.model.eval()
    states, labels, _ = model.training_states(batch["item_id_list"], batch["target_item_id_list"])
    torch.testing.assert_close(trainer.item_loss(states, model.item_table, labels)[0], model.calculate_loss(batch))
    few = Batch(train._dataset[torch.tensor([0])], 5, 1.0)
    trainer._step(few)  # blocks without items get a gradient too: several processes sum their gradients
    assert all(p.grad is not None for p in model.item_table.parameters())
    trainer.fit(train, valid, show_progress=False)
    result = trainer.evaluate(test, load_best_model=True)
    assert result["ndcg@10"] > 0.6, "in nine of ten cases the last item determines the next one"


def test_a_run_with_an_adaptive_table_learns_from_a_full_teacher_and_reports_both_parts(tiny, tmp_path):
    report = run_adarec(
        "tiny",
        config_dict=SMALL | {
            "data_path": str(tiny), "item_table": "adaptive", "layer_sharing": "adjacent_block", "teacher_epochs": 15,
            "search_epochs": 2, "student_epochs": 15, "candidates": 1, "cost_budget": None,
            "candidate_sizes": None,
        },
        run_dir=tmp_path / "run",
    )  # fmt: skip
    teacher, student = report["models"]
    assert teacher["parameters"]["item_table"] == 21 * 16
    assert student["parameters"]["item_table"] == 3 * 16 + 6 * 8 + 11 * 4 + 16 * 12 + 2 * 17
    assert student["test"]["ndcg@10"] > 0.6
    assert (
        "item_loss adaptive: blocks of items x channels 3 x 16, 6 x 8, 11 x 4" in (tmp_path / "run/log.txt").read_text()
    )
    assert len(load_student(tmp_path / "run").recommend(["3", "4"], k=20)) == 20


def test_a_student_with_an_adaptive_table_spends_its_share_of_the_teachers_parameters(tiny, tmp_path):
    values = SMALL | {
        "data_path": str(tiny), "item_table": "adaptive", "item_width_factor": None, "total_budget": 0.06,
        "epochs": 1, "candidates": 1, "cost_budget": 0.03, "candidate_sizes": None,
    }  # fmt: skip
    report = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    teacher, student = (model["parameters"]["total"] for model in report["models"])
    assert 0.05 * teacher < student <= 0.06 * teacher
    assert len(load_student(tmp_path / "run").recommend(["3", "4"], k=20)) == 20, "its file stores the row widths"


def test_a_run_reports_the_quantized_model_of_its_file(ml100k, tmp_path):
    values = {
        **OLD_DEFAULTS, "item_table": "adaptive", "teacher_epochs": 1, "epochs": 1, "search_epochs": 1,
        "candidates": 1, "threads": 1, "candidate_sizes": None, "show_progress": False, "latency_repeats": 2,
        "distilled_layers": 2, "block_num": 2,
        "teacher_hidden_size": 32, "student_total_budget": 0.4, "cost_budget": 0.2, "item_code_epochs": 1,
    }  # fmt: skip
    report = run_adarec(config_dict=values, run_dir=tmp_path / "run")
    teacher, student = report["models"]
    assert student["parameters"]["total"] <= 0.4 * teacher["parameters"]["total"]
    content = load_checkpoint(tmp_path / "run/student.pth")
    state = content["state_dict"]
    assert [record["epoch"] for record in content["history"]] == [0, 1], "an epoch before, and one with codes"
    assert "item_table.embedding.codes.0" in state and "item_table.embedding.weight" not in state
    again = load_model(tmp_path / "run/student.pth", expected="AdaRecStudent")
    assert count_parameters(again) == student["parameters"]
    assert float(user_scores(again, ml100k.test).ndcg.mean()) == pytest.approx(student["test"]["ndcg@10"], abs=1e-4)
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search("item_codes: .* before quantization, .* after it, .* after 1 epochs of fine-tuning", log)


def test_training_with_codes_recovers_part_of_the_loss_of_quantization(ml100k, tmp_path):
    results = {}
    for epochs in (0, 1):
        config, model = build(
            ml100k, item_codes=8, epochs=2, hidden_size=32, block_num=1, item_code_epochs=epochs, served_prior=1.0,
            checkpoint_dir=str(tmp_path),
        )  # fmt: skip
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        fit_and_evaluate(trainer, ml100k, show_progress=False)
        assert len(trainer.training_log) == 2 + epochs
        rates = [group["lr"] / group.get("lr_scale", 1.0) for group in trainer.optimizer.param_groups]
        assert max(rates) == pytest.approx(0.05 * config["learning_rate"], rel=0.2), (
            "the cosine ends with each training"
        )
        table = model.item_table
        assert all(embedding.codes for embedding in table.quantized_embeddings())
        results[epochs] = float(user_scores(model, ml100k.valid).log_likelihood.mean()), table.parameter_count()
    assert results[1][0] > results[0][0] + 0.05 and results[1][1] == results[0][1]


def test_a_teacher_without_residual_blocks_takes_no_layer_sharing(ml100k):
    with pytest.raises(AdaRecError, match="layer_sharing: 'cross_block' is for NextItNet"):
        build(ml100k, "teacher", backbone="SASRec", layer_sharing="cross_block")


def test_a_teacher_with_an_adaptive_table_is_refused(tiny):
    with pytest.raises(AdaRecError, match="teacher_item_table"):
        run_adarec("tiny", config_dict={"data_path": str(tiny), "teacher_item_table": "adaptive"})


def test_the_experiment_compares_sizes_and_continues(tiny, tmp_path, capsys):
    arguments = [f"--{key}={value}" for key, value in SMALL.items()]
    arguments += [f"--data_path={tiny}", "--dataset=tiny", "--epochs=2", "--seeds=[1, 2]", "--arms=[CpRec, full table]"]
    assert main(["experiment", "cprec", *arguments]) == 0
    first = capsys.readouterr().out
    assert "times fewer" in first and "full table" in first
    result = json.loads((tmp_path / "experiments/tiny/cprec.json").read_text())
    assert list(result["arms"]) == ["NextItNet", "CpRec", "full table"]
    for arm in result["arms"].values():
        assert arm["parameters"]["total"] == arm["parameters"]["item_table"] + arm["parameters"]["layers"]
        assert arm["file_bytes"] > 4 * arm["parameters"]["total"]
    assert result["arms"]["CpRec"]["parameters"]["total"] < result["arms"]["NextItNet"]["parameters"]["total"] / 2
    page = (tmp_path / "experiments/tiny/cprec.html").read_text()
    assert "parameters (log axis)" in page and "layer parameters" not in page
    trained = tmp_path / "experiments/tiny/models/seed-1/CpRec/cprec.pth"
    assert load_checkpoint(trained)["model"] == "CpRec"
    before = trained.stat().st_mtime_ns
    assert main(["experiment", "cprec", *arguments]) == 0
    assert capsys.readouterr().out == first and trained.stat().st_mtime_ns == before
    assert main(["experiment", "cprec", *arguments[:-1], "--arms=[nothing]"]) == 2


def test_item_tables_are_compared_at_the_same_size_too(tiny, tmp_path, capsys):
    values = SMALL | {
        "search_hidden_size": 16,
        "cells": 1,
        "nodes": 1,
        "candidates": 1,
        "cost_budget": None,
        "candidate_sizes": None,
    }
    values |= {"teacher_epochs": 2, "search_epochs": 1, "student_epochs": 2, "seeds": [1]}
    arguments = [f"--{key}={'~' if value is None else value}" for key, value in values.items()]
    assert main(["experiment", "item-tables", f"--data_path={tiny}", "--dataset=tiny", *arguments]) == 0
    result = json.loads((tmp_path / "experiments/tiny/item-tables.json").read_text())
    assert result["reference"] == "adaptive" and len(result["arms"]) == 4
    total = {name: arm["parameters"]["total"] for name, arm in result["arms"].items()}
    smaller = next(name for name in total if name.startswith("full, "))
    assert abs(total[smaller] - total["adaptive"]) < 0.2 * total["adaptive"] < total["full"] < total["teacher"]
    assert "ratio" in capsys.readouterr().out
