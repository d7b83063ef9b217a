"""RecBole's own flow on a tiny dataset that has features and embeddings of its items."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
INTERACTIONS = ["user_id", "item_id", "rating", "timestamp"]


@pytest.fixture(autouse=True)
def as_recbole_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No arguments, which RecBole reads; torch's anomaly detection, which RecBole's SINE switches on, is put back."""
    monkeypatch.setattr(sys, "argv", ["recbole"])
    with torch.autograd.set_detect_anomaly(False):
        yield


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above ``shop/``: 40 users, 20 items with two features and an embedding."""
    folder = tmp_path_factory.mktemp("shop_data")
    (folder / "shop").mkdir()
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, 41):
        item = int(rng.integers(20))
        for time in range(int(rng.integers(6, 12))):
            lines.append(f"{user}\t{item + 1}\t{rng.integers(1, 6)}\t{time}")
            item = (item + 1) % 20 if rng.random() < 0.9 else int(rng.integers(20))
    items = [f"{i}\t{1990 + i % 5}\t{'abc'[i % 3]} {'de'[i % 2]}" for i in range(1, 21)]
    entities = [f"{i}\t" + " ".join(f"{x:.3f}" for x in rng.normal(size=8)) for i in range(1, 21)]
    files = {
        "inter": lines,
        "item": ["item_id:token\trelease_year:token\tclass:token_seq", *items],
        "ent": ["ent_id:token\tent_emb:float_seq", *entities],
        "rel": ["rel_id:token\trel_emb:float_seq", *(f"r{i}\t" + " ".join(["0.5"] * 8) for i in range(3))],
        "link": ["item_id:token\tentity_id:token", *(f"{i}\tm{i}" for i in range(1, 21))],
        "kg": [
            "head_id:token\trelation_id:token\ttail_id:token",
            *(f"m{i}\tr{i % 3}\tm{i % 7 + 1}" for i in range(1, 21)),
        ],
    }
    for ending, content in files.items():
        (folder / "shop" / f"shop.{ending}").write_text("\n".join(content) + "\n")
    return folder


@pytest.fixture
def recbole_config(shop: Path) -> Callable[..., Any]:
    """RecBole's own `Config` of a model, small."""
    from recbole.config import Config

    def make(model: str, **values: Any) -> Any:
        small = {"hidden_size": 8, "inner_size": 8, "embedding_size": 8, "MAX_ITEM_LIST_LENGTH": 8, "epochs": 1}
        own = {
            "data_path": str(shop),
            "load_col": {"inter": INTERACTIONS, "item": ["item_id", "class"]},
            "state": "ERROR",
        }
        return Config(model=model, dataset="shop", config_dict=small | own | {"show_progress": False} | values)

    return make


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """Run code in a process of its own, which finds the package; what it prints."""

    def run(code: str, **environment: str) -> str:
        environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
