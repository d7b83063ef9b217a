"""Configurations of models that are trained beside a run: RecBole's own, and CpRec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adarec.config.recbole_models import recbole_model_defaults
from recbole_adarec.config.schema import MODELS
from recbole_adarec.config.stages import AdaRecConfig, make_config, stage_values
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.registry import get_model
from recbole_adarec.storage.properties import model_defaults


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
    if features := item_features(config):
        own["load_col"] = _with_columns(config, features)
        config = make_config(name, own)
    if own.get("train_neg_sample_args", ...) is None and config["loss_type"] != "CE":
        del own["train_neg_sample_args"]  # a run's default, for cross entropy; others need RecBole's sampled negatives
        config = make_config(name, own)
    if every_position and config["loss_type"] != "CE":
        raise AdaRecError(f"fast_baselines: {name} has loss_type {config['loss_type']!r}, every position takes 'CE'")
    return config


def every_position_values() -> dict[str, Any]:
    """Keys of our training that RecBole's models do not have; items of the history are ranked as RecBole ranks them."""
    ours = model_defaults("AdaRecTeacher")
    kept = {key: ours[key] for key in ours if key.startswith(("item_", "sampled_"))}
    return kept | {"item_table_rate": 1.0, "repeat_bias": 0.0}


def item_features(config: Any) -> list[str]:
    """Columns of the ``.item`` file that a RecBole model reads: ``selected_features`` or ``item_attribute``."""
    keys = recbole_model_defaults(config["model"])
    named = [config[key] for key in ("selected_features", "item_attribute") if key in keys and config[key]]
    return [column for value in named for column in (value if isinstance(value, list) else [value])]


def _with_columns(config: Any, features: list[str]) -> Any:
    """``load_col`` with the item features that a model reads, unless it loads columns of items already.

    Raises
    ------
    AdaRecError
        If the dataset has no such column.
    """
    columns = config["load_col"]
    if columns is None or "item" in columns:  # None loads everything
        return columns
    name, folder = config["dataset"], Path(config["data_path"])
    file = folder / f"{name}.item"
    if folder.is_dir():  # else it is downloaded later
        header = ""
        if file.is_file():
            with file.open(encoding=config["encoding"] or "utf-8") as lines:
                header = lines.readline().rstrip("\n")
        known = [column.split(":")[0] for column in header.split(config["field_separator"])]
        if missing := [column for column in features if column not in known]:
            raise AdaRecError(
                f"{config['model']} reads the item feature {missing[0]!r}, and dataset {name!r} has "
                + (f"none of that name in {file}: {', '.join(known)}" if header else f"no file {file}")
                + "; name the features of your data with --selected_features= (S3Rec: --item_attribute=)"
            )
    return columns | {"item": [config["ITEM_ID_FIELD"], *features]}
