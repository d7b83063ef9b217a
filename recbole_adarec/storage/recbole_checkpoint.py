"""Checkpoints that stock RecBole wrote, read without running anything that is in them.

RecBole pickles its ``Config`` into every checkpoint, in protocol 4. ``torch.load(weights_only=True)`` reads protocol 2
alone, and a ``Config`` brings a YAML loader and the model's class with it, so what is in such a file is read here: each
name that the pickle asks for becomes a `_Recipe`, which notes what it is called with and does nothing. Only when all of
it is read, and every name in it is one that RecBole writes, are recipes turned into plain values.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError

_CONFIG = "recbole.config.configurator.Config"
# What RecBole's checkpoints name, besides tensors and containers: as full names.
_ADMITTED = re.compile(
    r"recbole\.config\.configurator\.Config|recbole\.utils\.enum_type\.\w+|recbole\.model\.[\w.]+"
    r"|yaml\.(?:loader|cyaml)\.\w+|recbole_adarec\.settings\.Loader|torch\.(?:device|\w+Storage)"
    r"|torch\._utils\._rebuild_tensor_v2|collections\.OrderedDict|numpy\.dtype|numpy\._?core\.multiarray\.scalar"
)
_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip


class RecBoleCheckpoint(NamedTuple):
    """A trained RecBole model.

    Attributes
    ----------
    path : str
        Where it was read.
    model : str
        RecBole's name of the model.
    config : dict
        RecBole's whole configuration, plain values.
    state_dict : dict
        The weights, on the CPU.
    epochs : int
        Epochs that it was trained.
    best_valid_score : float or None
        The ``valid_metric`` that RecBole recorded.
    """

    path: str
    model: str
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    epochs: int
    best_valid_score: float | None


class _Refused(Exception):
    """A name that no checkpoint of RecBole needs."""


class _Recipe:
    """What a pickle says to make under a name; a class of its own for each occurrence, so that it leaves no trace."""

    name = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Recipe:
        recipe = super().__new__(cls)
        recipe.args, recipe.items = args, {}
        return recipe

    items: dict[Any, Any]

    def __setitem__(self, key: Any, value: Any) -> None:  # an OrderedDict is filled like this
        self.items[key] = value

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Python's, in which no name means anything."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if not _ADMITTED.fullmatch(full):
            raise _Refused(full)
        return type("_Recipe", (_Recipe,), {"name": full})

    def persistent_load(self, pid: Any) -> Any:
        return _Storage(pid)


class _Storage:
    """Where the numbers of a tensor are: ``("storage", class, key, device, count)``."""

    def __init__(self, pid: Any) -> None:
        kind, storage, key, _, self.count = pid
        self.key = str(key)
        if kind != "storage" or storage.name not in _STORAGES:
            raise _Refused(str(getattr(storage, "name", kind)))
        self.dtype = _STORAGES[storage.name]


def read_checkpoint(path: str | Path) -> RecBoleCheckpoint:
    """A checkpoint as RecBole writes it, or as RecBole writes it under this package, which has plain values only.

    Parameters
    ----------
    path : path-like
        ``saved/<Model>-<time>.pth``.

    Raises
    ------
    AdaRecError
        If the file is missing, damaged, no checkpoint of RecBole, or names anything that RecBole does not write.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaRecError(f"teacher: no checkpoint at {path}")
    stat = path.stat()
    return _read_cached(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read_cached(path: str, _modified: int, _size: int) -> RecBoleCheckpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            content = _load_archive(archive)
    except _Refused as error:
        raise AdaRecError(
            f"teacher: {path} names {error}, which RecBole does not write into a checkpoint; nothing of it was run"
        ) from error
    except Exception as error:  # what a damaged pickle raises can be anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise AdaRecError(f"teacher: {path} is damaged, or no checkpoint of RecBole ({reason})") from error
    config, weights = content.get("config"), content.get("state_dict")
    if not isinstance(config, dict) or not isinstance(config.get("model"), str) or not isinstance(weights, dict):
        raise AdaRecError(f"teacher: {path} holds no configuration and weights of a model, as RecBole's checkpoints do")
    score, epoch = content.get("best_valid_score"), content.get("epoch")
    return RecBoleCheckpoint(
        path,
        config["model"],
        config,
        {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)},
        epoch + 1 if isinstance(epoch, int) else int(content.get("epochs") or 0),
        float(score) if isinstance(score, (int, float)) and np.isfinite(score) else None,
    )


def _load_archive(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The content of torch's zip format."""
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
    if order != b"little":
        raise ValueError("its numbers are big-endian")
    found = _Unpickler(BytesIO(archive.read(pickled))).load()
    content = _plain(found, lambda key: archive.read(f"{folder}data/{key}"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def _plain(value: Any, data: Callable[[str], bytes]) -> Any:
    """Plain values of what was read; `data` gives the bytes of a storage."""
    again = partial(_plain, data=data)
    if isinstance(value, dict):
        return {again(key): again(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(again, value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(again, value), key=str)
    if isinstance(value, type) and issubclass(value, _Recipe):
        return value.name  # a class that is mentioned and not called
    if isinstance(value, _Recipe):
        return _build_value(value, again, data)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _Refused(f"{type(value).__module__}.{type(value).__name__}")


def _build_value(recipe: _Recipe, again: Callable[[Any], Any], data: Callable[[str], bytes]) -> Any:
    """What a recipe stands for: a container, a tensor, a number, or the words for it."""
    name, args = recipe.name, recipe.args
    if name == _CONFIG and isinstance(recipe.state, dict):
        return again(recipe.state["final_config_dict"])
    if name == "collections.OrderedDict":
        return again(recipe.items)
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, size, stride = args[:4]
        raw = data(storage.key)
        if not raw:
            return torch.empty(size, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(raw), dtype=storage.dtype, count=storage.count)
        return flat.as_strided(size, stride, offset).clone()
    if name.endswith("multiarray.scalar"):
        dtype, raw = args
        return np.frombuffer(raw, np.dtype(str(dtype.args[0])))[0].item()
    if name == "torch.device":
        return str(args[0])
    if name.startswith("recbole.utils.enum_type."):
        return f"{name.rpartition('.')[2]}({args[0]!r})"
    raise _Refused(name)
