"""What RecBole 1.2.1 needs on current torch and numpy, and nothing else.

* torch >= 2.6 loads only tensors and plain values unless told otherwise, RecBole pickles its ``Config`` into every
  checkpoint: training ends in an error when the best model is loaded. Here the checkpoint holds the configuration as
  plain values, so that RecBole's own loading works as it stands and nothing untrusted is ever unpickled.
* Importing any sequential model imports SINE, which switches torch's anomaly detection on for the whole process:
  measured, training then takes 1.7 (RecBole's NextItNet) to 3 times (ours) as long.
* RecBole's download ends in ``torch.distributed.barrier()`` without a process group, which raises after the files
  have arrived.
* RecBole gives numpy back the names that numpy 1.24 removed, by way of names that numpy 2 removed too.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from functools import wraps
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.trainer import Trainer
from recbole.utils import set_color, url

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import save_checkpoint


def _save_plain_checkpoint(self: Trainer, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """RecBole's ``Trainer._save_checkpoint`` with the same keys, in plain values and written atomically.

    A trainer's own state goes into ``extra``.
    """
    if not self.config["single_spec"] and self.config["local_rank"] != 0:
        return
    path = kwargs.pop("saved_model_file", self.saved_model_file)
    save_checkpoint(
        path,
        {
            "config": self.config.final_config_dict,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
            **kwargs.pop("extra", {}),
        },
    )
    if verbose:
        self.logger.info(set_color("Saving current", "blue") + f": {path}")


def _download(self: Dataset) -> None:
    """RecBole's ``Dataset._download`` that leaves nothing behind when it fails and needs no process group."""
    if self.config["local_rank"] == 0:
        source = self._get_download_url("url")
        folder = os.path.normpath(self.dataset_path)
        os.makedirs(os.path.dirname(folder) or ".", exist_ok=True)
        self.logger.info(f"Prepare to download dataset [{self.dataset_name}] from [{source}].")
        temporary = tempfile.mkdtemp(prefix=".download-", dir=os.path.dirname(folder) or ".")
        try:
            if not url.decide_download(source):
                raise AdaRecError(f"the download of {self.dataset_name} was declined")
            archive = url.download_url(source, temporary)
            url.extract_zip(archive, temporary)
            os.unlink(archive)
            url.rename_atomic_files(temporary, os.path.splitext(os.path.basename(archive))[0], self.dataset_name)
            os.replace(temporary, folder)
        except (URLError, OSError, RuntimeError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            raise AdaRecError(
                f"dataset {self.dataset_name!r} is not in {folder!r} and could not be downloaded from {source} "
                f"({reason}); put {self.dataset_name}.inter into {folder}/ by hand, or name the folder above it "
                "with --data_path="
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _numpy_names(self: Config) -> None:
    """RecBole's ``Config.compatibility_settings``, in names that numpy 1 and 2 both have."""
    for name, scalar in {
        "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
        "str": np.str_, "long": np.int_, "unicode": np.str_,
    }.items():  # fmt: skip
        setattr(np, name, scalar)


def apply() -> None:
    """Put the replacements in place; calling it again changes nothing."""
    if not hasattr(Trainer._save_checkpoint, "__wrapped__"):
        importlib.import_module("recbole.model.sequential_recommender")
        torch.autograd.set_detect_anomaly(False)
    Trainer._save_checkpoint = wraps(Trainer._save_checkpoint)(_save_plain_checkpoint)
    Dataset._download = wraps(Dataset._download)(_download)
    Config.compatibility_settings = wraps(Config.compatibility_settings)(_numpy_names)
