"""The folder of a run: holds the files of its stages, and is of one configuration."""

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
from recbole_adarec.config.schema import KEYS, split_prefix
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import plain, write_text
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import load_yaml

# Keys that change no result: they may differ between two calls that continue the same run.
_NEUTRAL_KEYS = {
    "run_dir", "threads", "show_progress", "latency_repeats", "gpu_id", "use_gpu", "state", "checkpoint_dir",
    "baselines", "log_wandb", "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path",
    "config_files", "wandb_project", "data_path", "teacher_cache_mb", "worker", "eval_scores_mb",
    "nproc", "ip", "port", "group_offset", "teachers_at_a_time",
}  # fmt: skip
_NEEDED_BYTES = 64 * 2**20
RECBOLE_LOGS = Path("log/AdaRec")  # RecBole logs into log/<model>/ of the current folder


class RunFolder:
    """The folder of a run. Each stage writes its result here, so that an interrupted run continues.

    ``folder / name`` is the path of a file in it.

    Parameters
    ----------
    path : path-like
        The folder; created if it does not exist.
    values : dict
        The whole resolved configuration of the run, for config.yaml.
    log : Path, optional
        Another folder, for a copy of the log.

    Raises
    ------
    AdaRecError
        If the folder holds a run of another configuration, or files that are no run, or the disk is full.
    """

    def __init__(self, path: str | Path, values: dict[str, Any], log: Path | None = None) -> None:
        self.path, self.log, self._part = Path(path), log, ""
        self._logs = [self / "log.txt"] if log is None else [self / "log.txt", log / f"{self.path.name}.log"]
        if distributed.is_first():
            self._open(values)
        distributed.barrier()

    def _open(self, values: dict[str, Any]) -> None:
        """Create the folder and its config.yaml, or check that they belong to these values."""
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
        """The path of a file in this folder."""
        return self.path / name

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which log lines go to log.txt, and TensorBoard events to tensorboard/.

        RecBole's trainers log to the root logger and open a writer in the current folder. Meanwhile the root logger
        has level INFO, and RecBole's ``get_tensorboard`` is replaced; both are restored afterwards. Of several
        processes only the first one writes.
        """
        first = distributed.is_first()
        logger, handlers = logging.getLogger(), [_LogFile(p) for p in self._logs] if first else [logging.NullHandler()]
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
        """Context in which a stage's TensorBoard events, and its run of Weights & Biases, have its name.

        RecBole's trainers start a run of Weights & Biases where there is none (``log_wandb``). Here each stage has its
        own, in the group of the run folder. A run that the user started before gets the events of all stages.

        Parameters
        ----------
        name : str
            A stage, a baseline, or ``choice``.
        """
        wandb = sys.modules.get("wandb")
        user_run = wandb is not None and wandb.run is not None
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
            if wandb is not None and wandb.run is not None and not user_run:
                wandb.finish()


class _NoWriter:
    """Stands for a TensorBoard writer in processes that do not write."""

    def add_scalar(self, *_: Any) -> None:
        """Nothing."""

    def add_hparams(self, *_: Any) -> None:
        """Nothing."""


class _LogFile(logging.FileHandler):
    """A log file without the colours of a terminal; a failed write raises `AdaRecError`."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise AdaRecError(f"cannot write {path}: {error.strerror or error}") from error
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without colour codes."""
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise an `AdaRecError`, where logging would print a traceback for each line."""
        error = sys.exc_info()[1]
        raise AdaRecError(f"cannot write {self.baseFilename}: {error}") from error


def default_folder(dataset: str, parent: str = "saved") -> Path:
    """The path ``<parent>/<dataset>-<time>`` of a folder that does not exist yet.

    Parameters
    ----------
    dataset : str
        Name of the dataset.
    parent : str
        RecBole's ``checkpoint_dir``.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = Path(parent) / f"{dataset}-{stamp}", 1
    while folder.exists():
        number += 1
        folder = Path(parent) / f"{dataset}-{stamp}-{number}"
    return folder


def changes_results(key: str) -> bool:
    """Whether another value of a key, with or without the prefix of a stage, can change a result."""
    return key not in _NEUTRAL_KEYS and key.partition("_")[2] not in _NEUTRAL_KEYS


def default_of(key: str) -> Any:
    """The default of a key of this package, with or without the prefix of a stage; None for other keys."""
    prefix, name = split_prefix(key)
    return KEYS[name].defaults.get(prefix or "run") if name in KEYS else None


def check_same(stored: dict[str, Any], values: dict[str, Any], path: Path) -> None:
    """Check that a stored configuration has the same results as the current one.

    Parameters
    ----------
    stored : dict
        Content of config.yaml.
    values : dict
        The current configuration.
    path : Path
        The folder, for the message.

    Raises
    ------
    AdaRecError
        If a key that changes results differs: names the first one.
    """
    # What version 0.1.0 had where its folders do not say it; MAX_ITEM_LIST_LENGTH was RecBole's.
    former = {"MAX_ITEM_LIST_LENGTH": 50} | load_yaml(PROPERTIES / "students_0_1_0.yaml")
    current = plain(values)
    stored = {key: value for key, value in former.items() if key in current} | stored
    for key in sorted(set(stored) | set(current)):
        newer = key not in stored and current[key] == default_of(key)  # a key's default leaves older runs as they were
        if changes_results(key) and stored.get(key) != current.get(key) and not newer:
            raise AdaRecError(
                f"run_dir: {path} is a run of another configuration: {key} is {stored.get(key)!r} there and "
                f"{current.get(key)!r} now; give another run_dir, or the same values"
            )
