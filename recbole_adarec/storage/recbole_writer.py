"""Checkpoints in RecBole's format that every torch opens, and that hold no code.

RecBole pickles its ``Config`` in protocol 4, with a YAML loader and the model's class in it; torch 2.6 and later refuse
such a file (``weights_only``). Here the ``Config`` is a copy with plain values, in protocol 2. A torch below 2.6 opens
it as it stands. A later one does once it admits a few names that run nothing: `Config` and RecBole's enums
(`admitted_names`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.utils import enum_type, set_color
from torch import Tensor, nn

from recbole_adarec.storage.files import plain, write_bytes

_NAMES: tuple[type, ...] = (
    Config,
    *(kind for kind in vars(enum_type).values() if isinstance(kind, type) and issubclass(kind, Enum) and len(kind)),
)
# What RecBole's Config keeps besides its YAML loader and the model's class, which no reader of a checkpoint needs.
_CONFIG_STATE = (
    "parameters", "file_config_dict", "variable_config_dict", "cmd_config_dict", "external_config_dict",
    "internal_config_dict", "final_config_dict", "model", "dataset",
)  # fmt: skip


class NotPlainError(Exception):
    """A model keeps something in its ``other_parameter`` that is neither a tensor nor a plain value."""


class _EnumCall:
    """Pickled as ``EnumClass(value)``: Python 3.11 would write some enums as a call of ``getattr``."""

    def __init__(self, member: Enum) -> None:
        self.member = member

    def __reduce__(self) -> tuple[type[Enum], tuple[Any]]:
        return type(self.member), (self.member.value,)


def save_trainer(
    trainer: Any, epoch: int, verbose: bool = True, path: str | os.PathLike[str] | None = None, **extra: Any
) -> None:
    """Write what RecBole's ``Trainer._save_checkpoint`` writes, under the same keys; of several processes the first.

    Parameters
    ----------
    trainer : recbole.trainer.Trainer
        Its model, its optimizer and its configuration are saved.
    epoch : int
        The epoch that was trained last.
    verbose : bool
        Whether to log it, as RecBole does.
    path : path-like, optional
        The file; ``trainer.saved_model_file`` by default.
    **extra
        Further entries, in tensors and plain values.

    Raises
    ------
    NotPlainError
        If the model keeps other objects in its ``other_parameter``; some general models of RecBole do.
    """
    if not trainer.config["single_spec"] and trainer.config["local_rank"] != 0:
        return
    path = path or trainer.saved_model_file
    content = {
        "config": trainer.config,
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": trainer.best_valid_score,
        "state_dict": trainer.model.state_dict(),
        "other_parameter": other_parameter(trainer.model),
        "optimizer": trainer.optimizer.state_dict(),
        **extra,
    }
    write_recbole_checkpoint(path, content)
    if verbose:
        trainer.logger.info(set_color("Saving current", "blue") + f": {path}")


def other_parameter(model: Any) -> dict[str, Any]:
    """The model's ``other_parameter`` in tensors and plain values.

    Modules are left out: SASRecF, GRU4RecF, FDSA, DIN and DIEN name one that is a part of the model, so its weights are
    in the ``state_dict``, and building the model makes the rest of it.
    """
    parts = set(model.modules())
    everything = model.other_parameter().items()
    kept = {key: value for key, value in everything if not (isinstance(value, nn.Module) and value in parts)}
    _check_plain(kept)
    return kept


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _check_plain(item)
    elif not (value is None or isinstance(value, (Tensor, bool, int, float, str, np.generic))):
        raise NotPlainError(type(value).__name__)


def write_recbole_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : path-like
        What stood there is replaced in one step.
    content : dict
        ``config`` is a `Config`, or one of a subclass; everything else tensors and plain values.
    """
    buffer = io.BytesIO()
    others = {key: value for key, value in content.items() if key != "config"}
    torch.save({"config": _portable(content["config"]), **plain(others)}, buffer)
    write_bytes(path, buffer.getvalue())


def _portable(config: Any) -> Config:
    """A `Config` with the values of another one, for pickling and nothing else."""
    copy = Config.__new__(Config)
    copy.__dict__.update({name: _value(vars(config)[name]) for name in _CONFIG_STATE})
    return copy


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {_value(key): _value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_value(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Enum):
        return _EnumCall(value) if isinstance(value, _NAMES) else str(value)
    return value if isinstance(value, torch.device) else plain(value)


def admit_names() -> list[Any]:
    """Let ``torch.load`` read what `write_recbole_checkpoint` writes; the names that it did not admit before."""
    admitted = torch.serialization.get_safe_globals()
    new: list[Any] = [name for name in _NAMES if name not in admitted]
    torch.serialization.add_safe_globals(new)
    return new


def withdraw_names(names: Sequence[Any]) -> None:
    """Take back what `admit_names` returned."""
    if not names:
        return
    others = [name for name in torch.serialization.get_safe_globals() if name not in names]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(others)


@contextmanager
def admitted_names() -> Iterator[None]:
    """Inside, ``torch.load`` reads what `write_recbole_checkpoint` writes."""
    names = admit_names()
    try:
        yield
    finally:
        withdraw_names(names)
