"""Rebuilds models from model files, without their dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.registry import get_model
from recbole_adarec.storage.model_files import StoredConfig, load_state


class _StoredDataset:
    """As much of a RecBole dataset as a model asks for: the number of items, and for RecBole's own that of users."""

    def __init__(self, n_items: int, n_users: int | None) -> None:
        self.n_items, self.user_num = n_items, n_users

    def num(self, field: str) -> int:
        return self.n_items


def build_model(content: dict[str, Any], device: torch.device | str = "cpu") -> Any:
    """The model of a loaded model file, in evaluation mode."""
    config = {"item_codes": 0, "item_levels": 2, **content["config"], "device": torch.device(device)}
    dataset = _StoredDataset(content["n_items"], content.get("n_users"))
    try:
        model = get_model(content["model"])(StoredConfig(config), dataset)
    except AdaRecError as error:
        if not config.get("plugins"):
            raise
        # A file may name any path: it is the user who says that a plugin is run.
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
    """The model in a file that `save_model` wrote, in evaluation mode."""
    return build_model(load_state(path, device, expected=expected), device)
