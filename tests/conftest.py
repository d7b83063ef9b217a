"""Fixtures: ml-100k, which RecBole brings, and a tiny dataset with a planted signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_adarec.data.loading import Loaders, load_data
from tests.helpers import OLD_NUMPY, RECBOLE_MODELS, make_config, write_dataset

# Files that take longest, measured. They begin first, so that no process is left alone with one of them at the end.
SLOWEST = (
    "test_commands", "test_experiments", "test_pipeline", "test_import", "test_distributed", "test_tuning",
    "test_cprec", "test_sequential_models", "test_checkpoints", "test_recbole_teacher", "test_comparison",
    "test_plugins",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # stable


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes into the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.autograd.set_detect_anomaly(False)  # RecBole's SINE switches it on when it is imported: slow


@pytest.fixture(scope="session")
def ml100k() -> Loaders:
    return load_data(make_config("teacher"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 users, 20 items, histories of 8 to 24: the next item is the one after it, with some noise."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(60):
        item, history = int(rng.integers(20)), []
        for _ in range(int(rng.integers(8, 24))):
            history.append(item + 1)
            item = (item + 1) % 20 if rng.random() < 0.9 else int(rng.integers(20))
        histories.append(history)
    return write_dataset(tmp_path_factory.mktemp("data"), "tiny", histories)


_RECBOLE = """
import sys
folder, data = sys.argv[1:3]
sys.argv = sys.argv[:1]  # RecBole reads it
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
for name, values in {models!r}.items():
    config = Config(model=name, dataset="tiny", config_dict=dict(
        data_path=data, checkpoint_dir=folder, epochs=1, train_neg_sample_args=None, show_progress=False,
        load_col={{"inter": ["user_id", "item_id", "timestamp"]}}, user_inter_num_interval="[9,inf)", **values))
    init_seed(config["seed"], True)
    train, valid, _ = data_preparation(config, create_dataset(config))
    model = get_model(name)(config, train._dataset)
    get_trainer(config["MODEL_TYPE"], name)(config, model).fit(train, valid)
assert "recbole_adarec" not in sys.modules
"""


@pytest.fixture(scope="session")
def stock(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that stock RecBole wrote in its own process, by model: on the users of 9 interactions or more."""
    folder = tmp_path_factory.mktemp("stock")
    code = OLD_NUMPY + _RECBOLE.format(models=RECBOLE_MODELS)
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(tiny)]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return {name: next(folder.glob(f"{name}-*.pth")) for name in RECBOLE_MODELS}
