"""RecBole's download of a dataset, which leaves nothing behind when it fails and needs no process group."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any
from urllib.error import URLError

import torch
from recbole.utils import url

from recbole_adarec.errors import AdaRecError


def download(dataset: Any) -> None:
    """Download a dataset into its folder, which appears when all of it is there.

    RecBole's ``Dataset._download`` leaves a folder with half of the files when it fails, and ends in
    ``torch.distributed.barrier()``, which raises without a process group, after the files have arrived.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
        Names what to download, and the folder.

    Raises
    ------
    AdaRecError
        If the user declines, or the download fails: names the dataset, the folder and the address.
    """
    if dataset.config["local_rank"] == 0:
        source = dataset._get_download_url("url")
        folder = os.path.normpath(dataset.dataset_path)
        os.makedirs(os.path.dirname(folder) or ".", exist_ok=True)
        dataset.logger.info(f"Prepare to download dataset [{dataset.dataset_name}] from [{source}].")
        temporary = tempfile.mkdtemp(prefix=".download-", dir=os.path.dirname(folder) or ".")
        try:
            if not url.decide_download(source):
                raise AdaRecError(f"the download of {dataset.dataset_name} was declined")
            archive = url.download_url(source, temporary)
            url.extract_zip(archive, temporary)
            os.unlink(archive)
            url.rename_atomic_files(temporary, os.path.splitext(os.path.basename(archive))[0], dataset.dataset_name)
            os.replace(temporary, folder)
        except (URLError, OSError, RuntimeError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            raise AdaRecError(
                f"dataset {dataset.dataset_name!r} is not in {folder!r} and could not be downloaded from {source} "
                f"({reason}); put {dataset.dataset_name}.inter into {folder}/ by hand, or name the folder above it "
                "with --data_path="
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
