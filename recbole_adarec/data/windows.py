"""Windows of a history: every training interaction is a target exactly once.

A window is a pair of offsets into one flat array of items, never a padded copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Windows(NamedTuple):
    """Offsets of windows into the flat array of items; window ``k`` reads ``items[start : start + length]`` and
    predicts ``items[start + 1 : start + length + 1]``.

    Attributes
    ----------
    start : Tensor
        Index of the first input, int64 ``[W]``.
    length : Tensor
        Number of targets, int64 ``[W]``, 1 to ``MAX_ITEM_LIST_LENGTH``.
    user : Tensor
        User of each window, int64 ``[W]``.
    """

    start: Tensor
    length: Tensor
    user: Tensor


def cut_windows(targets: np.ndarray, users: np.ndarray, max_length: int) -> Windows:
    """Cut runs of consecutive targets into windows of at most `max_length`, from the end of each run.

    Parameters
    ----------
    targets : ndarray
        Flat indices of the interactions to be predicted, ascending, int64 ``[N]``. The item before each of them is
        its input, so a gap between two indices (the first item of the next user is no target) ends a run.
    users : ndarray
        User of each target, int64 ``[N]``.
    max_length : int
        Largest number of targets in a window.

    Returns
    -------
    Windows
        In the order of `targets`; together they hold each target exactly once.
    """
    run_first = np.flatnonzero(np.diff(targets, prepend=-2) != 1)
    run_length = np.diff(np.append(run_first, len(targets)))
    cuts = -(-run_length // max_length)
    run = np.repeat(np.arange(len(run_first)), cuts)
    # How many windows of the same run come after this one: each of those is full, the first takes what is left.
    after = np.repeat(np.cumsum(cuts), cuts) - 1 - np.arange(len(run))
    end = run_length[run] - after * max_length
    begin = np.maximum(end - max_length, 0)
    start = targets[run_first[run]] - 1 + begin
    return Windows(
        torch.from_numpy(start), torch.from_numpy(end - begin), torch.from_numpy(users[run_first[run]].astype(np.int64))
    )


def gather_windows(items: Tensor, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Right-padded inputs and targets of windows, no wider than the longest of them.

    Parameters
    ----------
    items : Tensor
        The flat array, int64 ``[N]``.
    start, length : Tensor
        Offsets, int64 ``[B]``.

    Returns
    -------
    tuple of Tensor
        Inputs and targets, int64 ``[B, max(length)]`` each, 0 where padded.
    """
    position = torch.arange(int(length.max()))
    real = position < length[:, None]
    index = torch.where(real, start[:, None] + position, 0)
    return items[index] * real, items[(index + 1).clamp_max_(len(items) - 1)] * real


def split_users(users: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split windows in two by user: no user has windows in both parts.

    Parameters
    ----------
    users : Tensor
        User of each window, int64 ``[W]``.
    fraction : float
        Share of the users that goes to the second part.
    seed : int
        Seed of the choice.

    Returns
    -------
    tuple of Tensor
        Indices of the windows of the first and the second part.
    """
    distinct = users.unique()
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    chosen = distinct[order[: round(fraction * len(distinct))]]
    second = torch.isin(users, chosen)
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()


def length_batches(
    windows: Tensor, length: Tensor, targets: int, generator: torch.Generator | None, pool: int = 32
) -> list[Tensor]:
    """Batches of about `targets` targets each, in random order, of windows of similar length: little is padding.

    Parameters
    ----------
    windows : Tensor
        Indices of the windows of this epoch.
    length : Tensor
        Length of every window, by index.
    targets : int
        Targets of a batch, RecBole's rows; a batch holds at least one window.
    generator : torch.Generator, optional
        Shuffles; without one the windows keep their order.
    pool : int
        Batches that are drawn together and sorted by length among themselves, so that batches still differ in every
        epoch.

    Returns
    -------
    list of Tensor
        Indices of the windows of each batch; together they hold each window once.
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
