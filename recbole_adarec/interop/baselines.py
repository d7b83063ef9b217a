"""RecBole's own models beside ours: trained as RecBole trains them, or, the causal ones, on every position of windows.

RecBole trains a history of n items as n - 1 rows of one target each; a causal model can give all of those targets from
one row, in a small part of the time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec.config.schema import MODELS
from recbole_adarec.config.stages import AdaRecConfig, make_config, stage_values
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.every_position import EveryPosition, EveryPositionTrainer, every_position_values
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.trainer.fitting import fit_and_evaluate


def baseline_config(
    values: dict[str, Any], name: str, stage: str = "baseline", every_position: bool = False, **extra: Any
) -> AdaRecConfig:
    """RecBole's configuration of a model beside ours; `stage` is the prefix of its own values, `CpRec`'s is its own.

    Raises
    ------
    AdaRecError
        If RecBole has no such model, or it cannot be trained on every position.
    """
    try:
        get_model(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise AdaRecError(f"models: RecBole has no model {name!r}") from error
    if every_position:
        extra = every_position_values() | extra
    prefix = next((prefix for prefix, model in MODELS.items() if model == name), stage)
    own = stage_values(values, prefix) | extra
    config = make_config(name, own)
    if own.get("train_neg_sample_args", ...) is None and config["loss_type"] != "CE":
        del own["train_neg_sample_args"]  # a run's default, for cross entropy; others need RecBole's sampled negatives
        config = make_config(name, own)
    if every_position and config["loss_type"] != "CE":
        raise AdaRecError(f"fast_baselines: {name} has loss_type {config['loss_type']!r}, every position takes 'CE'")
    return config


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
    if windows is None:
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    else:
        trainer = EveryPositionTrainer(config, model)
    trainer.saved_model_file = str(path.with_name(f".{path.stem}.training.pth"))
    results = fit_and_evaluate(trainer, data, config["show_progress"])
    save_model(path, model, config, seconds=time.perf_counter() - start, **results)


def build_baseline(config: AdaRecConfig, data: Loaders, every_position: bool) -> Any:
    """The untrained model of a configuration."""
    kind = EveryPosition if every_position else get_model(config["model"])
    return kind(config, data.train._dataset)
