"""RecBole's sequential dataset without its padded prefix rows.

RecBole expands a history of n items to n - 1 rows of ``MAX_ITEM_LIST_LENGTH`` items each. Here a row is two numbers,
and its padded form exists only while its batch does; filtering, order, splitting and loaders stay RecBole's own.
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

TARGETS_PREFIX = "target_"  # the targets of a window stand in "target_<item>_list"
WINDOW_FIELD = "window_id"
_FLAT = "_flat_index"  # where the target of a row stands in the flat array of items


class FastInteraction(Interaction):
    """RecBole's `Interaction`, which turns every index into a Python list first."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, range):
            index = torch.arange(index.start, index.stop)
        elif isinstance(index, (list, np.ndarray, torch.Tensor)):
            index = torch.as_tensor(index)
            index = index if index.dtype == torch.bool else index.long()  # an empty list has no type
        else:
            return super().__getitem__(index)
        return FastInteraction({name: column[index] for name, column in self.interaction.items()})


class SequenceDataset(SequentialDataset):
    """Histories with RecBole's prefix rows made on demand; its training part is a `WindowDataset`.

    ``dataset[index]`` gives the fields that RecBole's own rows have for items (``item_id``, ``item_id_list``
    ``[B, L]``, ``item_length``), so RecBole's evaluation loaders run on it unchanged.

    Raises
    ------
    AdaRecError
        If ``benchmark_filename`` is set, or if the split leaves nothing to train or to evaluate on.
    """

    inter_feat: Any  # RecBole's table: a DataFrame until the histories are built, then an Interaction
    items: Tensor  # every interaction's item, by user and time, int64 [N]; shared by all parts

    def __init__(self, config: Any) -> None:
        if config["benchmark_filename"] is not None:
            raise AdaRecError(
                "benchmark_filename: pre-split files hold prefix rows, AdaRec trains on whole histories; "
                f"give one {config['dataset']}.inter instead"
            )
        super().__init__(config)

    def _download(self) -> None:
        """RecBole's, which leaves nothing half-written and needs no process group."""
        download(self)

    def data_augmentation(self) -> None:
        """Keep, for every interaction that has a past, where it stands and how long its prefix is."""
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
        rows.update(Interaction({self.item_list_length_field: lengths, _FLAT: targets}))
        self.inter_feat = rows

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        rows = super().__getitem__(index, join)
        if _FLAT not in rows:  # RecBole reads the raw table before the histories are built
            return rows
        target, length = rows[_FLAT].reshape(-1, 1), rows[self.item_list_length_field].reshape(-1, 1)
        position = torch.arange(self.max_item_list_len)
        real = position < length
        prefix = self.items[torch.where(real, target - length + position, 0)] * real
        rows.update(Interaction({getattr(self, f"{self.iid_field}_list_field"): prefix}))
        del rows.interaction[_FLAT]
        return rows

    def _load_feat(self, filepath: str, source: Any) -> Any:
        """RecBole's, with pandas' fast engine in place of the one written in Python where it reads the same."""
        original = recbole_dataset.pd
        recbole_dataset.pd = _FastPandas()
        try:
            return super()._load_feat(filepath, source)
        finally:
            recbole_dataset.pd = original

    def _grouped_index(self, group_by_list: np.ndarray) -> list[np.ndarray]:
        """RecBole's groups of equal values, in order of their first appearance, without its loop over interactions."""
        group, _ = pd.factorize(group_by_list)
        return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])

    def _split_index_by_leave_one_out(self, grouped_index: list[np.ndarray], leave_one_num: int) -> list[np.ndarray]:
        """RecBole's split of each group into its first rows and `leave_one_num` single ones, in array operations."""
        size = np.array([len(group) for group in grouped_index])
        left_out = np.minimum(leave_one_num, size - 1)
        members, end = np.concatenate(grouped_index), np.cumsum(size)
        from_end = np.repeat(end, size) - np.arange(len(members))  # 1 for the last row of a group
        parts = [members[from_end > np.repeat(left_out, size)]]
        for place in range(leave_one_num, 0, -1):
            parts.append(members[end[left_out >= place] - place])
        return parts

    def build(self) -> list[SequentialDataset]:
        """RecBole's split, with the training part as windows."""
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
    """The training part: ``dataset[index]`` gives whole windows, right-padded to the longest of them.

    Fields of a batch: user, ``item_id_list`` (inputs, ``[B, L']``), ``target_item_id_list`` (``[B, L']``, 0 where
    padded), ``item_length`` and ``window_id`` (``[B]``).

    Parameters
    ----------
    prefixes : SequenceDataset
        The training part as RecBole splits it.
    """

    windows: Windows

    def __init__(self, prefixes: SequenceDataset) -> None:
        # Everything that RecBole keeps on a dataset is shared, as in its own Dataset.copy.
        self.__dict__.update(prefixes.__dict__)
        targets, order = self.inter_feat[_FLAT].sort()
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
    """How often each item is a target of the training part, ``[I]``."""
    return torch.bincount(dataset.inter_feat[dataset.iid_field], minlength=n_items)


class _FastPandas:
    """pandas, whose ``read_csv`` tries its C engine first; the Python engine takes a minute for five million rows.

    What only the Python engine reads (separators of several characters, for one), it still reads.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        fast = kwargs | {"engine": "c", "float_precision": "round_trip"}
        try:
            return pd.read_csv(*args, **fast)
        except (ValueError, pd.errors.ParserError):
            return pd.read_csv(*args, **kwargs)
