"""Selection of positions of a batch of sequences: ``[B, L, C]`` becomes ``[N, C]``."""

from __future__ import annotations

from torch import Tensor


def nonzero_positions(positions: Tensor) -> Tensor:
    """Indices of the true entries of a bool mask ``[B, L]``, among its B L flattened positions, int64 ``[N]``.

    On a GPU this waits for all queued work. Compute it once and use it for every tensor of the batch.
    """
    return positions.flatten().nonzero().squeeze(1)


def select_positions(hidden: Tensor, rows: Tensor) -> Tensor:
    """States ``[N, C]`` of hidden states ``[B, L, C]``, at positions given as indices; faster than a bool mask.

    Parameters
    ----------
    hidden : Tensor
        Hidden states, ``[B, L, C]``.
    rows : Tensor
        Indices as `nonzero_positions` returns them, int64 ``[N]``.
    """
    flat = hidden.flatten(0, 1)
    return flat if len(rows) == len(flat) else flat.index_select(0, rows)
