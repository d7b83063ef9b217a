"""What `patch_recbole` replaces, and that all of it is put back."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.trainer import PretrainTrainer, Trainer
from recbole.utils import url

from recbole_adarec import AdaRecError, patch_recbole, recbole_patches, unpatch_recbole


def replaced() -> list[Any]:
    return [
        vars(Trainer)["_save_checkpoint"],
        vars(PretrainTrainer)["save_pretrained_model"],
        vars(Dataset)["_download"],
        vars(Dataset)["get_preload_weight"],
        frozenset(torch.serialization.get_safe_globals()),
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
    ]


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_recbole()


@pytest.mark.parametrize("anomaly", [True, False])
def test_unpatching_puts_the_same_objects_back(anomaly):
    torch.autograd.set_detect_anomaly(anomaly, check_nan=False)
    before = replaced()
    for _ in range(2):
        patch_recbole()
        patch_recbole()
        patched = replaced()
        assert all(now != then for now, then in zip(patched[:5], before[:5], strict=True)) and not patched[5]
        for now, then in zip(patched[:4], before[:4], strict=True):
            assert inspect.signature(now) == inspect.signature(then) and now.__name__ == then.__name__
        unpatch_recbole()
        assert replaced() == before
        unpatch_recbole()
        assert replaced() == before


def test_a_block_nests_and_outlives_nothing():
    before = replaced()
    with recbole_patches():
        inside = replaced()
        with recbole_patches():
            assert replaced() == inside
        assert replaced() == inside
        patch_recbole()
    assert replaced() == inside  # patch_recbole lasts
    with recbole_patches():
        unpatch_recbole()
        assert replaced() == inside
    assert replaced() == before


def test_a_block_has_no_anomaly_detection_whenever_it_was_switched_on():
    patch_recbole()
    torch.autograd.set_detect_anomaly(True)
    with recbole_patches():
        assert not torch.is_anomaly_enabled()
    assert torch.is_anomaly_enabled()


def test_a_decorated_function_is_patched_while_it_runs_and_after_an_error_no_more():
    before = replaced()

    @recbole_patches()
    def work(depth: int) -> None:
        """Its text."""
        assert replaced() != before
        if depth:
            work(depth - 1)
        else:
            raise KeyError

    with pytest.raises(KeyError):
        work(2)
    assert replaced() == before and work.__doc__ == "Its text."


def test_names_that_the_user_admitted_stay_admitted():
    class Mine:
        pass

    with recbole_patches():
        torch.serialization.add_safe_globals([Mine])
    assert Mine in torch.serialization.get_safe_globals()


def test_importing_sine_under_the_patch_leaves_anomaly_detection_off(python):
    python(
        "import sys, torch, recbole_adarec\n"
        "with recbole_adarec.recbole_patches():\n"
        "    import recbole.model.sequential_recommender.sine\n"
        "    assert not torch.is_anomaly_enabled()\n"
        "    torch.autograd.set_detect_anomaly(True)\n"
        "assert not torch.is_anomaly_enabled()"
    )


def test_a_download_that_fails_leaves_nothing_and_stock_recbole_is_not_asked(recbole_config, monkeypatch, tmp_path):
    config = recbole_config("SASRec", train_neg_sample_args=None)
    config["data_path"], config["dataset"] = str(tmp_path / "data" / "ml-1m"), "ml-1m"

    def offline(_: str) -> bool:
        raise OSError("no network")

    monkeypatch.setattr(url, "decide_download", offline)
    with recbole_patches(), pytest.raises(AdaRecError, match="'ml-1m' is not in .* could not be downloaded"):
        SequentialDataset(config)
    assert not list((tmp_path / "data").iterdir())
