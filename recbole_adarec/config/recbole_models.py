"""RecBole's own models in a run: which keys they have, and what a trained one demands of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recbole
from recbole.utils import ModelType, get_model

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.recbole_checkpoint import RecBoleCheckpoint, read_checkpoint
from recbole_adarec.storage.yaml_files import load_yaml

# What decides which items and users there are, in which order they get their ids, and what the test data is.
DATA_KEYS = (
    "dataset", "load_col", "unload_col", "additional_feat_suffix", "benchmark_filename", "field_separator",
    "seq_separator", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "rm_dup_inter", "val_interval",
    "filter_inter_by_user_or_item", "user_inter_num_interval", "item_inter_num_interval", "alias_of_user_id",
    "alias_of_item_id", "MAX_ITEM_LIST_LENGTH", "eval_args",
)  # fmt: skip
# What else RecBole's training of a model depends on.
_TRAINING_KEYS = (
    "epochs", "train_batch_size", "learner", "learning_rate", "weight_decay", "eval_step", "stopping_step",
    "clip_grad_norm", "train_neg_sample_args", "shuffle", "transform",
)  # fmt: skip


def is_checkpoint(teacher: Any) -> bool:
    """Whether ``teacher`` names a file, and not a model."""
    return isinstance(teacher, str) and (teacher.endswith((".pth", ".pt")) or "/" in teacher)


def check_sequential(name: str, key: str) -> None:
    """Refuse what is no sequential model of RecBole."""
    try:
        known = get_model(name).type == ModelType.SEQUENTIAL
    except (ValueError, ImportError, AttributeError) as error:
        raise AdaRecError(f"{key}: RecBole has no model {name!r}") from error
    if not known:
        raise AdaRecError(f"{key}: {name} is no sequential model")


def stock_keys(name: Any) -> dict[str, Any]:
    """Default settings of a model beside ours, RecBole's or `CpRec`; none for a name that nobody knows."""
    for properties in (Path(recbole.__file__).parent / "properties", PROPERTIES):
        path = properties / "model" / f"{name}.yaml"
        if isinstance(name, str) and path.is_file():
            return load_yaml(path)
    return {}


def stock_settings(name: str, config: Any) -> dict[str, Any]:
    """What RecBole's training of a model depends on beside the data, as it is in a configuration."""
    keys = [*stock_keys(name), *_TRAINING_KEYS]
    # RecBole writes "none" for no negative sampling in words that it does not read back.
    return {key: None if key == "train_neg_sample_args" and _none(config[key]) else config[key] for key in keys}


def _none(sampling: Any) -> bool:
    return isinstance(sampling, dict) and sampling.get("distribution") == "none"


def data_of_teacher(given: dict[str, Any]) -> dict[str, Any]:
    """The data that a trained teacher was trained on: keys that the user has not given are the teacher's.

    RecBole's checkpoints do not hold which token has which id. Ids follow from the file and the keys in `DATA_KEYS`,
    so those must be the same; that the numbers of items and users agree is checked with the data, and that the file is
    the same one by the teacher's validation result, which RecBole recorded.

    Parameters
    ----------
    given : dict
        What the user gave; ``teacher`` is a file.

    Returns
    -------
    dict
        Values for `DATA_KEYS` that are not given.

    Raises
    ------
    AdaRecError
        If a given value is not the teacher's.
    """
    checkpoint = read_checkpoint(given["teacher"])
    check_sequential(checkpoint.model, f"teacher: {checkpoint.path}")
    adopted = {}
    for key in DATA_KEYS:
        if key not in checkpoint.config:
            continue
        there = checkpoint.config[key]
        if key not in given:
            adopted[key] = there | {"mode": "full"} if key == "eval_args" else there
        elif _shape(key, given[key]) != _shape(key, there):
            raise AdaRecError(
                f"teacher: {checkpoint.path} was trained with {key}={there!r}, and {given[key]!r} is given: it would "
                f"know the items by other ids, or have seen the test data; leave {key} out to have the teacher's"
            )
    return adopted


def _shape(key: str, value: Any) -> Any:
    """The part of a value that matters."""
    if key == "load_col":  # further columns change no id, further files do
        return sorted(value) if isinstance(value, dict) else value
    if key == "eval_args" and isinstance(value, dict):
        return value.get("split"), value.get("order"), value.get("group_by", "user")
    return value


def check_recorded(checkpoint: RecBoleCheckpoint, valid: dict[str, float]) -> str:
    """Compare the validation result that RecBole recorded with the one found here; what to tell the user.

    Raises
    ------
    AdaRecError
        If they differ: items or users have other ids here than in the teacher's training.
    """
    metric, there = str(checkpoint.config.get("valid_metric")), checkpoint.best_valid_score
    modes = checkpoint.config.get("eval_args", {}).get("mode")
    full = modes == "full" or (isinstance(modes, dict) and modes.get("valid") == "full")
    if there is None or not full or metric.lower() not in valid:
        return f"validation {metric} of the teacher was not recorded, or not over all items: not compared"
    here = valid[metric.lower()]
    if abs(here - there) > 0.0005 + 0.02 * abs(there):
        raise AdaRecError(
            f"teacher: {checkpoint.path} had validation {metric} {there:.4f} when RecBole trained it, and has "
            f"{here:.4f} on this data: the file of {checkpoint.config.get('dataset')} is another one now, or its items "
            "have other ids"
        )
    return f"validation {metric} of the teacher: {here:.4f}, {there:.4f} in its checkpoint"
