"""What trained models lose when they read less of the history."""

from __future__ import annotations

import json

import pytest

from recbole_adarec import run_adarec
from recbole_adarec.data.loading import load_data
from recbole_adarec.evaluation.history_length import by_history_length
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.model.registry import get_model
from tests.helpers import OLD_DEFAULTS, SMALL, make_config, with_random_weights, write_dataset


@pytest.mark.parametrize("backbone", ["CausalBSARec", "LRURec", "NextItNet"])
def test_a_cut_history_is_one_that_was_loaded_that_short(tiny, backbone):
    values = {"data_path": str(tiny), "backbone": backbone, "repeat_bias": -2.0, "eval_batch_size": 16}
    data = {
        length: load_data(make_config("teacher", "tiny", MAX_ITEM_LIST_LENGTH=length, **values)) for length in (4, 24)
    }
    config = make_config("teacher", "tiny", MAX_ITEM_LIST_LENGTH=24, **values)
    model = with_random_weights(get_model("AdaRecTeacher")(config, data[24].train._dataset))
    rows = by_history_length({"teacher": model}, data[24].valid, [4, 24])
    for row in rows:
        expected = float(user_scores(model, data[row["length"]].valid).ndcg.mean())
        assert row["ndcg"]["teacher"] == pytest.approx(expected, abs=1e-9)
    assert rows[0]["macs"]["teacher"] < rows[1]["macs"]["teacher"]
    assert rows[0]["ndcg"] != rows[1]["ndcg"]


@pytest.mark.parametrize("teacher", [None, "LightSANs", "NextItNet"])
def test_the_report_says_what_shorter_histories_cost(tmp_path, teacher):
    """Models of RecBole may need histories that are padded to their own length."""
    histories = [[(start + step) % 30 + 1 for step in range(60)] for start in range(30)]
    folder = write_dataset(tmp_path, "long", histories)
    values = {**SMALL, **OLD_DEFAULTS, "MAX_ITEM_LIST_LENGTH": "auto", "data_path": str(folder)}
    if teacher:
        values = {"MAX_ITEM_LIST_LENGTH": 100, "data_path": str(folder), "teacher": teacher, "epochs": 1, "nodes": 2}
        values |= {"candidates": 1, "candidate_sizes": None, "cost_budget": 0.5, "search_hidden_size": 8, "seed": 1}
        values |= {"latency_repeats": 2, "show_progress": False}
    report = run_adarec(dataset="long", config_dict=values, run_dir=tmp_path / "run")
    assert [row["length"] for row in report["histories"]] == [50, 100]
    assert "## Shorter histories" in (tmp_path / "run/report.md").read_text()
    assert "Shorter histories" in (tmp_path / "run/report.html").read_text()
    assert json.loads((tmp_path / "run/report.json").read_text())["histories"] == report["histories"]
