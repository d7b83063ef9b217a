"""RecBole's configuration with our properties, strict keys and no second reader of the command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import recbole
import torch
import yaml
from recbole.config import Config
from recbole.utils import argument_list

from recbole_adarec import distributed
from recbole_adarec.config.recbole_models import data_of_teacher, is_checkpoint, stock_keys, stock_settings
from recbole_adarec.distillation.layer_mapping import DISTANCES, MAPPINGS
from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.full_softmax import ITEM_LOSSES
from recbole_adarec.model.item_table.base import ITEM_OUTPUTS, ITEM_TABLES
from recbole_adarec.model.residual_blocks import LAYER_SHARING
from recbole_adarec.model.search_space.cost import COSTS
from recbole_adarec.model.search_space.operations import check_operations
from recbole_adarec.model.teachers.base import backbones
from recbole_adarec.plugins import load_plugins
from recbole_adarec.storage.properties import find_file, model_defaults, run_defaults
from recbole_adarec.storage.yaml_files import Loader, load_yaml

STAGES = {"teacher": "AdaRecTeacher", "search": "AdaRecSupernet", "student": "AdaRecStudent"}
MODELS = {**STAGES, "cprec": "CpRec"}  # what has defaults and a prefix of its own
_RECBOLE = Path(recbole.__file__).parent
_VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")  # as the user set it: RecBole's Config overwrites it

# Keys that RecBole knows without writing them into a properties file.
_RECBOLE_EXTRA = {
    "model", "config_files", "nproc", "ip", "port", "world_size", "group_offset", "offset", "local_rank",
    "valid_metric_bigger", "enable_amp", "enable_scaler", "reg_weight", "transform", "numerical_features",
    "wandb_project", "embedding_size", "data_path", "config_file",
}  # fmt: skip

# Types of the keys whose default is nothing.
_OPTIONAL_TYPES: dict[str, tuple[type, ...]] = {
    "run_dir": (str,),
    "architecture": (str, dict),
    "model": (str,),
    "teacher": (str,),
    "plugins": (str, list),
    "threads": (int,),
    "cost_budget": (int, float),
    "candidate_sizes": (list,),
    "item_table_rate": (int, float),
    "served_prior": (int, float),
    "repeat_bias": (int, float),
    "item_blocks": (int, list),
    "item_widths": (list,),
    "item_codes": (int, list),
    "item_levels": (int,),
    "item_width_factor": (int, float),
    "total_budget": (int, float),
    "total_parameters": (int,),
    "teacher_path": (str,),
    "supernet_path": (str,),
    "clip_grad_norm": (dict,),
    "nproc": (int,), "world_size": (int,), "group_offset": (int,), "port": (int, str), "ip": (str,),
}  # fmt: skip
_CHOICES: dict[str, Collection[str]] = {
    "backbone": tuple(backbones()),
    "layer_mapping": MAPPINGS,
    "hidden_distance": tuple(DISTANCES),
    "cost": COSTS,
    "item_loss": ITEM_LOSSES,
    "item_table": ITEM_TABLES,
    "item_output": ITEM_OUTPUTS,
    "layer_sharing": LAYER_SHARING,
}
# Inclusive ranges of our numbers; None is no bound.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "hidden_size": (1, None), "cells": (1, None), "nodes": (1, 64), "distilled_layers": (1, None),
    "block_num": (1, None), "kernel_size": (1, None), "n_layers": (1, None), "n_heads": (1, None),
    "inner_size": (1, None), "taught_positions": (1, None), "mask_ratio": (0, 1), "last_mask_ratio": (0, 1),
    "dropout_prob": (0, 0.99), "full_dropout_at": (0, None),
    "epochs": (0, None), "train_batch_size": (1, None), "eval_batch_size": (1, None),
    "learning_rate": (0, None), "learning_rate_decay": (0, 1), "alpha_learning_rate": (0, None),
    "alpha_users": (0, 1), "alpha_warmup": (0, 1), "gumbel_decay": (0, 1), "gumbel_temperature": (1e-3, None),
    "gamma": (0, 1), "beta": (0, None), "cost_budget": (0, None), "cost_floor": (0, 1),
    "candidates": (1, None), "candidate_epochs": (1, None), "finalist_epochs": (1, None),
    "candidate_temperature": (1e-3, None), "layer_weight_floor": (0, 1), "layer_weight_momentum": (0, 0.9999),
    "kd_temperature": (1e-3, None), "teacher_cache_mb": (0, None),
    "sampled_above": (0, None), "sampled_items": (1, None), "eval_scores_mb": (1, None),
    "item_table_rate": (0, None), "popularity_prior": (0, None), "served_prior": (0, 1),
    "item_blocks": (2, None), "item_block_growth": (1e-3, None), "item_codes": (0, None),
    "item_code_epochs": (0, None), "item_levels": (1, 2), "item_width_factor": (1, None),
    "total_budget": (0, None), "total_parameters": (1, None),
    "nproc": (1, None), "group_offset": (0, None),
    "threads": (1, None), "latency_repeats": (1, None), "MAX_ITEM_LIST_LENGTH": (1, None),
}  # fmt: skip

_OF_STOCK_TEACHERS = ("distilled_layers", "taught_positions")  # all that a trained one leaves to us


class AdaRecConfig(Config):
    """RecBole's `Config` over values that are already parsed: it reads no command line and evaluates nothing."""

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return config_dict

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return Loader


def resolve(
    dataset: str | None = None,
    config_files: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All values that the user gave, over the defaults of a run; files in order, then `overrides`.

    Parameters
    ----------
    dataset : str, optional
        The dataset's name; wins over the files.
    config_files : list of str
        Looked for where the user stands, then in properties/.
    overrides : dict
        Single values.

    Returns
    -------
    dict
        Checked; stage prefixes are still in place.

    Raises
    ------
    AdaRecError
        For an unknown key (names the nearest), a wrong type, a value out of range, a file that is not there.
    """
    sources = {str(path): load_yaml(path) for path in (find_file(name, "config_files") for name in config_files or [])}
    overrides = dict(overrides or {})
    if dataset is not None:
        overrides["dataset"] = dataset
    sources["command line or config_dict"] = overrides
    given: dict[str, Any] = {}
    for content in sources.values():
        given.update(content)
    if isinstance(given.get("plugins"), (str, list)):
        given["plugins"] = load_plugins(given["plugins"])
    for where, content in sources.items():
        _check(content, where, _stock_keys(given))
    if given.get("model") == STAGES["student"]:  # as RecBole names it: the whole run
        given["model"] = None
    if is_checkpoint(given.get("teacher")):
        given = {**data_of_teacher(given), **given}
        for key in sorted(given.keys() - _known_keys()):
            if key.startswith("teacher_") and key.removeprefix("teacher_") not in _OF_STOCK_TEACHERS:
                raise AdaRecError(f"{key}: {given['teacher']} is trained already; leave {key} out, or name a model")
    if "embedding_size" in given and not given.get("model"):  # RecBole's word for it in some of its models
        size = given.pop("embedding_size")
        if given.setdefault("hidden_size", size) != size:
            raise AdaRecError("embedding_size and hidden_size are two words for the same thing here; give one of them")
    values = {**run_defaults(), **given}
    if "load_col" not in given and not (_RECBOLE / "properties/dataset" / f"{values['dataset']}.yaml").is_file():
        fields = load_yaml(_RECBOLE / "properties/dataset/sample.yaml") | values
        values["load_col"] = {"inter": [fields[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]}
    return values


def stage_values(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """The values of one stage: those with its prefix, over those without any; the others' prefixes are left out."""
    prefixes = tuple(f"{name}_" for name in (*MODELS, "baseline"))
    known = _known_keys()
    own: dict[str, Any] = {}
    for key, value in values.items():
        prefix = next((p for p in prefixes if key.startswith(p) and key not in known), None)
        if prefix is None:
            own.setdefault(key, value)
    own.update(
        {
            key.removeprefix(f"{stage}_"): value
            for key, value in values.items()
            if key.startswith(f"{stage}_") and key not in known
        }
    )
    return own


def stage_config(values: dict[str, Any], stage: str, **extra: Any) -> AdaRecConfig:
    """RecBole's configuration of one stage of a run.

    Parameters
    ----------
    values : dict
        What `resolve` returned.
    stage : str
        ``teacher``, ``search`` or ``student``; or ``cprec``, which is a run by itself.
    **extra
        Values that the run itself sets.
    """
    own = stage_values(values, stage) | extra
    if own.get("architecture") is None:
        own.pop("architecture", None)
    return make_config(MODELS[stage], own)


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Every value that a run depends on, RecBole's and our defaults included; as a config file it gives the same run.

    Parameters
    ----------
    values : dict
        What `resolve` returned.
    """
    whole = dict(values)
    if values["model"]:
        config = make_config(values["model"], stage_values(values, "baseline"))
        return {**whole, **_recbole_values(config), **stock_settings(values["model"], config)}
    for stage, model in STAGES.items():
        config = stage_config(values, stage)
        if stage == "teacher" and values["teacher"]:
            # Of ours a stock model has these two; its own are in its checkpoint, if it is trained.
            whole |= {f"teacher_{key}": config[key] for key in _OF_STOCK_TEACHERS}
            if not is_checkpoint(values["teacher"]):
                stock = make_config(values["teacher"], stage_values(values, "teacher"))
                own = stock_settings(values["teacher"], stock)
                whole |= {f"teacher_{key}": value for key, value in own.items()}
            continue
        for key in set(model_defaults(model)) - {"architecture", "teacher_path", "supernet_path"}:
            # RecBole writes "none" for no negative sampling in words that it does not read back.
            whole[f"{stage}_{key}"] = None if key == "train_neg_sample_args" else config[key]
        for key, value in _recbole_values(config).items():
            if key not in model_defaults(model):
                whole.setdefault(key, value)
    return whole


def _recbole_values(config: Any) -> dict[str, Any]:
    """RecBole's general values of a configuration."""
    keys: set[str] = set()
    for file in ("overall.yaml", "dataset/sample.yaml"):
        keys |= set(load_yaml(_RECBOLE / "properties" / file)) - {"data_path"}
    return {key: config[key] for key in keys}


def make_config(model: str, values: dict[str, Any]) -> AdaRecConfig:
    """RecBole's configuration of a model, with its refusals as one line."""
    if distributed.world_size() > 1:  # each process sees one device: that of its number among those given
        values = values | {"gpu_id": _own_device(values.get("gpu_id"))}
    values = {key: value for key, value in values.items() if key not in ("dataset", "model")} | {
        "dataset": values["dataset"]
    }
    if values.get("log_wandb") and find_spec("wandb") is None:
        raise AdaRecError("log_wandb: Weights & Biases is not installed; pip install wandb")
    try:
        return AdaRecConfig(model=model, dataset=values["dataset"], config_dict=values)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AttributeError) as error:
        raise AdaRecError(f"configuration of {model}: {' '.join(str(error).split())}") from error
    finally:
        if values.get("gpu_id") is None and _VISIBLE_DEVICES is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE_DEVICES  # RecBole would hide every device but the first


def _own_device(given: Any) -> str:
    """The GPU of this process: of those in ``gpu_id``, else of those that the environment shows, else by its number."""
    listed = _VISIBLE_DEVICES if given is None else given
    if listed is None:
        return str(distributed.local_rank())
    devices = listed if isinstance(listed, (list, tuple)) else [name for name in str(listed).split(",") if name.strip()]
    if not devices or not torch.backends.cuda.is_built():
        return ""
    if len(devices) < distributed.local_world_size():
        raise AdaRecError(
            f"gpu_id: {len(devices)} GPUs ({listed}) for {distributed.local_world_size()} processes on this machine; "
            "give one for each"
        )
    return str(devices[distributed.local_rank()])


def _known_keys() -> set[str]:
    known = set(run_defaults()) | _RECBOLE_EXTRA
    for name in MODELS.values():
        known |= set(model_defaults(name))
    for file in ("overall.yaml", "dataset/sample.yaml", "dataset/ml-100k.yaml"):
        known |= set(load_yaml(_RECBOLE / "properties" / file))
    for group in ("general", "training", "evaluation", "dataset"):
        known |= set(getattr(argument_list, f"{group}_arguments"))
    return known


def _stock_keys(values: dict[str, Any]) -> set[str]:
    """Keys of the RecBole models that a run names."""
    baselines = values.get("baselines")
    names = [*(baselines if isinstance(baselines, list) else []), values.get("model"), values.get("teacher")]
    return {key for name in names for key in stock_keys(name)}


def _check(values: dict[str, Any], where: str, stock: set[str]) -> None:
    known = _known_keys() | stock
    defaults: dict[str, Any] = {}
    for file in ("dataset/sample.yaml", "overall.yaml"):
        defaults |= load_yaml(_RECBOLE / "properties" / file)
    for model in MODELS.values():
        defaults |= model_defaults(model)
    defaults |= run_defaults()
    for key, value in values.items():
        if (name := _unprefixed(str(key), known)) is None:
            nearest = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.0)
            raise AdaRecError(f"unknown key {key!r} in {where}; the nearest known key is {nearest[0]!r}")
        _check_value(str(key), name, value, defaults.get(name), where)


def _unprefixed(key: str, known: set[str]) -> str | None:
    if key in known:
        return key
    for stage in (*MODELS, "baseline"):
        if key.startswith(f"{stage}_") and (key.removeprefix(f"{stage}_") in known or stage == "baseline"):
            return key.removeprefix(f"{stage}_")
    return None


def _check_value(key: str, name: str, value: Any, default: Any, where: str) -> None:
    expected = _OPTIONAL_TYPES.get(name)
    if value is None and (expected is not None or default is None):
        return
    if expected is None and default is not None:
        expected = (int, float) if isinstance(default, float) else (type(default),)
    if name in ("gpu_id", "topk", "metrics", "split", "eval_args"):  # RecBole itself takes several types
        expected = None
    if expected is not None:
        wrong_bool = isinstance(value, bool) and bool not in expected
        if not isinstance(value, expected) or wrong_bool:
            names = " or ".join("number" if t is float else t.__name__ for t in expected)
            raise AdaRecError(f"{key} in {where} is {value!r} ({type(value).__name__}), expected {names}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise AdaRecError(f"{key} in {where}: unknown value {value!r}; known are {', '.join(_CHOICES[name])}")
    if name in _RANGES and isinstance(value, (int, float)):
        low, high = _RANGES[name]
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise AdaRecError(f"{key} in {where} is {value!r}, expected {bounds}")
    if name == "operations":
        if not value:
            raise AdaRecError(f"{key} in {where} is empty, expected at least one operation")
        check_operations(value, f"{key} in {where}")
    if key == "teacher_item_table" and value != "full":
        raise AdaRecError(f"{key} in {where} is {value!r}; a teacher's table is full, its student's may be adaptive")
    if name in ("item_blocks", "item_widths", "item_codes") and isinstance(value, list):
        whole = all(isinstance(number, (int, float)) and number > 0 for number in value)
        if not value or not whole or (name != "item_blocks" and not all(isinstance(n, int) for n in value)):
            raise AdaRecError(f"{key} in {where} is {value!r}, expected a list of positive numbers")
    if name == "candidate_sizes" and not (value and all(isinstance(size, int) and size > 0 for size in value)):
        raise AdaRecError(f"{key} in {where} is {value!r}, expected whole numbers of at least 1")
