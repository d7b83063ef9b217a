"""Rebuilds models from model files, without the dataset that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.registry import get_model
from recbole_adarec.storage.model_files import StoredConfig, load_state


class _StoredDataset:
    """Stand-in for a RecBole dataset, with the numbers of items and users; `n_users` is needed for RecBole's models."""

    def __init__(self, n_items: int, n_users: int | None) -> None:
        self.n_items, self.user_num = n_items, n_users

    def num(self, field: str) -> int:
        """Number of items, whatever the field: models of this package ask for no other."""
        return self.n_items


def build_model(content: dict[str, Any], device: torch.device | str = "cpu") -> Any:
    """Model of a loaded model file, in evaluation mode.

    Parameters
    ----------
    content : dict
        Content of a model file, see `recbole_adarec.storage.model_files.load_state`.
    device : torch.device or str
        Device of the model.

    Raises
    ------
    AdaRecError
        If the model cannot be built, or the stored weights do not fit it. Names the plugins to load where the model
        was made with plugins.
    """
    config = {"item_codes": 0, "item_levels": 2, **content["config"], "device": torch.device(device)}
    dataset = _StoredDataset(content["n_items"], content.get("n_users"))
    try:
        model = get_model(content["model"])(StoredConfig(config), dataset)
    except AdaRecError as error:
        if not config.get("plugins"):
            raise
        # A model file could name any path, so plugins are run only when the user loads them.
        raise AdaRecError(
            f"{error}; this {content['model']} was made with the plugins {config['plugins']}: load them first, "
            f"recbole_adarec.load_plugins({config['plugins']})"
        ) from error
    try:
        model.load_state_dict({"repeat_bias": torch.zeros(()), **content["state_dict"]})  # older files have none
    except RuntimeError as error:
        raise AdaRecError(
            f"the weights of this {content['model']} do not fit its configuration: {' '.join(str(error).split())[:200]}"
        ) from error
    return model.to(device).eval()


def load_model(path: str | Path, device: torch.device | str = "cpu", *, expected: str) -> Any:
    """Model in a file that `save_model` wrote, in evaluation mode.

    Parameters
    ----------
    path : path-like
        The model file.
    device : torch.device or str
        Device of the model.
    expected : str
        Class name that the stored model must have.

    Raises
    ------
    AdaRecError
        If the file is missing, is damaged, holds another model, or its model cannot be built.
    """
    return build_model(load_state(path, device, expected=expected), device)
