"""Model files of a run: weights and all that is needed to rebuild the model without its dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint

FORMAT = "recbole-adarec-model/2"  # 1 had no priors, and other layers under the same names


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


class StoredConfig(dict[str, Any]):
    """A stored configuration; like RecBole's, it gives None for what it does not have."""

    def __missing__(self, key: str) -> None:
        return None
