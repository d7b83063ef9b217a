"""RecBole's own models beside ours: trained as RecBole trains them, or, the causal ones, on every position of windows.

RecBole trains a history of n items as n - 1 rows of one target each; a causal model can give all of those targets from
one row, in a small part of the time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_adarec.config.baselines import item_features
from recbole_adarec.config.stages import AdaRecConfig
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.interop.every_position import EveryPosition, EveryPositionTrainer
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.registry import get_model
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.trainer.fitting import fit_and_evaluate
from recbole_adarec.trainer.registry import get_trainer


@recbole_patches()
def train_baseline(path: Path, config: AdaRecConfig, windows: Loaders | None = None) -> None:
    """Train a model and write its file.

    Parameters
    ----------
    path : Path
        The file.
    config : Config
        What `baseline_config` gave.
    windows : Loaders, optional
        To train on every position of: our loaders. Otherwise the model is trained as RecBole trains it, on RecBole's.
    """
    init_seed(config["seed"], config["reproducibility"])
    data = load_data(config) if windows is None else windows.for_stage(config)
    start = time.perf_counter()
    model = build_baseline(config, data, windows is not None).to(config["device"])
    trainer = get_trainer(config)(config, model) if windows is None else EveryPositionTrainer(config, model)
    trainer.saved_model_file = str(path.with_name(f".{path.stem}.training.pth"))
    results = fit_and_evaluate(trainer, data, config["show_progress"])
    save_model(path, model, config, seconds=time.perf_counter() - start, **results)


def build_baseline(config: AdaRecConfig, data: Loaders, every_position: bool = False) -> Any:
    """The untrained model of a configuration; item features that `data` lacks are loaded."""
    model_class = EveryPosition if every_position else get_model(config["model"])
    dataset = data.train._dataset
    if any(column not in dataset.field2type for column in item_features(config)):
        dataset = load_data(config).train._dataset
    return model_class(config, dataset)
