"""Loads a dataset and its three parts, and explains in one line why a dataset cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import recbole
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.utils import get_dataloader

from recbole_adarec import distributed
from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.storage.yaml_files import load_yaml


class Loaders(NamedTuple):
    """A dataset and RecBole's data loaders of its three parts.

    Attributes
    ----------
    dataset : SequenceDataset
        The whole dataset.
    train, valid, test : recbole.data.dataloader.AbstractDataLoader
        Loaders of windows (`train`) and of prefix rows (`valid` and `test`).
    """

    dataset: Any
    train: Any
    valid: Any
    test: Any

    def for_stage(self, config: Any) -> Loaders:
        """Loaders of the same data for another stage.

        The training loader has the batch size of that stage and a newly seeded generator. With n processes each
        evaluates every n-th row, and the trainers gather the results.

        Parameters
        ----------
        config : recbole.config.Config
            The configuration of the stage.

        Raises
        ------
        AdaRecError
            If a part has fewer rows than there are processes.
        """
        train = get_dataloader(config, "train")(
            config, self.train._dataset, self.train._sampler, shuffle=config["shuffle"]
        )
        return self._replace(
            train=train, valid=_local_part(self.valid, "validation"), test=_local_part(self.test, "test")
        )


def _local_part(loader: Any, name: str) -> Any:
    """Loader of the rows that this process evaluates."""
    processes = distributed.world_size()
    if processes == 1:
        return loader
    dataset = loader._dataset
    if len(dataset) < processes:
        raise AdaRecError(f"dataset {dataset.dataset_name!r}: {len(dataset)} {name} rows for {processes} processes")
    part = dataset.copy(dataset.inter_feat[torch.arange(distributed.rank(), len(dataset), processes)])
    return type(loader)(loader.config, part, loader._sampler, shuffle=False)


def load_data(config: Any) -> Loaders:
    """Dataset and loaders of a configuration, made by RecBole.

    Parameters
    ----------
    config : recbole.config.Config
        Its ``eval_batch_size`` is reduced where ``eval_scores_mb`` demands it.

    Raises
    ------
    AdaRecError
        If the dataset is unknown, cannot be downloaded, lacks a column, or has too few interactions.
    """
    _check_files(config)
    with warnings.catch_warnings():
        # RecBole fills columns in a way that pandas 3 removed; setup.cfg keeps pandas below 3.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            dataset = create_dataset(config)
            _bound_scores(config, dataset.item_num)
            return Loaders(dataset, *data_preparation(config, dataset))
        except (ValueError, IndexError, KeyError, TypeError, NotImplementedError) as error:
            raise AdaRecError(f"dataset {config['dataset']!r}: {' '.join(str(error).split())}") from error


def _bound_scores(config: Any, n_items: int) -> None:
    """Reduce ``eval_batch_size`` where the score matrix of that many rows would exceed ``eval_scores_mb``.

    The matrix has a float32 for each row and item, and is counted twice: for RecBole's models RecBole's collector makes
    a second matrix of the same size.
    """
    most_rows = config["eval_scores_mb"] * 10**6 // (2 * 4 * n_items)
    config["eval_batch_size"] = max(min(config["eval_batch_size"], most_rows), 1)


def _check_files(config: Any) -> None:
    """Raise `AdaRecError` unless RecBole knows the dataset, or its file exists and has the required columns."""
    name, folder = config["dataset"], Path(config["data_path"])
    file = folder / f"{name}.inter"
    if not folder.is_dir():
        downloads = load_yaml(Path(recbole.__file__).parent / "properties/dataset/url.yaml")
        if name in downloads:
            return  # RecBole downloads it
        folders = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        hint = nearest_hint(name, [*folders, *downloads, "ml-100k"])
        listing = ", ".join(folders) if folders else "nothing"
        raise AdaRecError(
            f"unknown dataset {name!r}: looked for {file}, found {listing} in {folder.parent}, and RecBole knows no "
            f"download of that name{hint}; give the folder above it with --data_path="
        )
    if not file.is_file():
        listing = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise AdaRecError(f"dataset {name!r}: no file {file}; {folder} holds {listing}")
    with file.open(encoding=config["encoding"] or "utf-8") as lines:
        header = lines.readline().rstrip("\n").split(config["field_separator"])
    columns = {column.split(":")[0]: column for column in header}
    for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
        if config[key] not in columns:
            reason = "sequences need the order of interactions; " if key == "TIME_FIELD" else ""
            raise AdaRecError(
                f"dataset {name!r}: {file} has no column {config[key]!r} ({key}); {reason}its columns are "
                f"{', '.join(columns)}: name the right one with --{key}="
            )
        loaded = (config["load_col"] or {}).get("inter")
        if loaded not in (None, "*") and config[key] not in loaded:
            raise AdaRecError(f"load_col leaves out {config[key]!r} ({key}); add it to load_col: {{inter: [...]}}")
