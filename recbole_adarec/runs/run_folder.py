"""The folder of a run: which stages are finished, and whether they belong to this configuration."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import recbole.trainer.trainer
import yaml
from torch.utils.tensorboard import SummaryWriter

from recbole_adarec import distributed
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import plain, write_text
from recbole_adarec.storage.yaml_files import load_yaml

# What may differ between two calls that continue the same run: it changes no result.
_FREE_KEYS = {
    "run_dir", "threads", "show_progress", "latency_repeats", "gpu_id", "use_gpu", "state", "checkpoint_dir",
    "baselines", "log_wandb", "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path",
    "config_files", "wandb_project", "data_path", "teacher_cache_mb", "worker", "eval_scores_mb",
    "nproc", "ip", "port", "group_offset",
}  # fmt: skip
_NEEDED_BYTES = 64 * 2**20
RECBOLE_LOGS = Path("log/AdaRec")  # as RecBole has log/<model>/ where the user stands


class RunFolder:
    """A run's files: every stage writes its result here, so that a killed run continues.

    Parameters
    ----------
    path : path-like
        The folder; made if it is not there.
    values : dict
        The whole resolved configuration of the run.
    log : path-like, optional
        Another folder that is given the log too.

    Raises
    ------
    AdaRecError
        If the folder holds a run of another configuration, or something that is no run, or the disk is full.
    """

    def __init__(self, path: str | Path, values: dict[str, Any], log: str | Path | None = None) -> None:
        self.path, self._part = Path(path), ""
        self._logs = [self / "log.txt"] if log is None else [self / "log.txt", Path(log) / f"{self.path.name}.log"]
        if distributed.is_first():
            self._begin(values)
        distributed.barrier()

    def _begin(self, values: dict[str, Any]) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise AdaRecError(f"run_dir: {self.path} is a file, expected a folder")
        config = self.path / "config.yaml"
        if config.is_file():
            check_same(load_yaml(config), values, self.path)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise AdaRecError(
                f"run_dir: {self.path} holds files but no config.yaml, so it is no run of ours; give an empty folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise AdaRecError(f"run_dir: cannot make {self.path}: {error.strerror or error}") from error
        if free < _NEEDED_BYTES:
            raise AdaRecError(
                f"run_dir: {free // 2**20} MB free on the disk of {self.path}, a run needs {_NEEDED_BYTES // 2**20} MB"
            )
        if not config.is_file():
            write_text(config, yaml.safe_dump(plain(values), sort_keys=True))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Send log lines to log.txt and TensorBoard events to tensorboard/ while the run goes on.

        RecBole's trainers log to the root logger and open a writer under the current folder; both are as before
        afterwards. Of several processes only the first one writes.
        """
        first = distributed.is_first()
        logger, handlers = logging.getLogger(), [_Log(p) for p in self._logs] if first else [logging.NullHandler()]
        level, tensorboard = logger.level, recbole.trainer.trainer.get_tensorboard
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        recbole.trainer.trainer.get_tensorboard = lambda _: (
            SummaryWriter(str(self / "tensorboard" / self._part)) if first else _NoWriter()
        )
        try:
            yield
        finally:
            recbole.trainer.trainer.get_tensorboard = tensorboard
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
                handler.close()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Keep what a stage sends to TensorBoard and to Weights & Biases apart from the others, under its name.

        RecBole's trainers begin a run of Weights & Biases where there is none (``log_wandb``): here each stage has one,
        in the group of the run folder. One that was begun before is the user's, and takes everything.
        """
        wandb = sys.modules.get("wandb")
        foreign = wandb is not None and wandb.run is not None
        names = {"WANDB_RUN_GROUP": self.path.name, "WANDB_NAME": f"{self.path.name} {name}"}
        before, self._part = dict(os.environ), name
        os.environ.update({key: value for key, value in names.items() if key not in before})
        try:
            yield
        finally:
            self._part = ""
            for key in names.keys() - before.keys():
                del os.environ[key]
            wandb = sys.modules.get("wandb")
            if wandb is not None and wandb.run is not None and not foreign:
                wandb.finish()


class _NoWriter:
    """In place of a TensorBoard writer, where another process writes."""

    def add_scalar(self, *_: Any) -> None:
        """Nothing."""

    def add_hparams(self, *_: Any) -> None:
        """Nothing."""


class _Log(logging.FileHandler):
    """A log file without the terminal's colours, whose full disk is an error and not a traceback a line."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise AdaRecError(f"cannot write {path}: {error.strerror or error}") from error
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        raise AdaRecError(f"cannot write {self.baseFilename}: {error}") from error


def default_folder(dataset: str, parent: str = "saved") -> Path:
    """``saved/<dataset>-<time>``, one that is not there yet; RecBole's ``checkpoint_dir`` names another parent."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = Path(parent) / f"{dataset}-{stamp}", 1
    while folder.exists():
        number += 1
        folder = Path(parent) / f"{dataset}-{stamp}-{number}"
    return folder


def is_free(key: str) -> bool:
    """Whether a key, with or without the prefix of a stage, changes no result."""
    return key in _FREE_KEYS or key.partition("_")[2] in _FREE_KEYS  # with the prefix of a stage


def check_same(stored: dict[str, Any], values: dict[str, Any], path: Path) -> None:
    """Refuse to go on with what other values gave."""
    current = plain(values)
    for key in sorted(set(stored) | set(current)):
        if not is_free(key) and stored.get(key) != current.get(key):
            raise AdaRecError(
                f"run_dir: {path} is a run of another configuration: {key} is {stored.get(key)!r} there and "
                f"{current.get(key)!r} now; give another run_dir, or the same values"
            )
