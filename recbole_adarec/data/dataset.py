"""RecBole's sequential dataset, without storing padded prefix rows.

RecBole expands a history of n items to n - 1 rows of ``MAX_ITEM_LIST_LENGTH`` items each. This dataset stores two
numbers per row and pads the rows of a batch on demand. Filtering, order, splitting and loaders are RecBole's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adarec.data.download import download
from recbole_adarec.data.windows import Windows, cut_windows, gather_windows
from recbole_adarec.errors import AdaRecError

TARGETS_PREFIX = "target_"  # the field "target_<item>_list" holds the targets of a window
WINDOW_FIELD = "window_id"
_FLAT_INDEX = "_flat_index"  # field: index of a row's target in the flat array of items


AUTO_LENGTH = "auto"
HISTORY_LENGTHS = (50, 100, 200)  # that ``MAX_ITEM_LIST_LENGTH: auto`` chooses from
_WITHIN = 0.95  # share of the interactions that the length holds


def history_length(lengths: np.ndarray) -> int:
    """The least of 50, 100 and 200 with 95 % of all interactions among as many last ones of each user, else 200.

    Parameters
    ----------
    lengths : ndarray
        Interactions of each user.

    Notes
    -----
    Measured on ml-100k, where 40, 62 and 86 % are within these lengths, with a CausalBSARec of 8 epochs: test NDCG@10
    is 0.1149 with 50 items and 0.1291 with 200.
    """
    least = _WITHIN * lengths.sum()
    return next((most for most in HISTORY_LENGTHS if np.minimum(lengths, most).sum() >= least), HISTORY_LENGTHS[-1])


class FastInteraction(Interaction):
    """RecBole's ``Interaction`` with fast indexing; RecBole's converts every index to a Python list."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, range):
            index = torch.arange(index.start, index.stop)
        elif isinstance(index, (list, np.ndarray, torch.Tensor)):
            index = torch.as_tensor(index)
            index = index if index.dtype == torch.bool else index.long()  # an empty list becomes a float tensor
        else:
            return super().__getitem__(index)
        return FastInteraction({name: column[index] for name, column in self.interaction.items()})


class SequenceDataset(SequentialDataset):
    """RecBole's sequential dataset with prefix rows padded on demand; `build` returns its training part as windows.

    ``dataset[index]`` has the item fields of RecBole's rows: ``item_id`` ``[B]``, ``item_id_list`` ``[B, L]`` and
    ``item_length`` ``[B]``. RecBole's evaluation loaders therefore run on it unchanged.

    Parameters
    ----------
    config : recbole.config.Config
        As for RecBole's ``SequentialDataset``.

    Attributes
    ----------
    items : Tensor
        Items of all interactions, ordered by user and time, int64; shared by the three parts of the split.

    Raises
    ------
    AdaRecError
        If ``benchmark_filename`` is set, or if a part of the split is empty.
    """

    inter_feat: Any  # RecBole's table: a DataFrame until the histories are built, then an Interaction
    items: Tensor

    def __init__(self, config: Any) -> None:
        if config["benchmark_filename"] is not None:
            raise AdaRecError(
                "benchmark_filename: pre-split files hold prefix rows, AdaRec trains on whole histories; "
                f"give one {config['dataset']}.inter instead"
            )
        chosen_by_data = config["MAX_ITEM_LIST_LENGTH"] == AUTO_LENGTH
        if chosen_by_data:
            config["MAX_ITEM_LIST_LENGTH"] = HISTORY_LENGTHS[-1]  # until the histories are known
        super().__init__(config)
        if chosen_by_data:
            lengths = np.bincount(self.inter_feat[self.uid_field].to_numpy())
            config["MAX_ITEM_LIST_LENGTH"] = self.max_item_list_len = history_length(lengths)
            self.logger.info(f"MAX_ITEM_LIST_LENGTH: {self.max_item_list_len}, by the lengths of the histories")

    def _download(self) -> None:
        """RecBole's, which leaves nothing half-written and needs no process group."""
        download(self)

    def data_augmentation(self) -> None:
        """Store, for every interaction but a user's first, its index and the length of its prefix (RecBole's hook)."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        users = self.inter_feat[self.uid_field].numpy()
        self.items = self.inter_feat[self.iid_field].long()
        first = np.flatnonzero(np.diff(users, prepend=-1))
        position = np.arange(len(users)) - np.repeat(first, np.diff(np.append(first, len(users))))
        targets = torch.from_numpy(np.flatnonzero(position > 0))
        rows = FastInteraction(self.inter_feat.interaction)[targets]
        lengths = torch.from_numpy(position)[targets].clamp_max(self.max_item_list_len)
        rows.update(Interaction({self.item_list_length_field: lengths, _FLAT_INDEX: targets}))
        self.inter_feat = rows

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        rows = super().__getitem__(index, join)
        if _FLAT_INDEX not in rows:  # RecBole reads the raw table before the histories are built
            return rows
        target, length = rows[_FLAT_INDEX].reshape(-1, 1), rows[self.item_list_length_field].reshape(-1, 1)
        position = torch.arange(self.max_item_list_len)
        real = position < length
        prefix = self.items[torch.where(real, target - length + position, 0)] * real
        rows.update(Interaction({getattr(self, f"{self.iid_field}_list_field"): prefix}))
        del rows.interaction[_FLAT_INDEX]
        return rows

    def _load_feat(self, filepath: str, source: Any) -> Any:
        """Load a table as RecBole does, but with the C engine of pandas where that reads the same."""
        original = recbole_dataset.pd
        recbole_dataset.pd = _FastPandas()
        try:
            return super()._load_feat(filepath, source)
        finally:
            recbole_dataset.pd = original

    def _grouped_index(self, group_by_list: np.ndarray) -> list[np.ndarray]:
        """Indices of equal values, in order of first appearance; as RecBole's, without its loop over interactions."""
        group, _ = pd.factorize(group_by_list)
        return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])

    def _split_index_by_leave_one_out(self, grouped_index: list[np.ndarray], leave_one_num: int) -> list[np.ndarray]:
        """First rows of each group and `leave_one_num` single rows; as RecBole's, without its loop over groups."""
        size = np.array([len(group) for group in grouped_index])
        left_out = np.minimum(leave_one_num, size - 1)
        members, end = np.concatenate(grouped_index), np.cumsum(size)
        from_end = np.repeat(end, size) - np.arange(len(members))  # 1 for the last row of a group
        parts = [members[from_end > np.repeat(left_out, size)]]
        for back in range(leave_one_num, 0, -1):
            parts.append(members[end[left_out >= back] - back])
        return parts

    def build(self) -> list[SequentialDataset]:
        """Training part as windows, validation part and test part, split as RecBole splits.

        Raises
        ------
        AdaRecError
            If a part is empty.
        """
        train, valid, test = super().build()
        for name, part in (("training", train), ("validation", valid), ("test", test)):
            if len(part) == 0:
                raise AdaRecError(
                    f"dataset {self.dataset_name!r} leaves no {name} interactions: with eval_args.split="
                    f"{self.config['eval_args']['split']} a history needs at least 4 items, and these have "
                    f"{self.inter_num + self.user_num - 1} interactions of {self.user_num - 1} users; "
                    "loosen the filters or give longer histories"
                )
        return [WindowDataset(train), valid, test]


class WindowDataset(SequenceDataset):
    """Training part of a dataset as windows, see `recbole_adarec.data.windows`.

    ``dataset[index]`` is a batch of B windows, right-padded to the longest of them, L. Its fields are ``user_id``
    ``[B]``, ``item_id_list`` (inputs, ``[B, L]``), ``target_item_id_list`` (targets, ``[B, L]``, 0 where padded),
    ``item_length`` ``[B]`` and ``window_id`` ``[B]``.

    Parameters
    ----------
    prefixes : SequenceDataset
        The training part as RecBole splits it, with a row per target.

    Attributes
    ----------
    windows : Windows
        All windows of the training part.
    """

    windows: Windows

    def __init__(self, prefixes: SequenceDataset) -> None:
        # All attributes are shared with the prefixes, as in RecBole's Dataset.copy.
        self.__dict__.update(prefixes.__dict__)
        targets, order = self.inter_feat[_FLAT_INDEX].sort()
        users = self.inter_feat[self.uid_field][order]
        self.windows = cut_windows(targets.numpy(), users.numpy(), self.max_item_list_len)

    def __len__(self) -> int:
        return len(self.windows.start)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        index = torch.as_tensor(index).reshape(-1)
        length = self.windows.length[index]
        inputs, targets = gather_windows(self.items, self.windows.start[index], length)
        list_field = getattr(self, f"{self.iid_field}_list_field")
        return Interaction(
            {
                self.uid_field: self.windows.user[index],
                list_field: inputs,
                TARGETS_PREFIX + list_field: targets,
                self.item_list_length_field: length,
                WINDOW_FIELD: index,
            }
        )


def item_counts(dataset: Any, n_items: int) -> Tensor:
    """Number of times each item is a target of the training part, int64 ``[I]``."""
    return torch.bincount(dataset.inter_feat[dataset.iid_field], minlength=n_items)


class _FastPandas:
    """The module pandas, with a ``read_csv`` that tries the C engine first.

    The Python engine, which RecBole asks for, still reads what the C engine cannot, such as separators of several
    characters.

    Notes
    -----
    The Python engine takes a minute for five million rows.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        """Table in a file, as ``pandas.read_csv`` reads it."""
        fast = kwargs | {"engine": "c", "float_precision": "round_trip"}
        try:
            return pd.read_csv(*args, **fast)
        except (ValueError, pd.errors.ParserError):
            return pd.read_csv(*args, **kwargs)
