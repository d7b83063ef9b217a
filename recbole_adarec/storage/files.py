"""Atomic writing of files, and checkpoints that hold no code."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from recbole_adarec.errors import AdaRecError


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then renamed.

    Missing folders are made.

    Raises
    ------
    AdaRecError
        If the file cannot be written (no space, no permission). An existing file stays unchanged then.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; give this one the permissions that open() would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise AdaRecError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write text in UTF-8, atomically; see `write_bytes`."""
    write_bytes(path, content.encode("utf-8"))


def plain(value: Any, copies: dict[Any, torch.Tensor] | None = None) -> Any:
    """Copy of a value that holds only types which ``torch.load(weights_only=True)`` accepts.

    These are tensors (moved to the CPU), numbers, text, None, lists and dicts. Tuples and sets become lists, numpy
    scalars become numbers, and everything else becomes its ``str``.

    Parameters
    ----------
    value : object
        The value.
    copies : dict, optional
        Tensors copied so far. A weight that occurs under several names is copied, and stored in a file, once.
    """
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        key = value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
        return copies.setdefault(key, value.detach().cpu()) if value.numel() else value.detach().cpu()
    if isinstance(value, dict):
        return {plain(key): plain(item, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item, copies) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy scalar
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def save_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, atomically; see `plain`."""
    buffer = io.BytesIO()
    torch.save(plain(content), buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, expected: str | tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Content of a checkpoint, loaded without executing code from the file.

    Parameters
    ----------
    path : path-like
        A file that `save_checkpoint` wrote.
    device : torch.device or str
        Device of the loaded tensors.
    expected : str or tuple of str, optional
        The ``format`` entry that the file must have, or several of which it must have one.

    Raises
    ------
    AdaRecError
        If the file is missing, is damaged, holds pickled objects, or has another format.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaRecError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises exceptions of many types; they all mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdaRecError(
            f"{path} is damaged or holds more than tensors and plain values, so it is not loaded ({reason[:120]}); "
            "remove it to have it made again"
        ) from error
    formats = (expected,) if isinstance(expected, str) else expected
    if not isinstance(content, dict) or (formats is not None and content.get("format") not in formats):
        actual = content.get("format") if isinstance(content, dict) else type(content).__name__
        known = " or ".join(map(repr, formats or ["a mapping"]))
        raise AdaRecError(f"{path} is not a checkpoint of this kind: its format is {actual!r}, expected {known}")
    return content
