"""Logs in the places of RecBole: TensorBoard, Weights & Biases, ``log/`` and ``saved/``."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.runs.pipeline import Run

SMALL = {
    "backbone": "NextItNet", "epochs": 1, "hidden_size": 8, "block_num": 1, "distilled_layers": 2, "cost_budget": None,
    "candidates": 1, "candidate_sizes": None, "train_batch_size": 400, "show_progress": False,
}  # fmt: skip


class FakeWandb(ModuleType):
    """The part of wandb that RecBole's logger uses; records what was logged."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.run: Any = None
        self.started: list[str] = []
        self.logged: dict[str, list[str]] = {}

    def init(self, project: str, config: Any) -> None:
        self.started.append(f"{project}: {os.environ['WANDB_NAME']} of {os.environ['WANDB_RUN_GROUP']}")
        self.run = type("Run", (), {"summary": {}})()

    def log(self, metrics: dict[str, Any], commit: bool) -> None:
        self.logged.setdefault(self.started[-1], []).extend(metrics)

    def define_metric(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def finish(self) -> None:
        self.run = None


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_each_stage_has_its_own_curves_and_logs_are_where_recbole_has_them(tiny, wandb):
    values = resolve_user_config("tiny", [], {**SMALL, "data_path": str(tiny), "log_wandb": True, "wandb_project": "p"})
    run = Run(RunConfig(values | {"checkpoint_dir": "kept"}))
    run.train(until="search")
    name = run.folder.path.name
    assert run.folder.path.parent == Path("kept") and name.startswith("tiny-")
    assert wandb.started == [f"p: {name} {stage} of {name}" for stage in ("teacher", "search")] and wandb.run is None
    assert {"train/train_loss", "valid/ndcg@10"} <= set(wandb.logged[wandb.started[0]])
    assert not {"WANDB_NAME", "WANDB_RUN_GROUP"} & set(os.environ)
    assert sorted(path.name for path in (run.folder / "tensorboard").iterdir()) == ["search", "teacher"]
    log = Path("log/AdaRec") / f"{name}.log"
    assert log.read_text() == (run.folder / "log.txt").read_text() and "teacher begins" in log.read_text()
    assert not Path("log_tensorboard").exists() and not Path("saved").exists()


def test_a_wandb_run_that_the_user_started_goes_on(tiny, wandb):
    wandb.run = user_run = type("Run", (), {"summary": {}})()
    wandb.started.append("user")
    overrides = {**SMALL, "data_path": str(tiny), "log_wandb": True, "run_dir": "here"}
    Run(RunConfig(resolve_user_config("tiny", [], overrides))).train(until="teacher")
    assert wandb.run is user_run and wandb.started == ["user"] and "train/train_loss" in wandb.logged["user"]
    assert not Path("log").exists(), "a run whose folder was named keeps its log there alone"


def test_missing_wandb_is_reported_before_anything_is_written(tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("recbole_adarec.config.stages.find_spec", lambda name: None)
    assert main(["--dataset=tiny", f"--data_path={tiny}", "--log_wandb=True"]) == 2
    error = capsys.readouterr().err
    assert "pip install wandb" in error and error.count("\n") == 1
    assert not Path("saved").exists() and not Path("log").exists()
