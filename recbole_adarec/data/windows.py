"""Windows: histories cut into pieces of bounded length, so that every training interaction is a target exactly once.

A window is stored as a start and a length in one flat array of items. Padded tensors are made for one batch at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Windows(NamedTuple):
    """Windows as positions in the flat array of items.

    The inputs of a window are ``items[start : start + length]``, its targets are
    ``items[start + 1 : start + length + 1]``.

    Attributes
    ----------
    start : Tensor
        Index of the first input, int64, one entry per window.
    length : Tensor
        Number of targets, 1 to ``MAX_ITEM_LIST_LENGTH``, int64, one entry per window.
    user : Tensor
        User id, int64, one entry per window.
    """

    start: Tensor
    length: Tensor
    user: Tensor


def cut_windows(targets: np.ndarray, users: np.ndarray, max_length: int) -> Windows:
    """Cut runs of consecutive targets into windows, from the end of each run.

    Only the first window of a run can be shorter than `max_length`.

    Parameters
    ----------
    targets : ndarray
        Indices of the targets in the flat array of items, ascending, int64, one entry per target. The input of a target
        is the item before it, so a gap between two indices ends a run; there is one before each user, whose first item
        is not a target.
    users : ndarray
        User id of each target, int64, one entry per target.
    max_length : int
        Largest number of targets in a window.

    Returns
    -------
    Windows
        In the order of `targets`. Together they hold each target exactly once.
    """
    run_first = np.flatnonzero(np.diff(targets, prepend=-2) != 1)
    run_length = np.diff(np.append(run_first, len(targets)))
    window_count = -(-run_length // max_length)
    run = np.repeat(np.arange(len(run_first)), window_count)
    # Number of later windows of the same run: all of them are full, so the first one holds the remainder.
    later = np.repeat(np.cumsum(window_count), window_count) - 1 - np.arange(len(run))
    end = run_length[run] - later * max_length
    begin = np.maximum(end - max_length, 0)
    start = targets[run_first[run]] - 1 + begin
    return Windows(
        torch.from_numpy(start), torch.from_numpy(end - begin), torch.from_numpy(users[run_first[run]].astype(np.int64))
    )


def gather_windows(items: Tensor, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch of windows, right-padded to the longest of them.

    Parameters
    ----------
    items : Tensor
        Items of all interactions, ordered by user and time, int64, one entry per interaction.
    start, length : Tensor
        Start and length of each window, see `Windows`, int64 ``[B]``.

    Returns
    -------
    tuple of Tensor
        Inputs and targets, int64 ``[B, L]`` each with L = ``max(length)``, 0 where padded.
    """
    position = torch.arange(int(length.max()))
    real = position < length[:, None]
    index = torch.where(real, start[:, None] + position, 0)
    return items[index] * real, items[(index + 1).clamp_max_(len(items) - 1)] * real


def split_users(users: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split windows into two parts by user, so that no user has windows in both.

    Parameters
    ----------
    users : Tensor
        User id of each window, int64, one entry per window.
    fraction : float
        Share of the users in the second part.
    seed : int
        Seed of the random choice of users.

    Returns
    -------
    tuple of Tensor
        Indices of the windows in the first and in the second part, int64.
    """
    user_ids = users.unique()
    order = torch.randperm(len(user_ids), generator=torch.Generator().manual_seed(seed))
    second_users = user_ids[order[: round(fraction * len(user_ids))]]
    second = torch.isin(users, second_users)
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()


def length_batches(
    windows: Tensor, length: Tensor, targets: int, generator: torch.Generator | None, pool: int = 32
) -> list[Tensor]:
    """Batches of about `targets` targets each, of windows of similar length, so that little of a batch is padding.

    Parameters
    ----------
    windows : Tensor
        Indices of the windows of this epoch, int64.
    length : Tensor
        Length of every window of the dataset, by index, int64.
    targets : int
        Number of targets per batch; RecBole's training rows are targets. A batch holds at least one window.
    generator : torch.Generator, optional
        Shuffles windows and batches. Without it the windows keep their order.
    pool : int
        Windows are sorted by length only within pools of this many batches, so that batches differ between epochs.

    Returns
    -------
    list of Tensor
        Indices of the windows of each batch, int64. Together they hold each window exactly once.
    """
    if generator is not None:
        windows = windows[torch.randperm(len(windows), generator=generator)]
        pools = length[windows].cumsum(0) // (pool * targets)
        by_length = length[windows].argsort(stable=True)
        windows = windows[by_length[pools[by_length].argsort(stable=True)]]
    batch = (length[windows].cumsum(0) - length[windows]) // targets
    batches = list(windows.split(batch.unique_consecutive(return_counts=True)[1].tolist()))
    if generator is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
