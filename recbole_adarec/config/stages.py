"""RecBole's configuration of each stage of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import yaml
from recbole.config import Config

from recbole_adarec import distributed
from recbole_adarec.config.schema import MODELS, split_prefix
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.registry import get_model
from recbole_adarec.storage.properties import backbone_defaults, model_defaults
from recbole_adarec.storage.yaml_files import Loader

_VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")  # as the user set it: RecBole's Config overwrites it


def internal_defaults(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The default settings of one of our models, with those of the backbone that is given; else nothing."""
    if model not in MODELS.values():
        return {}
    defaults = model_defaults(model)
    if "backbone" in defaults and isinstance(backbone := given.get("backbone", defaults["backbone"]), str):
        defaults |= backbone_defaults(backbone)
    return defaults


class AdaRecConfig(Config):
    """RecBole's `Config` over values that are already parsed; it reads no command line and evaluates nothing."""

    def _load_cmd_line(self) -> dict[str, Any]:
        """Nothing: the command line is read elsewhere."""
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Unchanged: the values are parsed already."""
        return config_dict

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        """The loader of this package, which creates plain values only."""
        return Loader

    def _get_model_and_dataset(self, model: str | None, dataset: str | None) -> tuple[str, type, str]:
        if not isinstance(model, str):
            return super()._get_model_and_dataset(model, dataset)
        _, found, dataset = super()._get_model_and_dataset(get_model(model), dataset)
        return model, found, dataset

    def compatibility_settings(self) -> None:
        """Give numpy the names that RecBole uses, in terms that numpy 1 and numpy 2 both have."""
        for name, scalar in {
            "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
            "str": np.str_, "long": np.int_, "unicode": np.str_,
        }.items():  # fmt: skip
            setattr(np, name, scalar)


def stage_values(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The values of one stage: those with its prefix, over those without any; other prefixes are left out.

    Parameters
    ----------
    values : dict
        What `resolve_user_config` returned.
    stage : str
        A key of `MODELS`, or ``baseline``.
    """
    common, own = {}, {}
    for key, value in values.items():
        prefix, name = split_prefix(key)
        if prefix is None:
            common[key] = value
        elif prefix == stage:
            own[name] = value
    return common | own


def stage_config(values: Mapping[str, Any], stage: str, **extra: Any) -> AdaRecConfig:
    """RecBole's configuration of one stage of a run.

    Parameters
    ----------
    values : dict
        What `resolve_user_config` returned.
    stage : str
        ``teacher``, ``search`` or ``student``; or ``cprec``, which is no stage of a run.
    **extra
        Values that the run itself sets.
    """
    own = stage_values(values, stage) | extra
    if own.get("architecture") is None:
        own.pop("architecture", None)
    return make_config(MODELS[stage], own)


def make_config(model: str, values: dict[str, Any]) -> AdaRecConfig:
    """RecBole's configuration of a model.

    Raises
    ------
    AdaRecError
        For what RecBole refuses, in one line.
    """
    if distributed.world_size() > 1:  # each process sees one device: that of its number among those given
        values = values | {"gpu_id": _own_device(values.get("gpu_id"))}
    values = {key: value for key, value in values.items() if key not in ("dataset", "model")} | {
        "dataset": values["dataset"]
    }
    if isinstance(gpus := values.get("gpu_id"), (list, tuple)):  # RecBole would write the brackets into the environment
        values["gpu_id"] = ",".join(map(str, gpus))
    elif gpus is None:
        values.pop("gpu_id", None)
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
