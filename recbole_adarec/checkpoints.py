"""Model files of a run: weights and all that is needed to rebuild the model without its dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.files import load_checkpoint, save_checkpoint

FORMAT = "recbole-adarec-model/2"  # 1 had no priors, and other layers under the same names


class _StoredDataset:
    """As much of a RecBole dataset as a model asks for: the number of items, and for RecBole's own that of users."""

    def __init__(self, n_items: int, n_users: int | None) -> None:
        self.n_items, self.user_num = n_items, n_users

    def num(self, field: str) -> int:
        return self.n_items


def save_model(path: str | Path, model: torch.nn.Module, config: Any, **extra: Any) -> None:
    """Write a model file.

    Parameters
    ----------
    path : path-like
        Where; what stood there is replaced in one step.
    model : Module
        One of our models.
    config : recbole.config.Config
        The configuration that it was built from.
    **extra
        Plain values and tensors kept beside it: results, history, distillation state.
    """
    save_checkpoint(
        path,
        {
            "format": FORMAT,
            "model": config["model"],
            "config": config.final_config_dict,
            "n_items": model.n_items,
            "state_dict": model.state_dict(),
            **extra,
        },
    )


def load_state(
    path: str | Path, device: torch.device | str = "cpu", *, expected: str | tuple[str, ...]
) -> dict[str, Any]:
    """The content of a model file that holds the model `expected`, or one of them.

    Raises
    ------
    AdaRecError
        If it is missing, damaged, or holds another model.
    """
    content = load_checkpoint(path, device, expected=FORMAT)
    names = (expected,) if isinstance(expected, str) else expected
    if content.get("model") not in names:
        raise AdaRecError(f"{path} holds a {content.get('model')!r}, expected {' or '.join(map(repr, names))}")
    return content


def build_model(content: dict[str, Any], device: torch.device | str = "cpu") -> Any:
    """The model of a loaded model file, in evaluation mode."""
    from recbole.utils import get_model

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


class StoredConfig(dict[str, Any]):
    """A stored configuration; like RecBole's, it gives None for what it does not have."""

    def __missing__(self, key: str) -> None:
        return None


def load_model(path: str | Path, device: torch.device | str = "cpu", *, expected: str) -> Any:
    """The model in a file that `save_model` wrote, in evaluation mode."""
    return build_model(load_state(path, device, expected=expected), device)
