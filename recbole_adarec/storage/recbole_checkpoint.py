"""Reads checkpoints that RecBole wrote, without executing code from them.

RecBole pickles its ``Config`` into every checkpoint, with protocol 4. ``torch.load(weights_only=True)`` reads only
protocol 2, and a pickled ``Config`` refers to a YAML loader and to the model's class. This module reads such a file
itself: every name in the pickle becomes a subclass of `_PickledCall`, which records the arguments of the call and calls
nothing. When the whole file is read, and every name in it is one that RecBole writes, the recorded calls are converted
to plain values.
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
# Full names of everything, besides tensors and containers, that RecBole's checkpoints refer to.
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
    """Content of a checkpoint that RecBole wrote.

    Attributes
    ----------
    path : str
        The file.
    model : str
        RecBole's name of the model.
    config : dict
        RecBole's whole configuration as plain values.
    state_dict : dict
        The weights, on the CPU.
    epochs : int
        Number of epochs of training.
    best_valid_score : float or None
        Best ``valid_metric`` that RecBole recorded; None if there is none.
    """

    path: str
    model: str
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    epochs: int
    best_valid_score: float | None


class _NotAdmitted(Exception):
    """Raised for a name in a pickle that RecBole does not write."""


class _PickledCall:
    """A recorded call from a pickle: the full name of the callable, and its arguments.

    Each name in a pickle gets a new subclass, so that unpickling changes no class that exists elsewhere.
    """

    name = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _PickledCall:
        call = super().__new__(cls)
        call.args, call.items = args, {}
        return call

    items: dict[Any, Any]

    def __setitem__(self, key: Any, value: Any) -> None:  # pickle fills an OrderedDict by this method
        self.items[key] = value

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, with a `_PickledCall` in place of every class and function."""

    def find_class(self, module: str, name: str) -> Any:
        """New subclass of `_PickledCall` for a full name that RecBole writes; raises `_NotAdmitted` for others."""
        full = f"{module}.{name}"
        if not _ADMITTED.fullmatch(full):
            raise _NotAdmitted(full)
        return type("_PickledCall", (_PickledCall,), {"name": full})

    def persistent_load(self, pid: Any) -> Any:
        """Reference to the data of a tensor."""
        return _Storage(pid)


class _Storage:
    """Reference to the data of a tensor: ``("storage", class, key, device, count)``."""

    def __init__(self, pid: Any) -> None:
        kind, storage, key, _, self.count = pid
        self.key = str(key)
        if kind != "storage" or storage.name not in _STORAGES:
            raise _NotAdmitted(str(getattr(storage, "name", kind)))
        self.dtype = _STORAGES[storage.name]


def read_checkpoint(path: str | Path) -> RecBoleCheckpoint:
    """Content of a checkpoint that RecBole wrote, with or without the patches of this package.

    With the patches, RecBole's checkpoints hold plain values only.

    Parameters
    ----------
    path : path-like
        For example ``saved/<Model>-<time>.pth``.

    Raises
    ------
    AdaRecError
        If the file is missing, is damaged, is not a checkpoint of RecBole, or refers to a name that RecBole does not
        write.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaRecError(f"teacher: no checkpoint at {path}")
    stat = path.stat()
    return _read_cached(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read_cached(path: str, _modified: int, _size: int) -> RecBoleCheckpoint:
    """`read_checkpoint` for a file in one state: time of modification and size are part of the cache key."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = _load_archive(archive)
    except _NotAdmitted as error:
        raise AdaRecError(
            f"teacher: {path} names {error}, which RecBole does not write into a checkpoint; nothing of it was run"
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
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
    """Content of a file in torch's zip format, as plain values and tensors."""
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
    if order != b"little":
        raise ValueError("its numbers are big-endian")
    recorded = _Unpickler(BytesIO(archive.read(pickled))).load()
    content = _to_plain(recorded, lambda key: archive.read(f"{folder}data/{key}"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def _to_plain(value: Any, data: Callable[[str], bytes]) -> Any:
    """Plain values and tensors from unpickled content; `data` returns the bytes of a storage by its key."""
    convert = partial(_to_plain, data=data)
    if isinstance(value, dict):
        return {convert(key): convert(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(convert, value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(convert, value), key=str)
    if isinstance(value, type) and issubclass(value, _PickledCall):
        return value.name  # a class that is referred to, not called
    if isinstance(value, _PickledCall):
        return _build_value(value, convert, data)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _NotAdmitted(f"{type(value).__module__}.{type(value).__name__}")


def _build_value(call: _PickledCall, convert: Callable[[Any], Any], data: Callable[[str], bytes]) -> Any:
    """Result of a recorded call: a container, a tensor, a number, or text that names the object."""
    name, args = call.name, call.args
    if name == _CONFIG and isinstance(call.state, dict):
        return convert(call.state["final_config_dict"])
    if name == "collections.OrderedDict":
        return convert(call.items)
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
    raise _NotAdmitted(name)
