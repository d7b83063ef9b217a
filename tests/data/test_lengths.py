"""``MAX_ITEM_LIST_LENGTH: auto``: chosen by the lengths of the histories, and kept as a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_adarec import run_adarec
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.data.dataset import history_length
from recbole_adarec.data.loading import load_data
from recbole_adarec.storage.yaml_files import load_yaml
from tests.helpers import SMALL, make_config, write_dataset


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([9, 12, 30], 50), ([50] * 19 + [100], 50), ([90] * 10, 100), ([150, 120], 200), ([900, 5], 200)],
)
def test_the_least_length_that_holds_nearly_all_interactions(lengths, expected):
    assert history_length(np.array(lengths, dtype=int)) == expected


def test_auto_is_a_number_once_the_data_is_loaded(tmp_path):
    histories = [[(user + step) % 40 + 1 for step in range(90)] for user in range(12)]
    folder = write_dataset(tmp_path / "data", "long", histories)
    config = make_config("teacher", "long", data_path=str(folder), MAX_ITEM_LIST_LENGTH="auto")
    data = load_data(config)
    assert config["MAX_ITEM_LIST_LENGTH"] == data.dataset.max_item_list_len == 100
    assert data.test._dataset[[0]]["item_id_list"].shape == (1, 100)
    report = run_adarec("long", config_dict={**SMALL, "data_path": str(folder)}, run_dir="run")
    assert load_yaml(Path("run/config.yaml"))["MAX_ITEM_LIST_LENGTH"] == 100
    again = run_adarec("long", config_dict={**SMALL, "data_path": str(folder)}, run_dir="run")
    assert [row["test"] for row in again["models"]] == [row["test"] for row in report["models"]]


def test_models_of_recbole_keep_its_length():
    for values in ({"model": "SASRec"}, {"teacher": "GRU4Rec"}):
        assert "MAX_ITEM_LIST_LENGTH" not in resolve_user_config("ml-100k", [], values)
    assert (
        resolve_user_config("ml-100k", [], {"model": "SASRec", "MAX_ITEM_LIST_LENGTH": 80})["MAX_ITEM_LIST_LENGTH"]
        == 80
    )
