"""What RecBole 1.2.1 needs on current torch, for those who ask for it: replaced, and put back.

* torch 2.6 and later load only tensors, plain values and admitted names; RecBole pickles its ``Config``, and
  some models a module of theirs, into every checkpoint. Training then ends in an error when the best model is loaded.
  Patched, checkpoints are those of `recbole_adarec.storage.recbole_writer`.
* RecBole's download leaves half of a dataset when it fails, and ends in an error without a process group
  (`recbole_adarec.data.download`).
* Importing any sequential model of RecBole imports SINE, which switches torch's anomaly detection on for the whole
  process. Patched, it is off.
* RecBole gives embeddings that it read from files in float64, which KSR multiplies by float32: an error.

Notes
-----
Anomaly detection was measured to make training take 1.7 (RecBole's NextItNet) to 3 times (our models) as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.trainer import Trainer
from recbole.trainer.trainer import PretrainTrainer

from recbole_adarec.data.download import download
from recbole_adarec.interop.import_hooks import after_import
from recbole_adarec.storage.recbole_writer import NotPlainError, admitted_names, save_trainer

_SINE = "recbole.model.sequential_recommender.sine"
_stack: ExitStack | None = None  # puts back what is replaced now
_users = 0  # `recbole_patches` blocks that are open
_lasting = False  # between `patch_recbole` and `unpatch_recbole`


def patch_recbole() -> None:
    """Repair RecBole's own classes in this process, until `unpatch_recbole`; docs/recbole_interop.md lists how.

    Calling it again changes nothing.
    """
    global _lasting
    _lasting = True
    _update()


def unpatch_recbole() -> None:
    """Put back what `patch_recbole` replaced: the same objects, and torch's switches as they were.

    Without `patch_recbole` it does nothing. Inside `recbole_patches` things are put back when that ends.
    """
    global _lasting
    _lasting = False
    _update()


@contextmanager
def recbole_patches() -> Iterator[None]:
    """Repair RecBole's own classes inside a ``with`` block, or, as a decorator, while a function runs."""
    global _users
    _users += 1
    try:
        _update()
        with torch.autograd.set_detect_anomaly(False):  # also where the user switched it on after patch_recbole
            yield
    finally:
        _users -= 1
        _update()


def _update() -> None:
    """Replace or put back, as there are users."""
    global _stack
    wanted = _lasting or _users > 0
    if wanted and _stack is None:
        with ExitStack() as stack:
            _replace(stack)
            _stack = stack.pop_all()
    elif not wanted and _stack is not None:
        stack, _stack = _stack, None
        stack.close()


def _replace(stack: ExitStack) -> None:
    Config.compatibility_settings(Config.__new__(Config))  # numpy's old names, which a Config from a file needs too
    for owner, name, replacement in (
        (Trainer, "_save_checkpoint", _save_checkpoint),
        (PretrainTrainer, "save_pretrained_model", _save_pretrained_model),
        (Dataset, "_download", _download),
        (Dataset, "get_preload_weight", _get_preload_weight),
    ):
        original = vars(owner)[name]
        setattr(owner, name, replacement(original))
        stack.callback(setattr, owner, name, original)
    stack.enter_context(admitted_names())
    stack.enter_context(torch.autograd.set_detect_anomaly(False))  # which puts back what was before
    stack.callback(after_import(_SINE, lambda _: torch.set_anomaly_enabled(False)))


def _save_checkpoint(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def save(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        try:
            save_trainer(self, epoch, verbose, kwargs.get("saved_model_file"))
        except NotPlainError:  # RecBole writes it, and a torch below 2.6 reads it
            original(self, epoch, verbose, **kwargs)

    return save


def _save_pretrained_model(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def save(self: Any, epoch: int, saved_model_file: str) -> None:
        try:
            save_trainer(self, epoch, verbose=False, path=saved_model_file)
        except NotPlainError:
            original(self, epoch, saved_model_file)
        self.saved_model_file = saved_model_file

    return save


def _download(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def _download(self: Any) -> None:
        download(self)

    return _download


def _get_preload_weight(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def weight(self: Any, field: str) -> Any:
        found = original(self, field)
        return found.astype("float32") if found.dtype == "float64" else found

    return weight
