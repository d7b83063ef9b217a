"""From a configuration to RecBole's loaders, with a clear word when the data is not what it should be."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import recbole
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.utils import get_dataloader

from recbole_adarec import distributed
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.yaml_files import load_yaml


class Loaders(NamedTuple):
    """A dataset and RecBole's loaders of its three parts."""

    dataset: Any
    train: Any
    valid: Any
    test: Any

    def for_stage(self, config: Any) -> Loaders:
        """The same data with a training loader of a stage's own batch size and a generator seeded anew.

        Of several processes each evaluates every n-th row; the trainers join what they find.
        """
        train = get_dataloader(config, "train")(
            config, self.train._dataset, self.train._sampler, shuffle=config["shuffle"]
        )
        return self._replace(
            train=train, valid=_local_part(self.valid, "validation"), test=_local_part(self.test, "test")
        )


def _local_part(loader: Any, name: str) -> Any:
    processes = distributed.world_size()
    if processes == 1:
        return loader
    dataset = loader._dataset
    if len(dataset) < processes:
        raise AdaRecError(f"dataset {dataset.dataset_name!r}: {len(dataset)} {name} rows for {processes} processes")
    part = dataset.copy(dataset.inter_feat[torch.arange(distributed.rank(), len(dataset), processes)])
    return type(loader)(loader.config, part, loader._sampler, shuffle=False)


def load_data(config: Any) -> Loaders:
    """RecBole's dataset and loaders of a configuration.

    Raises
    ------
    AdaRecError
        If the dataset is unknown, cannot be downloaded, lacks a field, or has too little in it.
    """
    _check_files(config)
    with warnings.catch_warnings():
        # RecBole fills columns in a way that pandas 3 no longer has; setup.cfg keeps pandas below 3.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            dataset = create_dataset(config)
            _bound_scores(config, dataset.item_num)
            return Loaders(dataset, *data_preparation(config, dataset))
        except (ValueError, IndexError, KeyError, TypeError, NotImplementedError) as error:
            raise AdaRecError(f"dataset {config['dataset']!r}: {' '.join(str(error).split())}") from error


def _bound_scores(config: Any, n_items: int) -> None:
    """Evaluate fewer rows at a time where the scores of ``eval_batch_size`` rows over all items are too large.

    For its own models RecBole's collector makes a second matrix of the same size.
    """
    fitting = config["eval_scores_mb"] * 10**6 // (2 * 4 * n_items)
    config["eval_batch_size"] = max(min(config["eval_batch_size"], fitting), 1)


def _check_files(config: Any) -> None:
    """Look before RecBole does: is the file there, or a download known, and does it have the columns."""
    name, folder = config["dataset"], Path(config["data_path"])
    file = folder / f"{name}.inter"
    if not folder.is_dir():
        downloads = load_yaml(Path(recbole.__file__).parent / "properties/dataset/url.yaml")
        if name in downloads:
            return  # RecBole downloads it
        there = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        nearest = difflib.get_close_matches(name, [*there, *downloads, "ml-100k"], n=1)
        hint = f"; did you mean {nearest[0]!r}" if nearest else ""
        found = ", ".join(there) if there else "nothing"
        raise AdaRecError(
            f"unknown dataset {name!r}: looked for {file}, found {found} in {folder.parent}, and RecBole knows no "
            f"download of that name{hint}; give the folder above it with --data_path="
        )
    if not file.is_file():
        holds = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise AdaRecError(f"dataset {name!r}: no file {file}; {folder} holds {holds}")
    with file.open(encoding=config["encoding"] or "utf-8") as lines:
        header = lines.readline().rstrip("\n").split(config["field_separator"])
    columns = {column.split(":")[0]: column for column in header}
    for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
        if config[key] not in columns:
            what = "sequences need the order of interactions; " if key == "TIME_FIELD" else ""
            raise AdaRecError(
                f"dataset {name!r}: {file} has no column {config[key]!r} ({key}); {what}its columns are "
                f"{', '.join(columns)}: name the right one with --{key}="
            )
        loaded = (config["load_col"] or {}).get("inter")
        if loaded not in (None, "*") and config[key] not in loaded:
            raise AdaRecError(f"load_col leaves out {config[key]!r} ({key}); add it to load_col: {{inter: [...]}}")
