"""Model files: the weights of a model, and what is needed to rebuild it without its dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.storage.weights import packed, unpacked

FORMAT = "recbole-adarec-model/2"  # format 1 had no priors, and other layers under the same names
FORMAT_3 = "recbole-adarec-model/3"  # with weights in fewer bits


def save_model(
    path: str | Path, model: torch.nn.Module, config: Any, stored_weights: str = "float32", **extra: Any
) -> None:
    """Write a model file.

    Parameters
    ----------
    path : path-like
        The file; an existing one is replaced atomically.
    model : Module
        A model of this package, with the attribute ``n_items``.
    config : recbole.config.Config
        The configuration that the model was built from.
    stored_weights : str
        Form of the weights, see `packed`; in any other than ``float32`` they are rounded in the file.
    **extra
        Further entries, plain values and tensors: results, training log, state of the distillation.
    """
    save_checkpoint(
        path,
        {
            "format": FORMAT if stored_weights == "float32" else FORMAT_3,
            "model": config["model"],
            "config": config.final_config_dict,
            "n_items": model.n_items,
            "state_dict": packed(model.state_dict(), stored_weights),
            **extra,
        },
    )


def load_state(
    path: str | Path, device: torch.device | str = "cpu", *, expected: str | tuple[str, ...]
) -> dict[str, Any]:
    """Content of a model file, as `save_model` wrote it, with weights in 32-bit floats.

    Parameters
    ----------
    path : path-like
        The file.
    device : torch.device or str
        Device of the loaded tensors.
    expected : str or tuple of str
        Class name that the stored model must have, or several of which it must have one.

    Raises
    ------
    AdaRecError
        If the file is missing, is damaged, or holds another model.
    """
    content = load_checkpoint(path, device, expected=(FORMAT, FORMAT_3))
    names = (expected,) if isinstance(expected, str) else expected
    if content.get("model") not in names:
        raise AdaRecError(f"{path} holds a {content.get('model')!r}, expected {' or '.join(map(repr, names))}")
    content["state_dict"] = unpacked(content["state_dict"])
    return content


class StoredConfig(dict[str, Any]):
    """A stored configuration. Like RecBole's ``Config``, it returns None for a missing key."""

    def __missing__(self, key: str) -> None:
        return None
