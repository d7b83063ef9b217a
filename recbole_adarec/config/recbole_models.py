"""RecBole's own models in a run: which there are, which keys they have, and what a trained one demands of the data.

Names and keys are read from RecBole's files; its modules, which take seconds to import, are not needed for that.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recbole

from recbole_adarec.config.key import Key
from recbole_adarec.config.recbole_keys import COMPUTED
from recbole_adarec.config.schema import KEYS, MODELS
from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import load_yaml

if TYPE_CHECKING:
    from recbole_adarec.storage.recbole_checkpoint import RecBoleCheckpoint

RECBOLE = Path(recbole.__file__).parent
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
_READ = re.compile(r"""config\[\s*["'](\w+)["']\s*\]|["'](\w+)["'] in config\b""")


def is_checkpoint(teacher: Any) -> bool:
    """Whether ``teacher`` names a file rather than a model."""
    return isinstance(teacher, str) and (teacher.endswith((".pth", ".pt")) or "/" in teacher)


# ---------------------------------------------------------------------- names


@cache
def sequential_models() -> tuple[str, ...]:
    """The names of RecBole's sequential models, from its files."""
    found = []
    for path in sorted((RECBOLE / "model" / "sequential_recommender").glob("*.py")):
        found += [name for name in _classes(path) if name.lower() == path.stem]
    return tuple(found)


@cache
def _classes(path: Path) -> tuple[str, ...]:
    return tuple(re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def check_sequential(name: str, key: str) -> None:
    """Refuse a name that is no sequential model: of RecBole, of this package, or registered by a plugin.

    Parameters
    ----------
    name : str
        The model.
    key : str
        The key that has the name, for the message.

    Raises
    ------
    AdaRecError
        If there is no such model, or it is no sequential one.
    """
    if name in sequential_models() or name in MODELS.values():
        return
    for path in (RECBOLE / "model").glob(f"*/{name.lower()}.py"):
        if path.parent.name != "sequential_recommender" and name in _classes(path):
            raise AdaRecError(f"{key}: {name} is no sequential model")
    if not _registered(name):
        raise AdaRecError(f"{key}: RecBole has no model {name!r}{nearest_hint(name, sequential_models())}")


def _registered(name: str) -> bool:
    """Whether a sequential model was registered beside RecBole's own; without torch nothing can have been."""
    if "torch" not in sys.modules:
        return False
    from recbole.utils import ModelType, get_model

    try:
        return bool(get_model(name).type == ModelType.SEQUENTIAL)
    except (ValueError, ImportError, AttributeError):
        return False


# ---------------------------------------------------------------------- keys


def recbole_model_defaults(name: Any) -> dict[str, Any]:
    """The default settings of a model beside ours, RecBole's or `CpRec`; empty for any other name."""
    return dict(_defaults(name)) if isinstance(name, str) else {}


@cache
def _defaults(name: str) -> dict[str, Any]:
    for properties in (RECBOLE / "properties", PROPERTIES):
        path = properties / "model" / f"{name}.yaml"
        if path.is_file():
            return load_yaml(path)
    return {}


@cache
def recbole_model_keys(name: str) -> dict[str, Key]:
    """The keys that a RecBole model has defaults for, or that it alone reads, each with the type it takes.

    RecBole says no more about a type than the default does: a number takes numbers, True and False; a list takes
    lists; every other key takes anything.
    """
    defaults = recbole_model_defaults(name)
    names = set(defaults)
    path = RECBOLE / "model" / "sequential_recommender" / f"{name.lower()}.py"
    if name in sequential_models():
        names |= {one or two for one, two in _READ.findall(path.read_text(encoding="utf-8"))} - KEYS.keys()
    return {key: Key(key, _types(defaults.get(key)), "", optional=True) for key in names if key not in COMPUTED}


def _types(default: Any) -> tuple[type, ...]:
    if isinstance(default, (bool, int, float)):
        return (float, bool)
    return (list, tuple) if isinstance(default, list) else ()


def recbole_model_settings(name: str, config: Any) -> dict[str, Any]:
    """What RecBole's training of a model depends on beside the data, as a configuration has it."""
    keys = [*recbole_model_defaults(name), *_TRAINING_KEYS]
    # RecBole writes "none" for no negative sampling in words that it does not read back.
    return {key: None if key == "train_neg_sample_args" and _none(config[key]) else config[key] for key in keys}


def _none(sampling: Any) -> bool:
    return isinstance(sampling, dict) and sampling.get("distribution") == "none"


# ---------------------------------------------------------------------- a trained teacher


def teacher_data(given: dict[str, Any]) -> dict[str, Any]:
    """The data settings of a trained teacher, for the keys that the user has not given.

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
    from recbole_adarec.storage.recbole_checkpoint import read_checkpoint

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


def check_recorded_score(checkpoint: RecBoleCheckpoint, valid: dict[str, float]) -> str:
    """A line on the validation result that RecBole recorded, compared with the one found now.

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
